"""Decoupled knowledge distillation: the divergence of kd.py in two parts, of the target class and of all others.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tripletkd.methods.functional import NonNegative, Positive, cross_entropy, kl_divergence, z_score
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher"})


@dataclass(frozen=True)
class Params:
    """Weighs the three terms, and sets the temperature and the warm-up of the two parts."""

    ce: NonNegative  # weight of the cross-entropy
    tckd: NonNegative  # weight of the target class's part; the paper's alpha
    nckd: NonNegative  # weight of the other classes' part; the paper's beta
    temperature: Positive
    warmup: NonNegative  # epochs in which tckd and nckd grow to these weights; 0: none
    standardize: bool = False  # compare z-scores of the logits (Sun et al., CVPR 2024)


def by_class(_params: Params) -> bool:
    """Say that the class of an image counts."""
    return True


def tckd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compare how sure teacher and student are of the label (target class knowledge distillation).

        T^2 * mean_i KL(b_t || b_s),  b = (p_y, 1 - p_y),  p = softmax(z / T)

    Args:
        student: logits z, [B, classes].
        teacher: logits z, [B, classes].
        labels: y, [B], int64.
        temperature: T.

    Returns:
        The mean over the batch, a scalar.

    Source: the paper's section 3; T^2 as in its code.
    """
    b_s, b_t = (_target_or_not(logits, labels, temperature) for logits in (student, teacher))
    return kl_divergence(b_s, b_t, temperature)


def nckd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compare how teacher and student divide the rest among the other classes (non-target class distillation).

        T^2 * mean_i KL(q_t || q_s),  q = softmax of z / T over all classes but y

    Args:
        student: logits z, [B, classes].
        teacher: logits z, [B, classes].
        labels: y, [B], int64.
        temperature: T.

    Returns:
        The mean over the batch, a scalar.

    Source: the paper's section 3; T^2 as in its code.
    """
    return kl_divergence(_without_target(student, labels), _without_target(teacher, labels), temperature)


def _is_target(logits: Tensor, labels: Tensor) -> Tensor:
    return labels[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Make the label's probability 0, by a logit that is finite, since 0 * infinity is not a number."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # the logit is beyond float16
    return logits.masked_fill(_is_target(logits, labels), -1e30)


def _target_or_not(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return logits [B, 2] that give (p_y, 1 - p_y) at the temperature.

    No logarithm is taken of a probability, which may be 0.
    """
    target = logits.masked_fill(~_is_target(logits, labels), 0).sum(1)
    others = temperature * torch.logsumexp(_without_target(logits, labels) / temperature, dim=1)
    return torch.stack([target, others], dim=1)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + min(epoch / warmup, 1) * (tckd * target's part + nckd * other classes' part)."""
    warm = torch.clamp(torch.as_tensor(batch.epoch) / params.warmup, max=1.0)
    student, teacher = batch.student.logits, batch.teacher.logits
    if params.standardize:
        student, teacher = z_score(student), z_score(teacher)
    inputs = student, teacher, batch.labels, params.temperature
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "tckd": Term(params.tckd * warm, tckd(*inputs)),
        "nckd": Term(params.nckd * warm, nckd(*inputs)),
    }
