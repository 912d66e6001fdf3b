"""What the tests share: the reference values' number generator, and where true data may lie."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # true CIFAR images, where a machine has them
GOLDEN = [
    Path(__file__).parent / "golden",
    *filter(None, [Path(p) if (p := os.environ.get("TRIPLETKD_GOLDEN")) else None]),
]


def unit_hash(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    """Numbers in [-1, 1) by the formula in golden/losses.json: the same on every machine."""
    i = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    x = (i * 2654435761 + seed * 2246822519) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x ^= x >> np.uint64(shift)
        x = (x * factor) & 0xFFFFFFFF
    return ((x >> np.uint64(8)).astype(np.float64) / 2**23 - 1).reshape(shape)


def fill(shape: tuple[int, ...], seed: int, scale: float) -> torch.Tensor:
    """unit_hash times scale, rounded to float32, in float64."""
    return torch.from_numpy((unit_hash(shape, seed) * scale).astype(np.float32).astype(np.float64))


def golden(name: str) -> list[dict[str, Any]]:
    """The contents of all golden files that hold a `name` entry ("cases" or "runs")."""
    files = [path for folder in GOLDEN for path in sorted(folder.glob("*.json"))]
    return [content for path in files if name in (content := json.loads(path.read_text()))]


@pytest.fixture(scope="session")
def cifar() -> Path:
    """The folder with the lossless sheets of true CIFAR images and their unpacker."""
    if not (SHARED / "data" / "unpack.py").exists():
        pytest.skip("true CIFAR images (../shared/data) are not on this machine")
    return SHARED / "data"
