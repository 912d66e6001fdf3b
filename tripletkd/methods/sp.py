"""Similarity-preserving distillation: images that are alike for the teacher should be alike for the student.

Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import Layers, NonNegative, cross_entropy, over_layers, unit
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and names the layers whose features are compared."""

    ce: NonNegative  # weight of the cross-entropy
    similarity: NonNegative  # weight of the difference of similarities, summed over the layers; the paper's gamma
    layers: Layers


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the similarity matrices of the batch.

        ||G_s - G_t||_F^2 / B^2,  row i of G is g / ||g||_2 with g_j = f_i . f_j

    Args:
        student: features, [B, ...]; those of image i as one vector are f_i.
        teacher: features, [B, ...].

    Returns:
        The mean over the B * B elements, a scalar.

    Source: the paper's section 3.
    """
    g_s, g_t = (unit(f @ f.mT, dim=1) for f in (student.flatten(1), teacher.flatten(1)))
    return F.mse_loss(g_s, g_t)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + similarity * sum over layers of the difference of the images' similarities."""
    features = batch.student.features, batch.teacher.features
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "similarity": Term(params.similarity, over_layers(params.layers, similarity, *features)),
    }
