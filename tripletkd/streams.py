"""Streams of random numbers: which seed PyTorch's generator gets for which purpose.

Order, negatives and augmentation are drawn by NumPy from (seed, epoch, stream), see data/batches.py; initial weights by
PyTorch, whose generator on a CPU keeps 32 bits of its seed.
"""

import hashlib
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
