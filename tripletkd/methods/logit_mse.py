"""Regression on logits: the student's logits should equal the teacher's.

Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv 1312.6184.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import NonNegative, cross_entropy
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms."""

    ce: NonNegative  # weight of the cross-entropy; the paper uses none
    mse: NonNegative  # weight of the regression


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean over images and classes of (s - t)^2.

    Args:
        student: logits s, [B, classes].
        teacher: logits t, [B, classes].

    Returns:
        The mean, a scalar.

    Source: the paper's equation 1, which writes the sum over classes times 1/2: another constant factor, the same
    minimum.
    """
    return F.mse_loss(student, teacher)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + mse * MSE(s(x), t(x))."""
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "mse": Term(params.mse, logit_mse(batch.student.logits, batch.teacher.logits)),
    }
