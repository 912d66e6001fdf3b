"""Optimizers, learning-rate schedules, and the recipe that names one of each.

A new optimizer is one frozen dataclass with `name`, `lr`, `init` and `update`, listed in OptimizerSettings; a new
schedule is one with `name`, `warmup_epochs`, `multiplier` and `check`, listed in ScheduleSettings. Their fields are
their keys in params.yaml, and `name` picks one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from tripletkd.errors import UserError

State = dict[str, list[Tensor]]  # what an optimizer remembers, by name: a tensor for each parameter, or one for all


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Set up stochastic gradient descent with momentum, as torch.optim.SGD computes it.

    g = grad + weight_decay w;  v = momentum v + g, from v = 0;  w = w - lr v.

    The weight decay of linear layers is weight_decay + linear_weight_decay.

    It is written by hand because the first torch.optim.SGD of a process takes 1.4 s to construct (it imports PyTorch's
    compiler, as long as importing torch itself), against 2 ms for this one (measured on an AMD EPYC, PyTorch 2.15).
    """

    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Gt(0)]
    momentum: Annotated[float, Ge(0), Lt(1)]
    weight_decay: Annotated[float, Ge(0)]
    linear_weight_decay: Annotated[float, Ge(0)] = 0.0

    def init(self, params: Sequence[Tensor]) -> State:
        """Return a velocity of zeros for each parameter."""
        return {"velocity": [torch.zeros_like(param.detach()) for param in params]}

    def update(self, params: list[Tensor], grads: list[Tensor], state: State, lr: Tensor) -> None:
        """Change parameters and state in place by one step."""
        decayed = torch._foreach_add(grads, params, alpha=self.weight_decay)
        torch._foreach_mul_(state["velocity"], self.momentum)
        torch._foreach_add_(state["velocity"], decayed)
        torch._foreach_sub_(params, torch._foreach_mul(state["velocity"], lr))


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Set up Adam with decoupled weight decay, as torch.optim.AdamW computes it.

    w = w - lr weight_decay w;  m = beta1 m + (1 - beta1) grad;  v = beta2 v + (1 - beta2) grad^2;
    w = w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) in step t = 1, 2, ...

    Source: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2.
    """

    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)]
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.999
    eps: Annotated[float, Gt(0)] = 1e-8

    def init(self, params: Sequence[Tensor]) -> State:
        """Return both averages, of zeros, for each parameter, and the number of steps, as a tensor: see Optimizer."""
        zeros = [[torch.zeros_like(param.detach()) for param in params] for _ in range(2)]
        steps = torch.zeros((), dtype=params[0].dtype, device=params[0].device)
        return {"average": zeros[0], "average_square": zeros[1], "steps": [steps]}

    def update(self, params: list[Tensor], grads: list[Tensor], state: State, lr: Tensor) -> None:
        """Change parameters and state in place by one step."""
        average, square, [steps] = state["average"], state["average_square"], state["steps"]
        steps += 1
        torch._foreach_mul_(params, 1 - lr * self.weight_decay)
        torch._foreach_lerp_(average, grads, 1 - self.beta1)
        torch._foreach_mul_(square, self.beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - self.beta2)
        denominator = torch._foreach_sqrt(torch._foreach_div(square, 1 - self.beta2**steps))
        torch._foreach_add_(denominator, self.eps)
        change = torch._foreach_div(torch._foreach_mul(average, lr / (1 - self.beta1**steps)), denominator)
        torch._foreach_sub_(params, change)


@dataclass(frozen=True, kw_only=True)
class MultiStep:
    """Multiply the learning rate by `decay_factor` after each of `decay_epochs`."""

    name: Literal["multistep"] = "multistep"
    decay_epochs: tuple[int, ...]
    decay_factor: Annotated[float, Gt(0), Le(1)]
    warmup_epochs: Annotated[int, Ge(0)] = 0

    def multiplier(self, epoch: int, _epochs: int) -> float:
        """Return what the optimizer's lr is multiplied by in an epoch, counted from 1, after the warm-up."""
        return self.decay_factor ** sum(epoch > boundary for boundary in self.decay_epochs)

    def check(self, epochs: int) -> None:
        """Raise UserError if an entry of decay_epochs is none of the epochs, or not later than the one before."""
        found = list(self.decay_epochs)
        if found != sorted(set(found)) or not all(1 <= boundary <= epochs for boundary in found):
            raise UserError(f"decay_epochs: found {found}, expected epochs from 1 to {epochs}, each after the last")


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Let the learning rate fall along half a cosine, from the first epoch after the warm-up; 0 would come next."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: Annotated[int, Ge(0)] = 0

    def multiplier(self, epoch: int, epochs: int) -> float:
        """Return what the optimizer's lr is multiplied by in an epoch, counted from 1, after the warm-up."""
        done = (epoch - 1 - self.warmup_epochs) / (epochs - self.warmup_epochs)
        return (1 + math.cos(math.pi * done)) / 2

    def check(self, _epochs: int) -> None:
        """Accept any number of epochs."""


