"""Regression on the teacher's logits. Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import NonNegative, cross_entropy
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher"})


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy; the paper uses none
    mse: NonNegative  # weight of the regression


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over images and classes of (s - t)^2; student, teacher: logits [B, classes].

    The paper's equation 1 writes the sum over classes times 1/2: another constant factor, the same minimum.
    """
    return F.mse_loss(student, teacher)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y) + mse * MSE(s(x), t(x))."""
    assert batch.teacher is not None
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "mse": Term(params.mse, logit_mse(batch.student.logits, batch.teacher.logits)),
    }
