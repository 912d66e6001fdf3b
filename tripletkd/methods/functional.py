"""What the methods share: the outputs they see, the terms they return, the formulas that stand in several papers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tripletkd.types import Outputs

Positive = Annotated[float, "> 0"]
NonNegative = Annotated[float, ">= 0"]
Map = Annotated[str, "in stage1 stage2 stage3"]  # a layer whose features are [B, C, H, W]
Layer = Annotated[str, "in stage1 stage2 stage3 embedding"]


class PerLayer(nn.ModuleDict):
    """A module for each of several layers: from features by layer name to what the modules make of them, by name."""

    def forward(self, features: Mapping[str, Any]) -> dict[str, Any]:
        return {name: module(features[name]) for name, module in self.items()}


def over_layers(layers: Sequence[str], formula: Callable[..., Tensor], *features: Mapping[str, Any]) -> Tensor:
    """The sum over the named layers of the formula of each one's features."""
    return torch.stack([formula(*(by_name[name] for by_name in features)) for name in layers]).sum()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """mean_i -log softmax(logits_i)[labels_i]; logits [B, classes], labels [B].

    PyTorch's own is decomposed in Python under vmap: half a millisecond a step, and a package for algebra to import.
    The gradient of `gather` is, on a GPU, deterministic only by way of a sort.
    """
    own = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    return -torch.where(own, F.log_softmax(logits, dim=1), 0.0).sum(1).mean()


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_i sum_c p_ic (log p_ic - log q_ic) with p = softmax(teacher / T), q = softmax(student / T).

    student, teacher: logits [B, classes]. The factor T^2 keeps the gradient's size independent of T.
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2


def triplet_margin(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """mean_i max(0, ||a_i - p_i + e||_2 - ||a_i - n_i + e||_2 + margin), e = 1e-6 added to every element.

    anchor: teacher logits t(x); positive: student logits s(x); negative: student logits s(x'); raw, [B, classes].
    Source: Oki et al., "Triplet Loss for Knowledge Distillation", IJCNN 2020. The authors' code calls PyTorch's
    triplet_margin_loss, which this equals; that one has no batching rule and would run seed by seed under vmap.
    """
    near = torch.linalg.vector_norm(anchor - positive + 1e-6, dim=1)
    far = torch.linalg.vector_norm(anchor - negative + 1e-6, dim=1)
    return F.relu(near - far + margin).mean()


def unit(x: Tensor, dim: int) -> Tensor:
    """x / ||x||_2 along one dimension; a vector shorter than 1e-12 becomes zero and gets no gradient.

    F.normalize divides such a vector by 1e-12: the same value to rounding, but a gradient of the order of 1e12.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(norm > 1e-12, norm, torch.inf)


def same_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W], the larger one averaged down to the smaller one's height and width."""
    height, width = (min(sizes) for sizes in zip(first.shape[2:], second.shape[2:], strict=True))
    return _average(first, height, width), _average(second, height, width)


def _average(x: Tensor, height: int, width: int) -> Tensor:
    """F.adaptive_avg_pool2d as two matrix products: on CUDA the gradient of that one is not deterministic."""
    if x.shape[2:] == (height, width):
        return x
    return _windows(height, x.shape[2], x) @ x @ _windows(width, x.shape[3], x).mT


def _windows(rows: int, columns: int, like: Tensor) -> Tensor:
    """[rows, columns]: row i is the mean over i * columns / rows <= j < (i + 1) * columns / rows, rounded outwards."""
    i, j = torch.arange(rows, device=like.device)[:, None], torch.arange(columns, device=like.device)
    inside = (j >= i * columns // rows) & (j < -(-(i + 1) * columns // rows))
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


def same_sizes(
    student: Outputs, teacher: Outputs, layers: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The named layers' maps of student and teacher, each pair in the smaller one's height and width."""
    pairs = {name: same_size(student.features[name], teacher.features[name]) for name in layers}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