class ByName:
    """Tell pydantic, which only tripletkd.config imports, that a block's `name` picks the dataclass of a union."""

    def __get_pydantic_core_schema__(self, source: object, handler: Any) -> Any:
        """Return pydantic's schema of the union `source`."""
        from pydantic import Discriminator

        return Discriminator("name").__get_pydantic_core_schema__(source, handler)


OptimizerSettings = Annotated[SGD | AdamW, ByName()]
ScheduleSettings = Annotated[MultiStep | Cosine, ByName()]


@dataclass(frozen=True)
class Recipe:
    """Says how a network is trained."""

    epochs: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0  # the share of a label that all classes divide among them
    mixup: Annotated[float, Ge(0)] = 0.0  # alpha of the shares of two images, see training.mixup; 0: none
    cutmix: Annotated[float, Ge(0)] = 0.0

    @property
    def mixes(self) -> bool:
        """Tell whether images are mixed: with both keys, either for half of the batches."""
        return self.mixup > 0 or self.cutmix > 0

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1.

        In a warm-up of n epochs it grows in equal steps, and epoch n + 1 is the first with the optimizer's lr.
        """
        warmup = self.schedule.warmup_epochs
        if epoch <= warmup:
            return self.optimizer.lr * epoch / (warmup + 1)
        return self.optimizer.lr * self.schedule.multiplier(epoch, self.epochs)

    def check(self) -> None:
        """Raise UserError, which begins with the key, if the schedule does not fit the number of epochs."""
        try:
            if self.schedule.warmup_epochs >= self.epochs:
                found = self.schedule.warmup_epochs
                raise UserError(f"warmup_epochs: found {found}, expected fewer than the {self.epochs} epochs")
            self.schedule.check(self.epochs)
        except UserError as problem:
            raise UserError(f"schedule.{problem}") from None


class Optimizer:
    """Updates parameters in place; they may be stacked over seeds, for no rule here mixes a tensor's elements.

    Attributes:
        params: The tensors that are updated.
        lr: The learning rate, a 0-dimensional tensor to be filled at the beginning of an epoch: a CUDA graph holds
            every number of Python as it was when the graph was recorded, and reads tensors anew.
    """

    def __init__(self, settings: OptimizerSettings, params: Sequence[Tensor], linear: Sequence[Tensor] = ()) -> None:
        """Set up the state.

        Args:
            settings: Which rule, and its numbers.
            params: The tensors that are updated.
            linear: Those of them that belong to linear layers.
        """
        self.params = list(params)
        self._linear = [any(param is other for other in linear) for param in params]
        self.lr = torch.tensor(settings.lr, dtype=params[0].dtype, device=params[0].device)
        self._settings, self._state = settings, settings.init(params)

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor]) -> None:
        """Update the parameters by their gradients, which are in the same order."""
        grads, more = list(grads), getattr(self._settings, "linear_weight_decay", 0.0)
        if more:
            of_each = zip(grads, self.params, self._linear, strict=True)
            grads = [grad.add(param, alpha=more) if linear else grad for grad, param, linear in of_each]
        self._settings.update(self.params, grads, self._state, self.lr)

    def state(self) -> dict[str, Tensor]:
        """Return all that `step` changes beside the parameters, such as "velocity/0": the tensors, not copies."""
        return {f"{name}/{i}": tensor for name, tensors in self._state.items() for i, tensor in enumerate(tensors)}
