"""What the stages share: the command line, where things are, and one message for a person when something is wrong.

    python -m stages.distill suite=digits method=triplet [key=value ...] [--max-minutes M]

Where things are is said once, in dvc.yaml under `vars: paths`; the stages read it there, so that they run without DVC.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tripletkd.errors import UserError
from tripletkd.tracking import mlflow as tracking

CODE = ["stages", "tripletkd", "dvc.yaml", "params.yaml", "pyproject.toml", "uv.lock"]  # what a run's numbers depend on


@dataclass
class Stage:
    """A stage's parameters, places and clock."""

    config: Any
    paths: dict[str, Path]
    deadline: float | None = None  # of time.monotonic(), at which to stop at a checkpoint
    quiet: bool = False  # neither bars nor tables: warnings and errors only
    logger: Any = None  # a tracking.Logger, for one call
    started: float = field(default_factory=time.time)

    @property
    def suite(self) -> Any:
        return self.config.suites[self.config.suite]

    def place(self, kind: str, *inner: str) -> Path:
        """For example place("runs", "test", "triplet"): runs/<suite>/test/triplet."""
        return self.paths[kind].joinpath(self.config.suite, *inner)

    def say(self, text: str) -> None:
        """For whoever looks on."""
        if not self.quiet:
            print(text, flush=True)

    def measured(self, name: str, split: str | None = None) -> Any:
        """What was measured of a method, the teacher or "ablations/<name>"; UserError if it was not."""
        path = self.place("results", "measured", split or self.config.split, f"{name}.json")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for block in found if isinstance(found, list) else [found]:
                cell = block["cell"]
                if block["suite"] != self.config.suite or name not in (cell, cell.rpartition("/")[0]):
                    raise UserError(f"{path}: measurements of {block['suite']}/{cell}; run its stage again")
                if not block["seeds"] and not block["failed"]:
                    raise UserError(f"{path}: measurements of no seed; run its stage again")
                for seed in block["seeds"]:
                    if len(bytes.fromhex(seed["test_correct"])) != -(-block["test_images"] // 8):  # eight to a byte
                        raise ValueError(f"test_correct is not of {block['test_images']} images")
        except FileNotFoundError:
            stage = {"teacher": "train_teacher"}.get(name, "ablate" if name.startswith("ablations/") else "evaluate")
            raise UserError(
                f"{path}: not there; run `dvc repro` with {self.config.suite} in run.suites, or stages.{stage}, first"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not measurements ({error!r}); run the stage that writes it again") from None
        return found

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
    """Of the checkout, "-dirty" after it where CODE was changed; None in a plain copy, or without git.

    dvc.lock and results/ do not count: DVC itself changes them before a stage runs.
    """

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        # No word comes from outside, and git is the one on the PATH.
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False)  # nosec B603 B607  # noqa: S603

    with suppress(OSError):
        head = git("rev-parse", "--verify", "--quiet", "HEAD").stdout.strip()
        return head + ("-dirty" if git("diff", "--quiet", "HEAD", "--", *CODE).returncode else "") if head else None
    return None


def tracking_root() -> Path:
    """Where the default MLflow store is: the main workspace, also for DVC's queued and temporary experiments."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """UserError if another process is in such a block with this path.

    The kernel frees the lock when its holder dies, however that happens. Where no file can be written, or the file
    system knows no locks, nobody is refused.
    """
    descriptor = None
    with suppress(OSError):
        descriptor = _lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _lock(path: Path) -> int:
    """A descriptor of the file, which is locked until it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                with suppress(OSError):  # for the message below only
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode()
            os.close(descriptor)
            who = f"process {holder}" if holder else "another process"
            raise UserError(
                f"{path}: {who} runs this stage here already; wait until it ends, or stop it, and run the same command "
                "again"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed it meanwhile


def run(
    main: Callable[[Stage], None], needs: tuple[str, ...] = ("suite",), logs: bool = True, teacher: bool = False
) -> None:
    """Parse the command line, check params.yaml, run `main`; a UserError becomes one message and exit code 1.

    needs: what of suite, method, ablation and split tells apart runs of this stage that may go on side by side. logs:
    whether the stage uses its logger, whose process imports MLflow while this one imports PyTorch: what takes long to
    import, a stage imports in `main`. teacher: whether it takes method=teacher.
    """
    program = f"python -m stages.{Path(sys.argv[0]).stem}"
    typical = {"suite": "digits", "method": "triplet", "ablation": "margin", "split": "test"}
    parser = argparse.ArgumentParser(
        prog=program,
        description=sys.modules[main.__module__].__doc__,
        epilog="for example: " + " ".join([program, *(f"{need}={typical[need]}" for need in needs)]),
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="suite=NAME, method=NAME, split=test or validation, and any key of params.yaml",
    )
    parser.add_argument(
        "--max-minutes",
        type=_minutes,
        metavar="M",
        help="stop at a checkpoint after that time; the same command goes on from it",
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors only; as TRIPLETKD_QUIET=1")
    arguments = parser.parse_intermixed_args()  # options may stand between overrides
    try:
        with tracking.Logger(tracking_root()) if logs else nullcontext() as logger:
            from tripletkd.config import load as config

            settings = config.load(Path.cwd(), arguments.overrides, teacher)
            for need in needs:
                if getattr(settings, need) is None:
                    names = ", ".join(getattr(settings, need + "s"))
                    raise UserError(f"{need}: not given; expected {need}=NAME with one of {names}")
            minutes = arguments.max_minutes
            deadline = None if minutes is None else time.monotonic() + 60 * minutes
            quiet = arguments.quiet or bool(os.environ.get("TRIPLETKD_QUIET"))
            words = [parser.prog.rpartition(".")[2], *(getattr(settings, need) for need in needs)]
            with exclusive(Path(".".join(["", *words, "lock"]))) if needs else nullcontext():
                main(Stage(settings, _paths(Path.cwd()), deadline, quiet, logger))
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # no room, no rights: what stood there before is whole, see provenance.whole
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}; fix that and run the same command again", file=sys.stderr)
        sys.exit(1)
    except (RuntimeError, MemoryError) as error:
        if not (help_text := _on_device(error)):
            raise
        print(f"error: {help_text}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: nothing half-written is left; the same command starts this stage again", file=sys.stderr)
        sys.exit(130)


def _on_device(error: RuntimeError | MemoryError) -> str | None:
    """What a person can do about errors of PyTorch and of memory; None for those that are ours."""
    text = (str(error).splitlines() or ["out of memory"])[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"{text}; take fewer run.seeds, a smaller recipe.batch_size, or run.folding=never"
    if "deterministic implementation" in text:
        return f"run.deterministic: {text}; expected false for this network"
    return None


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 <= minutes < float("inf"):
        raise ValueError(text)
    return minutes


_minutes.__name__ = "number of minutes"  # for argparse's message


def _paths(root: Path) -> dict[str, Path]:
    from omegaconf import OmegaConf

    return {kind: Path(path) for kind, path in OmegaConf.load(root / "dvc.yaml").vars[0].paths.items()}
