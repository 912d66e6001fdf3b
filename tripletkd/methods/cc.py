"""Correlation congruence. Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019.

In the form of the comparison of Tian et al., "Contrastive Representation Distillation", ICLR 2020: no kernel, and only
neighbours in the batch, which come in random order.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from tripletkd.methods.functional import Layer, NonNegative, PerLayer, cross_entropy, over_layers
from tripletkd.types import Batch, Outputs, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy
    correlation: NonNegative  # weight of the correlation's difference, summed over the layers
    layers: list[Layer]
    dimensions: Annotated[int, ">= 1"]  # of the space in which student and teacher are compared


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over i < B of sum_c |d_ic| |d_(i+1)c|, d = s - t; 0 for a single image, which has no neighbour.

    student, teacher: embeddings [B, dimensions]. Source: the comparison's public code.
    """
    difference = (student - teacher).abs()
    products = (difference[:-1] * difference[1:]).sum(1)
    return products.sum() / max(products.numel(), 1)


def layers(student: Outputs, teacher: Outputs, params: Params) -> nn.Module:
    """A linear embedding for each layer of either network: the teacher's is trained as well."""

    def embeddings(network: Outputs) -> nn.Module:
        inputs = {name: network.features[name][0].numel() for name in params.layers}
        return PerLayer(
            {name: nn.Sequential(nn.Flatten(), nn.Linear(n, params.dimensions)) for name, n in inputs.items()}
        )

    return PerLayer({"student": embeddings(student), "teacher": embeddings(teacher)})


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y) + correlation * sum over layers of the correlation of neighbours' differences."""
    assert batch.teacher is not None and batch.layers is not None
    embedded = batch.layers({"student": batch.student.features, "teacher": batch.teacher.features})
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "correlation": Term(
            params.correlation, over_layers(params.layers, correlation, embedded["student"], embedded["teacher"])
        ),
    }
