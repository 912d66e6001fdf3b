"""Correlation congruence: the student errs as little as possible where neighbours in the batch err alike.

Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, in the form of the comparison of Tian et
al., "Contrastive Representation Distillation", ICLR 2020: no kernel, and only neighbours in the batch, which come in
random order.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from tripletkd.methods.functional import Layers, NonNegative, PerLayer, cross_entropy, over_layers
from tripletkd.types import Batch, Outputs, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms, names the layers that are compared, and says in how many dimensions."""

    ce: NonNegative  # weight of the cross-entropy
    correlation: NonNegative  # weight of the correlation of differences, summed over the layers
    layers: Layers
    dimensions: Annotated[int, Ge(1)]  # of the embeddings in which student and teacher are compared


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Correlate the differences between student and teacher of images that follow each other in the batch.

        mean over i < B of sum_c |d_ic| |d_(i+1)c|,  d = s - t

    Args:
        student: embeddings s, [B, dimensions].
        teacher: embeddings t, [B, dimensions].

    Returns:
        The mean over the B - 1 pairs of neighbours, a scalar; 0 for a single image, which has no neighbour.

    Source: the comparison's public code.
    """
    difference = (student - teacher).abs()
    products = (difference[:-1] * difference[1:]).sum(1)
    return products.sum() / max(products.numel(), 1)


def adapters(student: Outputs, teacher: Outputs, params: Params) -> nn.Module:
    """Build a linear embedding [B, dimensions] of each layer of either network; the teacher's are trained as well."""

    def embedding(features: Tensor) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(features[0].numel(), params.dimensions))

    def embeddings(network: Outputs) -> nn.Module:
        return PerLayer({name: embedding(network.features[name]) for name in params.layers})

    return PerLayer({"student": embeddings(student), "teacher": embeddings(teacher)})


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + correlation * sum over layers of the correlation of neighbours' differences."""
    embedded = batch.adapters({"student": batch.student.features, "teacher": batch.teacher.features})
    by_layer = embedded["student"], embedded["teacher"]
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "correlation": Term(params.correlation, over_layers(params.layers, correlation, *by_layer)),
    }
