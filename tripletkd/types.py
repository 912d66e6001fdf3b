"""The types that pass between networks, losses and the training loop."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tripletkd.errors import UserError

# What a row of the history, or of its copy in MLflow, holds beside the terms of the loss.
COLUMNS = ("seed", "epoch", "lr", "loss", "train_accuracy", "test_accuracy", "validation_accuracy")
RESERVED = (*COLUMNS, "train_loss", "test_loss", "anchor_positive", "anchor_negative", "violated_triplets")


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


class Absent:
    """Stands in a Batch for what was not given, and says so when a loss uses it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        """Refuse every use; what Python itself looks up is not there."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(f"Batch.{self._name}: not given, and the method uses it; name it in NEEDS, or give it to Batch")

    def __call__(self, *_: object) -> Any:
        """Refuse a call likewise."""
        return self.called


def absent(name: str) -> Any:
    """Return an Absent, typed so that losses need no assertions."""
    return Absent(name)


@dataclass(frozen=True)
class Batch:
    """Holds one seed's batch as a loss sees it; what the method did not ask for in its NEEDS is Absent."""

    labels: Tensor  # y, [B], int64; shares of the classes, [B, classes], where the recipe smooths or mixes labels
    student: Outputs  # s(x)
    teacher: Outputs = field(default=absent("teacher"))  # t(x): eval mode, no gradient
    negative: Outputs = field(default=absent("negative"))  # s(x'): for each x an image of another class
    teacher_negative: Outputs = field(default=absent("teacher_negative"))  # t(x')
    index: Tensor = field(default=absent("index"))  # where the images x stand in the training split, [B], int64
    drawn: Tensor = field(default=absent("drawn"))  # what the method's own `draw` drew for the batch, [B, ...]
    epoch: Tensor | float = 1.0  # 1 in the first epoch, for weights that warm up
    adapters: Callable[..., Any] = field(default=absent("adapters"))  # calls the module of `adapters`, this seed's


class Term(NamedTuple):
    """Holds one summand of a loss, weight * value; the value is a scalar, averaged over the batch."""

    weight: float | Tensor
    value: Tensor


def total(terms: dict[str, Term], method: str = "the method") -> Tensor:
    """Sum weight * value over the terms of a loss.

    Args:
        terms: the terms by name, at least one.
        method: whose terms they are, for the message.

    Returns:
        The loss, a scalar.

    Raises:
        UserError: if a term has the name of another column of the history, or one that MLflow does not take.
    """
    for name in terms:
        if name in RESERVED or not re.fullmatch(r"[A-Za-z][\w.-]{0,99}", str(name), re.ASCII):
            raise UserError(
                f"{method}: found a term called {name!r}, expected letters, digits, '_', '-' and '.', first a letter, "
                f"and none of {', '.join(RESERVED)}; rename it in what loss() returns"
            )
    return sum(
        (term.weight * term.value for term in terms.values()), start=next(iter(terms.values())).value.new_zeros(())
    )
