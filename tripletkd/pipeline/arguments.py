"""The command line of a stage: overrides of params.yaml by Hydra's grammar, and a few options."""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

TYPICAL = {"suite": "digits", "method": "triplet", "ablation": "margin", "split": "test"}


@dataclass(frozen=True)
class Options:
    """What the command line says beside the parameters."""

    deadline: float | None = None  # of time.monotonic(), at which to stop at a checkpoint
    quiet: bool = False  # neither bars nor tables: warnings and errors only
    only_seeds: Sequence[int] = ()  # of the suite's; all where it is empty
    retrain: bool = False  # seeds that are finished too
    seed: int | None = None  # that is exported; the first that did not fail where it is None
    processes: int | None = None  # over which seeds are spread; as many as there are processors where it is None


def parse(name: str, description: str | None, needs: Sequence[str], trains: bool) -> tuple[list[str], Options]:
    """Parse the command line of a stage.

    Args:
        name: The stage's.
        description: For --help.
        needs: What of suite, method, ablation and split it takes.
        trains: Whether it takes the options of training.

    Returns:
        The overrides and the options.
    """
    program = f"python -m stages.{name}"
    example = " ".join([program, *(f"{need}={TYPICAL[need]}" for need in needs)])
    parser = argparse.ArgumentParser(prog=program, description=description, epilog=f"for example: {example}")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="suite=NAME, method=NAME, split=test or validation, and any key of params.yaml",
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only; as TRIPLETKD_QUIET=1")
    if trains:
        parser.add_argument(
            "--max-minutes",
            type=_minutes,
            metavar="M",
            help="stop at a checkpoint after that time; the same command goes on from it",
        )
        parser.add_argument("--only-seeds", type=_seeds, metavar="N,N", default=[], help="train these seeds only")
        parser.add_argument("--retrain", action="store_true", help="train finished seeds anew")
        parser.add_argument("--processes", type=_processes, metavar="P", help="train so many seeds side by side")
    if name == "export":
        parser.add_argument("--seed", type=int, metavar="N", help="export this seed, not the first that did not fail")
    found = vars(parser.parse_intermixed_args())
    overrides, minutes = found.pop("overrides"), found.pop("max_minutes", None)
    found["quiet"] = found["quiet"] or os.environ.get("TRIPLETKD_QUIET", "") not in ("", "0")
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    return overrides, Options(deadline=deadline, **found)


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 <= minutes < float("inf"):
        raise ValueError(text)
    return minutes


def _seeds(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _processes(text: str) -> int:
    if (processes := int(text)) < 1:
        raise ValueError(text)
    return processes


_minutes.__name__ = "number of minutes"  # for argparse's messages
_seeds.__name__ = "list of seeds"
_processes.__name__ = "number of processes"
