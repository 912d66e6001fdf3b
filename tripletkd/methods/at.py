"""Attention transfer: the student learns where the teacher's feature maps are active.

Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import Maps, NonNegative, cross_entropy, over_layers, same_sizes, unit
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and names the layers whose maps are compared."""

    ce: NonNegative  # weight of the cross-entropy
    attention: NonNegative  # weight of the difference of attention maps, summed over the layers
    layers: Maps


def attention(student: Tensor, teacher: Tensor, power: int = 2) -> Tensor:
    """Compare the attention maps of student and teacher.

        mean over images and places of (q_s - q_t)^2,  q = a / ||a||_2 over places,  a = mean over channels of f^power

    Args:
        student: feature maps f, [B, C, H, W].
        teacher: feature maps f, [B, C', H, W].
        power: the exponent of the activations.

    Returns:
        The mean over images and places, a scalar.

    Source: the paper's section 3.1, activation-based; the mean, in place of the paper's norm of q_s - q_t, is its
    code's.
    """
    q_s, q_t = (unit(f.pow(power).mean(1).flatten(1), dim=1) for f in (student, teacher))
    return F.mse_loss(q_s, q_t)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + attention * sum over layers of the difference of attention maps."""
    maps = same_sizes(batch.student, batch.teacher, params.layers)
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "attention": Term(params.attention, over_layers(params.layers, attention, *maps)),
    }
