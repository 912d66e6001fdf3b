"""Neuron selectivity transfer. Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
2017, arXiv 1707.01219; with the polynomial kernel of degree 2.
"""

from dataclasses import dataclass

from torch import Tensor

from tripletkd.methods.functional import Map, NonNegative, cross_entropy, over_layers, same_sizes, unit
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy
    mmd: NonNegative  # weight of the discrepancy, summed over the layers
    layers: list[Map]


def mmd(student: Tensor, teacher: Tensor) -> Tensor:
    """mean K(t, t) + mean K(s, s) - 2 mean K(s, t), K(a, b) = (a . b)^2: squared maximum mean discrepancy.

    The means are over images and all pairs of channels of one image, each a vector over places of length 1.
    student, teacher: feature maps [B, C, H, W], each with its own C. Source: the paper's section 4.
    """
    s, t = (unit(f.flatten(2), dim=2) for f in (student, teacher))
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.mT).square().mean()


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y) + mmd * sum over layers of the discrepancy between the channels' activation patterns."""
    assert batch.teacher is not None
    maps = same_sizes(batch.student, batch.teacher, params.layers)
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "mmd": Term(params.mmd, over_layers(params.layers, mmd, *maps)),
    }
