"""The types that pass between networks, losses and the training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """Holds what a network returns for a batch of images.

    Attributes:
        logits: [B, classes].
        features: the features that methods may compare, [B, ...] each, by the name of their layer.
    """

    logits: Tensor
    features: dict[str, Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Outputs":
        """Apply a function to the logits and to every feature."""
        return Outputs(function(self.logits), {name: function(feature) for name, feature in self.features.items()})

    @staticmethod
    def stack(outputs: Sequence["Outputs"]) -> "Outputs":
        """Stack the outputs of several seeds along a new first dimension."""
        return Outputs(
            torch.stack([o.logits for o in outputs]),
            {name: torch.stack([o.features[name] for o in outputs]) for name in outputs[0].features},
        )


@dataclass(frozen=True)
class Batch:
    """Holds one seed's batch as a loss sees it; what the method did not ask for in its NEEDS is None."""

    labels: Tensor  # y, [B], int64
    student: Outputs  # s(x)
    teacher: Outputs | None = None  # t(x): eval mode, no gradient
    negative: Outputs | None = None  # s(x'): for each x an image of another class
    teacher_negative: Outputs | None = None  # t(x')
    index: Tensor | None = None  # where the images x stand in the training split, [B], int64
    contrast: Tensor | None = None  # how often each training image is drawn to contrast with each x, [B, images], int16
    epoch: Tensor | float = 1.0  # 1 in the first epoch, for weights that warm up
    adapters: Callable[..., Any] | None = None  # calls the module that the method's `adapters` made, of this seed


class Term(NamedTuple):
    """Holds one summand of a loss, weight * value; the value is a scalar, averaged over the batch."""

    weight: float | Tensor
    value: Tensor


def total(terms: dict[str, Term]) -> Tensor:
    """Sum weight * value over the terms of a loss.

    Args:
        terms: the terms by name, at least one.

    Returns:
        The loss, a scalar.
    """
    return sum(
        (term.weight * term.value for term in terms.values()), start=next(iter(terms.values())).value.new_zeros(())
    )
