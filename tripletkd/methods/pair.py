"""The paper's pairs: a contrastive loss, as of siamese networks, between the teacher's and the student's outputs.

Oki et al., IJCNN 2020, name pairs and triplets; their public code has the triplets only. The loss is that of Hadsell,
Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR 2006, without its factor 1/2.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import NonNegative, cross_entropy
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "negative"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and sets the margin of the dissimilar pairs."""

    ce: NonNegative  # weight of the cross-entropy
    pair: NonNegative  # weight of the contrastive loss
    margin: NonNegative  # in units of the logits


def contrastive(first: Tensor, second: Tensor, similar: Tensor, margin: float) -> Tensor:
    """Compute the contrastive loss, which draws similar pairs together and pushes dissimilar ones apart.

        mean_i [ y_i d_i^2 + (1 - y_i) max(0, margin - d_i)^2 ],  d_i = ||first_i - second_i||_2,  y_i = similar_i

    Args:
        first: one output of each pair, [B, classes].
        second: the other output of each pair, [B, classes].
        similar: [B], 1 for a similar pair and 0 for a dissimilar one.
        margin: the distance from which on a dissimilar pair costs nothing, in units of the outputs.

    Returns:
        The mean over the pairs, a scalar. Where d_i = 0 the gradient of the second summand is taken as 0.

    Source: Hadsell, Chopra, LeCun, CVPR 2006, without its factor 1/2.
    """
    distance = torch.linalg.vector_norm(first - second, dim=1)
    return torch.mean(similar * distance**2 + (1 - similar) * F.relu(margin - distance) ** 2)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + pair * contrastive, over t(x), s(x) as similar and t(x), s(x') as dissimilar pairs."""
    teacher = batch.teacher.logits
    similar = torch.cat([torch.ones_like(teacher[:, 0]), torch.zeros_like(teacher[:, 0])])
    pairs = torch.cat([teacher, teacher]), torch.cat([batch.student.logits, batch.negative.logits])
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "pair": Term(params.pair, contrastive(*pairs, similar, params.margin)),
    }
