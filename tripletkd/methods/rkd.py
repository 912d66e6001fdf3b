"""Relational knowledge distillation: distances and angles between images should be as with the teacher.

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import Layers, NonNegative, cross_entropy, over_layers, unit
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass(frozen=True)
class Params:
    """Weighs the three terms and names the layers whose features are compared."""

    ce: NonNegative  # weight of the cross-entropy
    distance: NonNegative  # weight of the difference of distances, summed over the layers
    angle: NonNegative  # weight of the difference of angles, summed over the layers
    layers: Layers


def distance(student: Tensor, teacher: Tensor, squared: bool = False) -> Tensor:
    """Compare the distances between images, relative to their mean.

        mean over all pairs i, j of huber(psi_s - psi_t),  psi_ij = d_ij / mean of the positive d,
        d_ij = ||f_i - f_j||_2,  huber(x) = x^2 / 2 up to |x| = 1 and |x| - 1/2 beyond

    Args:
        student: features f, [B, ...].
        teacher: features f, [B, ...].
        squared: whether d is the squared distance.

    Returns:
        The mean over the B * B pairs, a scalar. Two images with equal features are at d^2 = 1e-12 and get no gradient.

    Source: the paper's section 3.2.1; that the diagonal counts, and what equal features give, is its code's.
    """
    return F.smooth_l1_loss(_relative_distances(student, squared), _relative_distances(teacher, squared))


def _relative_distances(features: Tensor, squared: bool) -> Tensor:
    """Return psi, [B, B]; all 0 where there is one image only, which has no distance to divide by."""
    distances = _differences(features).square().sum(2).clamp(min=1e-12)
    distances = distances if squared else distances.sqrt()
    others = len(distances) * (len(distances) - 1)
    distances = distances * (1 - torch.eye(len(distances), device=features.device, dtype=features.dtype))
    # Off the diagonal every distance is positive by the clamp: their number needs no look at the data.
    return distances * others / distances.sum() if others else distances


def angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the angles at image i between the directions to images j and k.

        mean over all i, j, k of huber(cos_s - cos_t),  cos_ijk = e_ij . e_ik,  e_ij = (f_i - f_j) / ||f_i - f_j||_2

    Args:
        student: features f, [B, ...].
        teacher: features f, [B, ...].

    Returns:
        The mean over the B * B * B triples, a scalar. Where i = j, or two images have equal features, e_ij is 0.

    Source: the paper's section 3.2.2; that triples with equal indices count is its code's.
    """
    e_s, e_t = (unit(_differences(features), dim=2) for features in (student, teacher))
    return F.smooth_l1_loss(e_s @ e_s.mT, e_t @ e_t.mT)


def _differences(features: Tensor) -> Tensor:
    """Return f_i - f_j, [B, B, D]; not by products of features, which cancel where two images are near."""
    flat = features.flatten(1)
    return flat[:, None] - flat


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + distance * distances' difference + angle * angles' difference, summed over layers."""
    features = batch.student.features, batch.teacher.features
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "distance": Term(params.distance, over_layers(params.layers, distance, *features)),
        "angle": Term(params.angle, over_layers(params.layers, angle, *features)),
    }
