"""Variational information distillation. Ahn et al., "Variational Information Distillation for Knowledge Transfer",
CVPR 2019, arXiv 1904.05835.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tripletkd.methods.functional import Map, NonNegative, PerLayer, cross_entropy, over_layers, same_sizes
from tripletkd.types import Batch, Outputs, Term

NEEDS = frozenset({"teacher", "features"})
EPS = 1e-5  # the least variance


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy
    information: NonNegative  # weight of the information, summed over the layers
    layers: list[Map]
    variance: Annotated[float, f"> {EPS}"]  # of every channel, before training


def information(gaussian: tuple[Tensor, Tensor], teacher: Tensor, eps: float = EPS) -> Tensor:
    """mean over all elements of ((t - mean)^2 / v_c + log v_c) / 2, v = log(1 + exp(log_scale)) + eps.

    The negative log-likelihood, but for a constant, of the teacher's features under a Gaussian that the student names:
    a bound on how much information they share. gaussian: mean [B, C, H, W] and log_scale [C]; teacher: [B, C, H, W].
    Source: the paper's section 2.
    """
    mean, log_scale = gaussian
    # From the default threshold of 20 on softplus is cut to its asymptote, 2e-9 off.
    variance = F.softplus(log_scale, threshold=50)[:, None, None] + eps
    return 0.5 * torch.mean((mean - teacher) ** 2 / variance + torch.log(variance))


def initial_log_scale(variance: float, eps: float = EPS) -> float:
    """The log_scale for which v in `information` is `variance`."""
    return variance - eps + math.log(-math.expm1(eps - variance))


class Gaussian(nn.Module):
    """What the student's map says of the teacher's: a mean at each place, and a log-scale for each channel."""

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        widths = [(student, teacher), (teacher, teacher), (teacher, teacher)]
        first, second, third = (nn.Conv2d(*width, kernel_size=1, bias=False) for width in widths)
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.log_scale = nn.Parameter(torch.full((teacher,), initial_log_scale(variance)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.log_scale


def layers(student: Outputs, teacher: Outputs, params: Params) -> nn.Module:
    """A Gaussian for each layer."""
    channels = {name: (student.features[name].shape[1], teacher.features[name].shape[1]) for name in params.layers}
    return PerLayer({name: Gaussian(*pair, params.variance) for name, pair in channels.items()})


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y) + information * sum over layers of -log N(teacher's map; mean and variance from student's)."""
    assert batch.teacher is not None and batch.layers is not None
    student, teacher = same_sizes(batch.student, batch.teacher, params.layers)
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "information": Term(
            params.information, over_layers(params.layers, information, batch.layers(student), teacher)
        ),
    }
