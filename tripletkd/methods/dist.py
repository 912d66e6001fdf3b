"""Distillation from a stronger teacher: predictions should correlate with the teacher's, not equal them.

Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import NonNegative, Positive, cross_entropy
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher"})


@dataclass(frozen=True)
class Params:
    """Weighs the three terms and sets the temperature of the predictions that are compared."""

    ce: NonNegative  # weight of the cross-entropy; the paper's alpha
    inter: NonNegative  # weight of the relation between classes; the paper's beta
    intra: NonNegative  # weight of the relation within a class; the paper's gamma
    temperature: Positive  # the paper's tau


def inter(student: Tensor, teacher: Tensor, temperature: float, eps: float = 1e-8) -> Tensor:
    """Compare the relation between classes: each image's predictions, correlated over the classes.

        T^2 * (1 - mean over images of the correlation, over classes, of softmax(s / T) and softmax(t / T))

    Args:
        student: logits s, [B, classes].
        teacher: logits t, [B, classes].
        temperature: T.
        eps: the least length by which a centred row is divided.

    Returns:
        The mean over images, a scalar in [0, 2 T^2].

    Source: the paper's section 3, inter-class relation; T^2 as in its code.
    """
    p_s, p_t = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * (1 - _correlation(p_s, p_t, eps).mean())


def intra(student: Tensor, teacher: Tensor, temperature: float, eps: float = 1e-8) -> Tensor:
    """Compare the relation within a class: each class's probabilities, correlated over the images.

        T^2 * (1 - mean over classes of the correlation, over images, of softmax(s / T) and softmax(t / T))

    Args:
        student: logits s, [B, classes].
        teacher: logits t, [B, classes].
        temperature: T.
        eps: the least length by which a centred row is divided.

    Returns:
        The mean over classes, a scalar in [0, 2 T^2]. A single image has no correlation: T^2, without a gradient.

    Source: the paper's section 3, intra-class relation; T^2 as in its code.
    """
    p_s, p_t = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * (1 - _correlation(p_s.mT, p_t.mT, eps).mean())


def _correlation(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Compute Pearson's coefficient of each row of a with the same row of b.

    A constant row gives 0, without a gradient.
    """
    return (_standardised(a, eps) * _standardised(b, eps)).sum(1)


def _standardised(rows: Tensor, eps: float) -> Tensor:
    """Subtract its mean from each row, then divide the row by its length; lengths below eps count as eps."""
    centred = rows - rows.mean(1, keepdim=True)
    length, before = (torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (centred, rows))
    # What rounding leaves of a constant row has a direction too, and divided by eps a gradient of the order of 1e8.
    constant = length <= 8 * torch.finfo(rows.dtype).eps * before
    return centred / torch.where(constant, torch.inf, length.clamp(min=eps))


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + inter * relation between classes + intra * relation within a class."""
    inputs = batch.student.logits, batch.teacher.logits, params.temperature
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "inter": Term(params.inter, inter(*inputs)),
        "intra": Term(params.intra, intra(*inputs)),
    }
