"""What several methods share: types of parameters, formulas, and operations on the features of several layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, MinLen, Predicate
from torch import Tensor, nn

from tripletkd.types import Outputs

T = TypeVar("T")
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Distinct = Annotated[list[T], Predicate(lambda items: all(items.count(item) == 1 for item in items))]
Map = Literal["stage1", "stage2", "stage3"]  # a layer whose features are feature maps, [B, C, H, W]
Layer = Literal["stage1", "stage2", "stage3", "embedding"]  # any layer whose features a network returns
Maps = Annotated[Distinct[Map], MinLen(1)]
Layers = Annotated[Distinct[Layer], MinLen(1)]


class PerLayer(nn.ModuleDict):
    """Applies to each layer's features a module of their own; modules, features and results go by the layer's name."""

    def forward(self, features: Mapping[str, object]) -> dict[str, Any]:
        """Return the result of each module for the features of its name."""
        return {name: module(features[name]) for name, module in self.items()}


def over_layers(layers: Sequence[str], formula: Callable[..., Tensor], *features: Mapping[str, object]) -> Tensor:
    """Sum a formula's values over layers.

    Args:
        layers: the layers' names.
        formula: takes one layer's features from each of `features` and returns a scalar.
        *features: mappings from layer names to features, the student's and the teacher's for example.

    Returns:
        The sum, a scalar.
    """
    return torch.stack([formula(*(by_name[name] for by_name in features)) for name in layers]).sum()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of predictions and labels.

        mean_i -log softmax(logits_i)[labels_i]

    PyTorch's own is decomposed in Python under vmap: half a millisecond a step, and a package for algebra to import.
    The gradient of `gather` is, on a GPU, deterministic only by way of a sort.

    Args:
        logits: [B, classes].
        labels: [B], int64; or shares of the classes, [B, classes], for -sum_c labels_ic log softmax(logits_i)_c.

    Returns:
        The mean over the batch, a scalar in nats.
    """
    if labels.dim() == 2:
        return -(labels * F.log_softmax(logits, dim=1)).sum(1).mean()
    own = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    return -torch.where(own, F.log_softmax(logits, dim=1), 0.0).sum(1).mean()


def z_score(logits: Tensor) -> Tensor:
    """Standardise the logits of each image: mean 0 and standard deviation 1 over the classes.

        (z - m) / (d + 1e-7),  m = mean_c z_c,  d^2 = sum_c (z_c - m)^2 / (classes - 1)

    Student and teacher then need not agree in the logits' size, only in how they relate to each other.

    Args:
        logits: z, [B, classes], of at least two classes.

    Returns:
        A tensor of the same shape.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427; d + 1e-7 as in
    its code.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    """Compute the divergence of the student's softened predictions from the teacher's.

        T^2 * mean_i sum_c p_ic (log p_ic - log q_ic),  p = softmax(teacher / T),  q = softmax(student / T)

    The factor T^2 keeps the size of the gradient independent of T.

    Args:
        student: logits, [B, classes].
        teacher: logits, [B, classes].
        temperature: T, by which the logits are divided.
        standardize: whether both are replaced by their `z_score` first.

    Returns:
        The mean over the batch, a scalar.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    if standardize:
        student, teacher = z_score(student), z_score(teacher)
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2


def unit(x: Tensor, dim: int) -> Tensor:
    """Scale vectors to length 1, x / ||x||_2; a vector shorter than 1e-12 becomes zero and gets no gradient.

    F.normalize divides such a vector by 1e-12: the same value to rounding, but a gradient of the order of 1e12.

    Args:
        x: a tensor of any shape.
        dim: the dimension along which its vectors lie.

    Returns:
        A tensor of the same shape.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(norm > 1e-12, norm, torch.inf)


def same_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two feature maps down to the smaller one's height and width.

    Args:
        first: [B, C, H, W].
        second: [B, C', H', W'].

    Returns:
        Both maps, [B, C, min(H, H'), min(W, W')] and [B, C', min(H, H'), min(W, W')].
    """
    height, width = (min(sizes) for sizes in zip(first.shape[2:], second.shape[2:], strict=True))
    return _average(first, height, width), _average(second, height, width)


def _average(x: Tensor, height: int, width: int) -> Tensor:
    """Compute F.adaptive_avg_pool2d as two matrix products: on CUDA its own gradient is not deterministic."""
    if x.shape[2:] == (height, width):
        return x
    return _windows(height, x.shape[2], x) @ x @ _windows(width, x.shape[3], x).mT


def _windows(rows: int, columns: int, like: Tensor) -> Tensor:
    """Build the matrix [rows, columns] by which adaptive average pooling multiplies one dimension.

    Row i averages over i * columns / rows <= j < (i + 1) * columns / rows, the bounds rounded outwards.
    """
    i, j = torch.arange(rows, device=like.device)[:, None], torch.arange(columns, device=like.device)
    inside = (j >= i * columns // rows) & (j < -(-(i + 1) * columns // rows))
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


def channels(student: Outputs, teacher: Outputs, layer: str) -> tuple[int, int]:
    """Return how many channels the map of a layer has in the student and in the teacher."""
    return student.features[layer].shape[1], teacher.features[layer].shape[1]


def same_sizes(
    student: Outputs, teacher: Outputs, layers: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Bring the feature maps of student and teacher to the same size, layer by layer.

    Args:
        student: outputs with the maps [B, C, H, W] of all these layers.
        teacher: the same of the teacher, with channels, heights and widths of its own.
        layers: the layers' names.

    Returns:
        The student's maps and the teacher's maps by layer name; of each pair the larger is averaged down.
    """
    pairs = {name: same_size(student.features[name], teacher.features[name]) for name in layers}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
