"""What can be varied about triplet.py, for ablations: temperature, anchor, negatives, normalised outputs.

With `kl: 0, anchor: teacher, negatives: drawn, normalise: false` it is triplet.py; with `kl: 1` instead, kd_triplet.py;
with `triplet: 0`, kd.py; with neither, scratch.py. The variations are ours: Oki et al., IJCNN 2020, have none of them.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import NonNegative, Positive, cross_entropy, kl_divergence, unit
from tripletkd.types import Batch, Term

Anchor = Annotated[str, "in teacher student"]
Negatives = Annotated[str, "in drawn batch hardest all"]
IN_BATCH = ("batch", "hardest", "all")


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy
    kl: NonNegative  # weight of the divergence from the teacher
    temperature: Positive  # of that divergence
    triplet: NonNegative  # the paper's lambda
    margin: NonNegative  # in units of the outputs that are compared
    anchor: Anchor  # teacher: t(x), with s(x) and s(x'); student: s(x), with t(x) and t(x')
    negatives: Negatives  # drawn: x' from the training split, as the paper; else from the batch, see `in_batch`
    normalise: bool  # compare logits of length 1, whose distances are 0 to 2; the paper: raw logits


def needs(params: Params) -> frozenset[str]:
    """Images x' and outputs of theirs only where the variant uses them."""
    wanted = {"teacher"} if params.kl or params.triplet else set()
    if params.triplet and params.negatives == "drawn":
        wanted |= {"negative"} if params.anchor == "teacher" else {"negative", "teacher_negative"}
    return frozenset(wanted)


def hinge(near: Tensor, far: Tensor, weight: Tensor, margin: float) -> Tensor:
    """mean_i sum_j w_ij max(0, near_i - far_ij + margin).

    near: ||a_i - p_i||, [B]; far: ||a_i - n_j||, [B, J]; weight: of each negative, [B, J], rows that sum to 1, or to 0
    where an image has no negative.
    """
    return (weight * F.relu(near[:, None] - far + margin)).sum(1).mean()


def distance(first: Tensor, second: Tensor) -> Tensor:
    """||first - second + e||_2 over the last dimension, e = 1e-6 added to every element, as in triplet_margin."""
    return torch.linalg.vector_norm(first - second + 1e-6, dim=-1)


def in_batch(kind: str, labels: Tensor, far: Tensor) -> Tensor:
    """The weights w_ij [B, B] of the batch's images j as negatives of its images i; 0 for those of the same class.

    batch: the next image of another class, in the batch's order, which is random: one drawn at random.
    hardest: the one nearest to the anchor, by far [B, B]. all: each of them alike.
    """
    size = len(labels)
    other = labels[:, None] != labels
    if kind == "all":
        return other.to(far.dtype) / other.sum(1, keepdim=True).clamp(min=1)
    place = torch.arange(size, device=labels.device)
    rank = far.detach() if kind == "hardest" else ((place - place[:, None]) % size).to(far.dtype)
    chosen = torch.where(other, rank, torch.inf).argmin(1)
    return ((place == chosen[:, None]) & other).to(far.dtype)


def triplets(batch: Batch, params: Params) -> Tensor:
    """The term that `triplet` weighs: hinge over the anchor's and the negatives' side that `anchor` says."""
    assert batch.teacher is not None
    student, teacher = _logits(batch.student.logits, params), _logits(batch.teacher.logits, params)
    anchor, positive = (teacher, student) if params.anchor == "teacher" else (student, teacher)
    near = distance(anchor, positive)
    if params.negatives in IN_BATCH:
        far = distance(anchor[:, None], positive[None])  # what is positive for x_j is negative for x_i
        return hinge(near, far, in_batch(params.negatives, batch.labels, far), params.margin)
    drawn = batch.negative if params.anchor == "teacher" else batch.teacher_negative
    assert drawn is not None
    far = distance(anchor, _logits(drawn.logits, params))[:, None]
    return hinge(near, far, torch.ones_like(far), params.margin)


def _logits(logits: Tensor, params: Params) -> Tensor:
    return unit(logits, dim=1) if params.normalise else logits


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y) + kl * T^2 KL(t(x) / T || s(x) / T) + triplet * triplets; terms of weight 0 are left out."""
    terms = {"ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels))}
    if params.kl:
        assert batch.teacher is not None
        divergence = kl_divergence(batch.student.logits, batch.teacher.logits, params.temperature)
        terms["kl"] = Term(params.kl, divergence)
    if params.triplet:
        terms["triplet"] = Term(params.triplet, triplets(batch, params))
    return terms
