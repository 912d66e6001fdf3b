"""What the stages share: the command line, where things are, and one message for a person when something is wrong.

    python -m stages.distill suite=digits method=triplet [key=value ...] [--max-minutes M]

Where things are is said once, in dvc.yaml under `vars: paths`; the stages read it there, so that they run without DVC.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tripletkd import Problem


@dataclass
class Stage:
    """A stage's parameters, places and clock."""

    config: Any
    paths: dict[str, Path]
    max_minutes: float | None
    started: float = field(default_factory=time.time)

    @property
    def suite(self) -> Any:
        return self.config.suites[self.config.suite]

    def place(self, kind: str, *inner: str) -> Path:
        """For example place("runs", "triplet"): runs/<suite>/triplet."""
        return self.paths[kind].joinpath(self.config.suite, *inner)

    def log(self, **figures: Any) -> dict[str, Any]:
        """What differs from run to run, for log.json and MLflow."""
        return {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 2),
            "commit": _commit(),
            "experiment": os.environ.get("DVC_EXP_NAME"),
            "baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
            "stage": os.environ.get("DVC_STAGE"),
            **figures,
        }


def _commit() -> str | None:
    """Of the checkout; None in a plain copy, or on a machine without git."""
    with suppress(OSError):
        git = subprocess.run(  # nosec B603 B607  # no word of it comes from outside, and git is the one on the PATH
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        return git.stdout.strip() or None
    return None


def tracking_root() -> Path:
    """Where the default MLflow store is: the main workspace, also for DVC's queued and temporary experiments."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def run(main: Callable[[Stage], None], needs: tuple[str, ...] = ("suite",)) -> None:
    """Parse the command line, check params.yaml, run `main`; a Problem becomes one message and exit code 1."""
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{Path(sys.argv[0]).stem}", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="suite=NAME, method=NAME, and any key of params.yaml"
    )
    parser.add_argument(
        "--max-minutes", type=_minutes, help="stop at a checkpoint after that time; the same command goes on from it"
    )
    arguments = parser.parse_args()
    try:
        from tripletkd import config

        settings = config.load(Path.cwd(), arguments.overrides)
        for need in needs:
            if getattr(settings, need) is None:
                raise Problem(
                    f"{need}: not given; expected {need}=NAME with one of {', '.join(getattr(settings, need + 's'))}"
                )
        main(Stage(settings, _paths(Path.cwd()), arguments.max_minutes))
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # no room, no rights: what stood there before is whole, see provenance.whole
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}; mend that and run the same command again", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: nothing half-written is left; the same command starts this stage again", file=sys.stderr)
        sys.exit(130)


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 <= minutes < float("inf"):
        raise ValueError(text)
    return minutes


_minutes.__name__ = "number of minutes"  # for argparse's message


def _paths(root: Path) -> dict[str, Path]:
    from omegaconf import OmegaConf

    return {kind: Path(path) for kind, path in OmegaConf.load(root / "dvc.yaml").vars[0].paths.items()}
