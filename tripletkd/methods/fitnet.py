"""Hints: the teacher's feature map is regressed from the student's.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550. The paper trains on the hint first and
on the labels afterwards. As in the comparison of Tian et al., "Contrastive Representation Distillation", ICLR 2020,
both are trained together here.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tripletkd.methods.functional import Maps, NonNegative, PerLayer, channels, cross_entropy, over_layers, same_sizes
from tripletkd.types import Batch, Outputs, Term

NEEDS = frozenset({"teacher", "features"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and names the layers whose maps are regressed."""

    ce: NonNegative  # weight of the cross-entropy
    hint: NonNegative  # weight of the regression, summed over the layers
    layers: Maps


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean over all elements of (s - t)^2.

    Args:
        student: the regressor's output s, [B, C, H, W].
        teacher: the teacher's feature map t, of the same shape.

    Returns:
        The mean, a scalar.

    Source: the paper's section 2.2, which writes the sum over elements times 1/2: another constant factor.
    """
    return F.mse_loss(student, teacher)


class Regressor(nn.Module):
    """Maps the student's channels to the teacher's: relu(batch norm(1x1 convolution)), as in the comparison's code.

    Where the maps differ in size, that code has a strided or an unpadded convolution; here the larger map is averaged
    down first. The regressor is only ever trained, so its batch norm keeps no statistics.

    Args:
        student: the number of the student's channels.
        teacher: the number of the teacher's channels.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(student, teacher, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(teacher, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, student's channels, H, W] to [B, teacher's channels, H, W]."""
        # Contiguous: of channels last, cuDNN's batch norm asks vmap what it cannot answer.
        return F.relu(self.bn(self.conv(x).contiguous()))


def adapters(student: Outputs, teacher: Outputs, params: Params) -> nn.Module:
    """Build a Regressor for each layer, from the student's number of channels to the teacher's."""
    return PerLayer({name: Regressor(*channels(student, teacher, name)) for name in params.layers})


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + hint * sum over layers of MSE(regressor(student's map), teacher's map)."""
    student, teacher = same_sizes(batch.student, batch.teacher, params.layers)
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "hint": Term(params.hint, over_layers(params.layers, hint, batch.adapters(student), teacher)),
    }
