"""Streams of random numbers: which seed PyTorch's generator gets for which purpose.

Order, negatives and augmentation are drawn by NumPy from (seed, epoch, stream), see data/batches.py; initial weights by
PyTorch, whose generator on a CPU keeps 32 bits of its seed.
"""

import hashlib
import random
from collections.abc import Iterable

from tripletkd.errors import UserError

SEEDS = 2**32  # how many PyTorch's generator tells apart
PURPOSES = ("network", "adapters")


def torch_seed(seed: int, purpose: str) -> int:
    """Derive the seed of PyTorch's generator for one purpose of a run's seed.

    A network's stream is the seed's own; every other is hashed from seed and purpose.
    """
    if purpose == "network":
        return seed
    return int.from_bytes(hashlib.sha256(f"{purpose} of seed {seed}".encode()).digest()[:4], "big")


def global_states() -> dict[str, str]:
    """Hash the states of the generators that no seed of a run sets: Python's, NumPy's and PyTorch's own."""
    import numpy as np
    import torch

    states = {"random": repr(random.getstate()).encode(), "numpy.random": repr(np.random.get_state()).encode()}
    states["torch"] = torch.get_rng_state().numpy().tobytes()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["torch.cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return {name: hashlib.sha256(state).hexdigest() for name, state in states.items()}


def check_distinct(seeds: Iterable[int], key: str) -> None:
    """Refuse seeds of which two streams would hold the same numbers.

    Args:
        seeds: of one suite, its teacher's among them.
        key: of params.yaml, for the message.

    Raises:
        UserError: if a seed is too large, or two streams are one.
    """
    taken: dict[int, str] = {}
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise UserError(f"{key}: found {seed}, expected less than 2^32: PyTorch's generator tells no more apart")
        for purpose in PURPOSES:
            stream, name = torch_seed(seed, purpose), f"the {purpose} of seed {seed}"
            if stream in taken:
                raise UserError(f"{key}: {name} would begin as {taken[stream]}; expected another seed")
            taken[stream] = name
