"""Variational information distillation: the student's map should tell as much as possible about the teacher's.

Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from tripletkd.methods.functional import Maps, NonNegative, PerLayer, channels, cross_entropy, over_layers, same_sizes
from tripletkd.types import Batch, Outputs, Term

NEEDS = frozenset({"teacher", "features"})
EPS = 1e-5  # the least variance


@dataclass(frozen=True)
class Params:
    """Weighs the two terms, names the layers whose maps are compared, and sets the first variance."""

    ce: NonNegative  # weight of the cross-entropy
    information: NonNegative  # weight of the information, summed over the layers
    layers: Maps
    variance: Annotated[float, Gt(EPS)]  # of every channel, before training


def information(gaussian: tuple[Tensor, Tensor], teacher: Tensor, eps: float = EPS) -> Tensor:
    """Compute the negative log-likelihood, but for a constant, of the teacher's map under the student's Gaussian.

        mean over all elements of ((t - mean)^2 / v_c + log v_c) / 2,  v = log(1 + exp(log_scale)) + eps

    It bounds how much information the two maps share.

    Args:
        gaussian: mean, [B, C, H, W], and log_scale, [C].
        teacher: the teacher's feature map t, [B, C, H, W].
        eps: the least variance.

    Returns:
        The mean over all elements, a scalar.

    Source: the paper's section 2.
    """
    mean, log_scale = gaussian
    # From the default threshold of 20 on softplus is cut to its asymptote, 2e-9 off.
    variance = F.softplus(log_scale, threshold=50)[:, None, None] + eps
    return 0.5 * torch.mean((mean - teacher) ** 2 / variance + torch.log(variance))


def initial_log_scale(variance: float, eps: float = EPS) -> float:
    """Return the log_scale for which v in `information` is the given variance."""
    return variance - eps + math.log(-math.expm1(eps - variance))


class Gaussian(nn.Module):
    """Predicts the teacher's map from the student's: a mean at each place, and a log-scale for each channel.

    Args:
        student: the number of the student's channels.
        teacher: the number of the teacher's channels.
        variance: the variance of every channel before training.
    """

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        widths = [(student, teacher), (teacher, teacher), (teacher, teacher)]
        first, second, third = (nn.Conv2d(*width, kernel_size=1, bias=False) for width in widths)
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.log_scale = nn.Parameter(torch.full((teacher,), initial_log_scale(variance)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, student's channels, H, W] to a mean [B, teacher's channels, H, W] and a log-scale [channels]."""
        return self.mean(x), self.log_scale


def adapters(student: Outputs, teacher: Outputs, params: Params) -> nn.Module:
    """Build a Gaussian for each layer, from the student's number of channels to the teacher's."""
    return PerLayer({name: Gaussian(*channels(student, teacher, name), params.variance) for name in params.layers})


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + information * sum over layers of -log N(teacher's map; student's Gaussian)."""
    student, teacher = same_sizes(batch.student, batch.teacher, params.layers)
    gaussians = batch.adapters(student)
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "information": Term(params.information, over_layers(params.layers, information, gaussians, teacher)),
    }
