"""What the methods share: the outputs they see, the terms they return, the formulas that stand in several papers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Positive = Annotated[float, "> 0"]
NonNegative = Annotated[float, ">= 0"]


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
    """One seed's batch as a loss sees it; what the method did not ask for in NEEDS is None."""

    labels: Tensor  # [B], int64
    student: Outputs  # s(x)
    teacher: Outputs | None = None  # t(x): eval mode, no gradient
    negative: Outputs | None = None  # s(x'): for each x an image of another class
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


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * mean_i sum_c p_ic (log p_ic - log q_ic) with p = softmax(teacher / T), q = softmax(student / T).

    student, teacher: logits [B, classes]. The factor T^2 keeps the gradient's size independent of T.
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def triplet_margin(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """mean_i max(0, ||a_i - p_i + e||_2 - ||a_i - n_i + e||_2 + margin), e = 1e-6 added to every element.

    anchor: teacher logits t(x); positive: student logits s(x); negative: student logits s(x'); raw, [B, classes].
    Source: Oki et al., "Triplet Loss for Knowledge Distillation", IJCNN 2020. The authors' code calls PyTorch's
    triplet_margin_loss, which this equals; that one has no batching rule and would run seed by seed under vmap.
    """
    near = torch.linalg.vector_norm(anchor - positive + 1e-6, dim=1)
    far = torch.linalg.vector_norm(anchor - negative + 1e-6, dim=1)
    return F.relu(near - far + margin).mean()
