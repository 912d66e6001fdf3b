"""Neuron selectivity transfer: the student's channels should be active where the teacher's are.

Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219; with the
polynomial kernel of degree 2.
"""

from dataclasses import dataclass

from torch import Tensor

from tripletkd.methods.functional import Maps, NonNegative, cross_entropy, over_layers, same_sizes, unit
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and names the layers whose maps are compared."""

    ce: NonNegative  # weight of the cross-entropy
    mmd: NonNegative  # weight of the discrepancy, summed over the layers
    layers: Maps


def mmd(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the squared maximum mean discrepancy between the channels of student and teacher.

        mean K(t, t) + mean K(s, s) - 2 mean K(s, t),  K(a, b) = (a . b)^2

    The means are over images and all pairs of channels of one image, each channel a vector over places of length 1.

    Args:
        student: feature maps, [B, C, H, W].
        teacher: feature maps, [B, C', H, W].

    Returns:
        The discrepancy, a scalar.

    Source: the paper's section 4.
    """
    s, t = (unit(f.flatten(2), dim=2) for f in (student, teacher))
    return _mean_kernel(t, t) + _mean_kernel(s, s) - 2 * _mean_kernel(s, t)


def _mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.mT).square().mean()


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + mmd * sum over layers of the discrepancy between the channels' activations."""
    maps = same_sizes(batch.student, batch.teacher, params.layers)
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "mmd": Term(params.mmd, over_layers(params.layers, mmd, *maps)),
    }
