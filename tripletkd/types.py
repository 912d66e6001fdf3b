"""What passes between networks, losses and the training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Outputs(NamedTuple):
    """What a network returns for a batch: logits [B, classes] and, by layer name, features [B, ...]."""

    logits: Tensor
    features: dict[str, Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Outputs":
        return Outputs(function(self.logits), {name: function(feature) for name, feature in self.features.items()})

    @staticmethod
    def stack(rows: Sequence["Outputs"]) -> "Outputs":
        """Of several seeds: a leading dimension for the seed."""
        return Outputs(
            torch.stack([r.logits for r in rows]),
            {name: torch.stack([r.features[name] for r in rows]) for name in rows[0].features},
        )


@dataclass(frozen=True)
class Batch:
    """One seed's batch as a loss sees it; what the method did not say that it needs is None."""

    labels: Tensor  # [B], int64
    student: Outputs  # s(x)
    teacher: Outputs | None = None  # t(x): eval mode, no gradient
    negative: Outputs | None = None  # s(x'): for each x an image of another class
    teacher_negative: Outputs | None = None  # t(x')
    epoch: Tensor | float = 1.0  # 1 in the first epoch, for weights that warm up
    layers: Callable[..., Any] | None = None  # what the method's `layers` made, with this seed's weights


class Term(NamedTuple):
    """One summand of a loss: weight * value, value a scalar averaged over the batch."""

    weight: float | Tensor
    value: Tensor


def total(terms: dict[str, Term]) -> Tensor:
    """The loss: sum over terms of weight * value."""
    return sum(
        (term.weight * term.value for term in terms.values()), start=next(iter(terms.values())).value.new_zeros(())
    )
