"""Variants of triplet.py for the ablations: temperature, anchor, negatives, what is made of the outputs, the margin.

With `kl: 0, anchor: teacher, negatives: drawn, outputs: logits, standardize: false, margin_epochs: 0` this is
triplet.py; with `kl: 1` instead, kd_triplet.py; with `triplet: 0`, kd.py; with neither, scratch.py. The variants are
ours: Oki et al., IJCNN 2020, have none of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import NonNegative, Positive, cross_entropy, kl_divergence, unit, z_score
from tripletkd.types import Batch, Term

IN_BATCH = ("batch", "hardest", "all")  # choices of negatives that take them from the batch itself


@dataclass(frozen=True)
class Params:
    """Weighs the three terms and says which variant of the triplets is meant."""

    ce: NonNegative  # weight of the cross-entropy
    kl: NonNegative  # weight of the divergence from the teacher
    temperature: Positive  # of that divergence, and of probabilities
    triplet: NonNegative  # weight of the triplets; the paper's lambda
    margin: NonNegative  # in units of the outputs that are compared
    anchor: Literal["teacher", "student"]  # teacher: t(x), with s(x) and s(x'); student: s(x), with t(x) and t(x')
    negatives: Literal["drawn", "batch", "hardest", "all"]  # drawn: x' as in the paper; else see `in_batch`
    outputs: Literal["logits", "unit", "probabilities"]  # what is compared; unit: logits scaled to length 1
    standardize: bool = False  # z-scores take the logits' place (Sun et al., CVPR 2024), here and in the divergence
    margin_epochs: NonNegative = 0  # in which the margin goes from first_margin to margin; 0: it stays as it is
    first_margin: NonNegative = 0


def needs(params: Params) -> frozenset[str]:
    """Say which outputs the variant uses: the teacher's, and those for images x', only where they count."""
    wanted = {"teacher"} if params.kl or params.triplet else set()
    if params.triplet and params.negatives == "drawn":
        wanted |= {"negative"} if params.anchor == "teacher" else {"negative", "teacher_negative"}
    return frozenset(wanted)


def by_class(params: Params) -> bool:
    """Say whether the batch's images are negatives of each other by their labels."""
    return params.triplet > 0 and params.negatives in IN_BATCH


def hinge(near: Tensor, far: Tensor, weight: Tensor, margin: Tensor | float) -> Tensor:
    """Compute the triplet loss with several weighted negatives for each anchor.

        mean_i sum_j w_ij max(0, near_i - far_ij + margin)

    Args:
        near: distances to the positives, ||a_i - p_i||, [B].
        far: distances to the negatives, ||a_i - n_j||, [B, J].
        weight: w, the weight of each negative, [B, J]; its rows sum to 1, or to 0 where an image has no negative.
        margin: in units of the distances.

    Returns:
        The mean over the batch, a scalar.
    """
    return (weight * F.relu(near[:, None] - far + margin)).sum(1).mean()


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Compute ||first - second + e||_2 over the last dimension, e = 1e-6 in every element as in triplet_margin."""
    return torch.linalg.vector_norm(first - second + 1e-6, dim=-1)


def in_batch(kind: str, labels: Tensor, far: Tensor) -> Tensor:
    """Weigh the batch's images j as negatives of its images i.

    Args:
        kind: "batch" takes the next image of another class in the batch's order, which is random, so that it is one
            drawn at random; "hardest" takes the one nearest to the anchor; "all" takes each of them alike.
        labels: [B], int64.
        far: the distances by which "hardest" judges, [B, B].

    Returns:
        The weights w_ij, [B, B]; 0 for images of the same class.
    """
    size = len(labels)
    other = labels[:, None] != labels
    if kind == "all":
        return other.to(far.dtype) / other.sum(1, keepdim=True).clamp(min=1)
    place = torch.arange(size, device=labels.device)
    rank = far.detach() if kind == "hardest" else ((place - place[:, None]) % size).to(far.dtype)
    chosen = torch.where(other, rank, torch.inf).argmin(1)
    return ((place == chosen[:, None]) & other).to(far.dtype)


def margin(params: Params, epoch: Tensor | float) -> Tensor | float:
    """Compute the margin of an epoch e, from 1 on: linear over the first E epochs, then constant.

    first_margin + (margin - first_margin) * min(1, (e - 1) / E)
    """
    if not params.margin_epochs:
        return params.margin
    share = torch.clamp((torch.as_tensor(epoch) - 1) / params.margin_epochs, max=1.0)
    return params.first_margin + (params.margin - params.first_margin) * share


def triplets(batch: Batch, params: Params) -> Tensor:
    """Compute the triplet loss of the variant that the parameters describe, a scalar."""
    assert batch.teacher is not None
    student, teacher = _compared(batch.student.logits, params), _compared(batch.teacher.logits, params)
    anchor, positive = (teacher, student) if params.anchor == "teacher" else (student, teacher)
    near, apart = distance(anchor, positive), margin(params, batch.epoch)
    if params.negatives in IN_BATCH:
        far = distance(anchor[:, None], positive[None])  # what is positive for x_j is negative for x_i
        return hinge(near, far, in_batch(params.negatives, batch.labels, far), apart)
    drawn = batch.negative if params.anchor == "teacher" else batch.teacher_negative
    assert drawn is not None
    far = distance(anchor, _compared(drawn.logits, params))[:, None]
    return hinge(near, far, torch.ones_like(far), apart)


def _compared(logits: Tensor, params: Params) -> Tensor:
    """Return what the distances are of: the logits, their direction, or softmax(logits / T)."""
    logits = z_score(logits) if params.standardize else logits
    if params.outputs == "probabilities":
        return (logits / params.temperature).softmax(1)
    return unit(logits, dim=1) if params.outputs == "unit" else logits


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + kl * T^2 KL(t(x) / T || s(x) / T) + triplet * triplets.

    Terms of weight 0, but for the cross-entropy, are left out.
    """
    terms = {"ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels))}
    if params.kl:
        assert batch.teacher is not None
        student, teacher = batch.student.logits, batch.teacher.logits
        terms["kl"] = Term(params.kl, kl_divergence(student, teacher, params.temperature, params.standardize))
    if params.triplet:
        terms["triplet"] = Term(params.triplet, triplets(batch, params))
    return terms
