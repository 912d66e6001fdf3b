"""What the tests share: the reference values' number generator, and where true data may lie."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

torch.set_num_threads(1)  # tests run side by side: threads that wait for each other take three times as long
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # true CIFAR images, where a machine has them
GOLDEN = [
    Path(__file__).parent / "golden",
    *filter(None, [Path(p) if (p := os.environ.get("TRIPLETKD_GOLDEN")) else None]),
]


def committed(name: str) -> str:
    """The text of a file in HEAD: in the working tree an experiment may be applied."""
    words = ["git", "show", f"HEAD:{name}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


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


# --- docs/reliability.md, written by `make reliability` --------------------------------------------------------------


@dataclass
class Fault:
    """A line of the table."""

    tried: int = 0
    survived: int = 0
    seen: str = ""


FAULTS: dict[str, Fault] = {}
HEAD = """# What a run survives

Written by `make reliability` in one run on {date}, commit {commit}, Python {python}: {tried} trials, {lost} lost.
Not every trial is a fault: odd settings that are valid must be accepted, and count too.

A fault is survived if nothing that was finished is lost or half-written, what is wrong is named, and going on ends with
the bytes of a run that was never disturbed.

| fault | times tried | survived | what the user saw |
| --- | ---: | ---: | --- |
"""


@contextmanager
def trial(name: str) -> Iterator[Fault]:
    """One attempt; survived if the block ends. The block may set what the user sees."""
    fault = FAULTS.setdefault(name, Fault())
    fault.tried += 1
    yield fault
    fault.survived += 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, help="write the table of faults there")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what a process of pytest-xdist has tried."""
    for name, told in getattr(node, "workeroutput", {}).get("faults", {}).items():
        fault = FAULTS.setdefault(name, Fault())
        fault.tried, fault.survived = fault.tried + told["tried"], fault.survived + told["survived"]
        fault.seen = told["seen"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = {name: asdict(fault) for name, fault in FAULTS.items()}
    elif path := session.config.getoption("--reliability"):
        lines = [
            f"| {name} | {fault.tried} | {fault.survived} | {fault.seen.replace('|', '/')} |"
            for name, fault in sorted(FAULTS.items())
        ]
        git = ["git", "describe", "--always", "--dirty"]
        head = HEAD.format(
            date=datetime.now(UTC).date(),
            commit=subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip(),
            python=platform.python_version(),
            tried=sum(fault.tried for fault in FAULTS.values()),
            lost=sum(fault.tried - fault.survived for fault in FAULTS.values()),
        )
        path.write_text(head + "\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def cifar() -> Path:
    """The folder with the lossless sheets of true CIFAR images and their unpacker."""
    if not (SHARED / "data" / "unpack.py").exists():
        pytest.skip("true CIFAR images (../shared/data) are not on this machine")
    return SHARED / "data"
