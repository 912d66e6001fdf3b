"""Optimisers and learning-rate schedules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor


@dataclass
class Recipe:
    """SGD with momentum; the learning rate falls by `decay_factor` after each of `decay_epochs`."""

    epochs: Annotated[int, ">= 1"]
    batch_size: Annotated[int, ">= 1"]
    lr: Annotated[float, "> 0"]
    momentum: Annotated[float, ">= 0", "< 1"]
    weight_decay: Annotated[float, ">= 0"]
    decay_epochs: list[int]
    decay_factor: Annotated[float, "> 0", "<= 1"]

    def lr_at(self, epoch: int) -> float:
        """Of an epoch, counted from 1."""
        return self.lr * self.decay_factor ** sum(epoch > boundary for boundary in self.decay_epochs)


class SGD:
    """g = grad + weight_decay w;  v = momentum v + g, from v = 0;  w = w - lr v: as torch.optim.SGD.

    That one imports a compiler (2 s a process); here the learning rate is a tensor, and the state plain to see.
    """

    def __init__(self, params: Sequence[Tensor], recipe: Recipe) -> None:
        self.params = list(params)
        self.velocity = [torch.zeros_like(param.detach()) for param in params]
        self.lr = torch.tensor(recipe.lr, dtype=params[0].dtype, device=params[0].device)
        self.momentum, self.weight_decay = recipe.momentum, recipe.weight_decay

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor]) -> None:
        decayed = torch._foreach_add(list(grads), self.params, alpha=self.weight_decay)
        torch._foreach_mul_(self.velocity, self.momentum)
        torch._foreach_add_(self.velocity, decayed)
        torch._foreach_sub_(self.params, torch._foreach_mul(self.velocity, self.lr))
