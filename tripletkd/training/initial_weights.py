"""Start every seed of a run from weights that somebody else trained."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tripletkd.training.trainer import Trainer


def start_from(trainer: Trainer, weights: Mapping[str, Tensor]) -> None:
    """Put weights in the place of those that each seed drew.

    Args:
        trainer: In its initial state.
        weights: By the names of the network; what is not there, such as a new last layer, stays as it was drawn.
    """
    state = trainer.students.params | trainer.students.buffers
    with torch.no_grad():
        for name, tensor in weights.items():
            state[name].copy_(tensor)  # [...] to [S, ...]
