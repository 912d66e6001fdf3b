"""Probabilistic knowledge transfer: images should have the same neighbours in the batch as with the teacher.

Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv 1803.10837.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tripletkd.methods.functional import Layers, NonNegative, cross_entropy, over_layers
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and names the layers whose features are compared."""

    ce: NonNegative  # weight of the cross-entropy
    divergence: NonNegative  # weight of the divergence, summed over the layers
    layers: Layers


def divergence(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute the divergence of the student's neighbourhoods in the batch from the teacher's.

        mean over pairs i, j of p_t log((p_t + eps) / (p_s + eps)),  p_ij = k_ij / sum_j k_ij,  k_ij = (cos_ij + 1) / 2

    cos_ij is the product of f_i and f_j, each divided by its length + eps; a row of zeros is at cosine 0 to all.

    Args:
        student: features f, [B, ...].
        teacher: features f, [B, ...].
        eps: keeps lengths and probabilities from 0.

    Returns:
        The mean over the B * B pairs, a scalar.

    Source: the paper's section 3, cosine kernel; eps and mean as in its code.
    """
    p_s, p_t = _probabilities(student.flatten(1), eps), _probabilities(teacher.flatten(1), eps)
    return torch.mean(p_t * torch.log((p_t + eps) / (p_s + eps)))


def _probabilities(f: Tensor, eps: float) -> Tensor:
    """Return [B, B], rows of sum 1: how near each image is to the others."""
    # vector_norm and not the root of a sum of squares, whose gradient at zero is not a number.
    directions = f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + eps)
    kernel = (directions @ directions.mT + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + divergence * sum over layers of the divergence of the images' neighbourhoods."""
    features = batch.student.features, batch.teacher.features
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "divergence": Term(params.divergence, over_layers(params.layers, divergence, *features)),
    }
