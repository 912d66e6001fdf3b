"""Labels that are shares of classes: label smoothing, and two images made one by mixup or cutmix.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019. As in
torchvision, an image is mixed with the one before it in the batch's random order, and the whole batch in one way.
"""

import torch
from torch import Tensor

from tripletkd import methods
from tripletkd.data.batches import Drawing
from tripletkd.errors import UserError
from tripletkd.training.optim import Recipe


def check(name: str, params: methods.MethodParams, recipe: Recipe) -> None:
    """Refuse what makes shares of labels for a method that asks which class an image has.

    A mixture has no class, so no image can be drawn of another one; nor can its index say what is remembered of it.

    Raises:
        UserError: If the method draws negatives, or compares labels or images by their index.
    """
    method = methods.load(name)
    needs, by_class = methods.needs(method, params), methods.by_class(method, params)
    found = [key for key in ("mixup", "cutmix") if getattr(recipe, key)]
    draws = not needs.isdisjoint({"negative", "teacher_negative", "index"}) or hasattr(method, "draw")
    if found and (draws or by_class):
        reason = f"{name} asks for images of other classes, and a mixture of two has no class"
        raise UserError(f"recipe.{found[0]}: found {getattr(recipe, found[0])}; {reason}: expected 0")
    if recipe.label_smoothing and by_class:
        reason = f"{name} asks for the class of an image, and a smoothed label has shares of all"
        raise UserError(f"recipe.label_smoothing: found {recipe.label_smoothing}; {reason}: expected 0")


def draw(context: Drawing, recipe: Recipe) -> Tensor:
    """Draw how a batch is mixed: whether by a box, the share of each image itself, and the box's center, [4].

    The share is of the distribution Beta(alpha, alpha).
    """
    boxed = recipe.cutmix > 0 and (recipe.mixup == 0 or context.random.random() < 0.5)
    alpha = recipe.cutmix if boxed else recipe.mixup
    numbers = [float(boxed), context.random.beta(alpha, alpha), *context.random.random(2)]
    return torch.tensor(numbers, dtype=torch.float64)


def shares(labels: Tensor, classes: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Make shares of the classes [..., B, classes] of labels [..., B]: (1 - smoothing) its own, the rest for all alike.

    Source: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7.
    """
    own = labels[..., None] == torch.arange(classes, device=labels.device)
    return own.to(dtype) * (1 - smoothing) + smoothing / classes


def mixed(images: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it, m x_i + (1 - m) x_(i-1), and the labels by the mean of m.

    Mixup has one m for all pixels. In cutmix m is 0 in a box of (1 - share) of the area, as far as it is in the image.

    Args:
        images: [S, B, C, H, W].
        labels: shares of the classes, [S, B, classes].
        drawn: how the batch of each seed is mixed, as `draw` has it, [S, 4].

    Returns:
        The mixed images and labels, in the same shapes.
    """
    height, width = images.shape[-2:]
    boxed, share, row, column = drawn.to(images.dtype)[:, :, None].unbind(1)  # [S, 1] each
    half = 0.5 * (1 - share).sqrt()
    inside = _within(row, half, height)[:, :, None] & _within(column, half, width)[:, None]  # [S, H, W]
    m = torch.where(boxed[..., None] > 0, (~inside).to(images.dtype), share[..., None])
    own = m.mean((1, 2))[:, None, None]
    m = m[:, None, None]
    return m * images + (1 - m) * images.roll(1, 1), own * labels + (1 - own) * labels.roll(1, 1)


def _within(center: Tensor, half: Tensor, size: int) -> Tensor:
    """Mark the rows or columns of a box, [S, size]; center and half of its size, [S, 1], are shares of the image's."""
    at = torch.arange(size, device=center.device)
    middle, reach = (center * size).floor(), (half * size).floor()
    return (at >= middle - reach) & (at < middle + reach)
