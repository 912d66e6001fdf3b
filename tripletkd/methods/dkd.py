"""Decoupled knowledge distillation. Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tripletkd.methods.functional import NonNegative, Positive, cross_entropy, kl_divergence
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher"})


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy
    tckd: NonNegative  # weight of the target class's part; the paper's alpha
    nckd: NonNegative  # weight of the other classes' part; the paper's beta
    temperature: Positive
    warmup: NonNegative  # epochs in which tckd and nckd grow to these weights; 0: none


def tckd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_i KL(b_t || b_s), b = (p_y, 1 - p_y), p = softmax(z / T): how sure of the label.

    student, teacher: logits [B, classes]; labels: [B]. Source: the paper's section 3; T^2 as in its code.
    """
    b_s, b_t = (_target_or_not(logits, labels, temperature) for logits in (student, teacher))
    return kl_divergence(b_s, b_t, temperature)


def nckd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_i KL(q_t || q_s), q = softmax over all classes but y of z / T: how the others are told apart.

    student, teacher: logits [B, classes]; labels: [B]. Source: the paper's section 3; T^2 as in its code.
    """
    return kl_divergence(_without_target(student, labels), _without_target(teacher, labels), temperature)


def _is_target(logits: Tensor, labels: Tensor) -> Tensor:
    return labels[:, None] == torch.arange(logits.shape[1], device=logits.device)


def _without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's probability becomes 0. Finite, since 0 * infinity is not a number."""
    return logits.masked_fill(_is_target(logits, labels), -1e30)


def _target_or_not(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Logits [B, 2] that give (p_y, 1 - p_y) at the temperature, with no logarithm of a probability that may be 0."""
    target = logits.masked_fill(~_is_target(logits, labels), 0).sum(1)
    others = temperature * torch.logsumexp(_without_target(logits, labels) / temperature, dim=1)
    return torch.stack([target, others], dim=1)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y) + min(epoch / warmup, 1) * (tckd * target class's part + nckd * other classes' part)."""
    assert batch.teacher is not None
    warm = torch.clamp(torch.as_tensor(batch.epoch) / params.warmup, max=1.0)
    inputs = batch.student.logits, batch.teacher.logits, batch.labels, params.temperature
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "tckd": Term(params.tckd * warm, tckd(*inputs)),
        "nckd": Term(params.nckd * warm, nckd(*inputs)),
    }
