"""What the stages share: the command line, where things are, and one message for a person when something is wrong.

    python -m stages.distill suite=digits method=triplet [key=value ...] [--max-minutes M]

Where things are, and what a stage depends on, is said once, in dvc.yaml; the stages read it there, so that they run
without DVC.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletkd.errors import Busy, UserError
from tripletkd.provenance import fingerprint, sha256
from tripletkd.tracking.logger import Logger

if TYPE_CHECKING:
    from tripletkd.config.load import Config
    from tripletkd.config.schema import SuiteConfig

ROOT = Path(__file__).parents[1]  # of the code, wherever the stage runs
CODE = ["stages", "tripletkd", "dvc.yaml", "params.yaml", "pyproject.toml", "uv.lock"]  # what a run's numbers depend on
# Of the code that dvc.yaml names, what computes weights and histories: a finished seed does not outlive its change.
COMPUTES = tuple(
    f"tripletkd/{name}" for name in ("types", "streams", "data", "models", "methods", "training", "evaluation/metrics")
)
KEEPS = ("tripletkd/training/checkpoint.py", "tripletkd/training/run_record.py")  # what was computed, as it is
LOCKS = Path(".locks")
EX_TEMPFAIL = 75  # of sysexits.h: later the same command does it: it stopped at a checkpoint, or another was at work


@dataclass(frozen=True)
class Options:
    """What the command line says beside the parameters."""

    overrides: Sequence[str] = ()
    deadline: float | None = None  # of time.monotonic(), at which to stop at a checkpoint
    quiet: bool = False  # neither bars nor tables: warnings and errors only
    only_seeds: Sequence[int] = ()  # of the suite's; all where it is empty
    retrain: bool = False  # seeds that are finished too
    processes: int | None = None  # over which seeds are spread; as many as there are processors where it is None
    worker: str | None = None  # one of those processes, and the run that it trains; its parent does the rest
    ask: bool = False  # before days of work


@dataclass(frozen=True)
class Stage:
    """A stage at work: its parameters, places, options and clock."""

    name: str
    config: "Config"
    options: Options = field(default_factory=Options)
    logger: Any = None  # a tracking.logger.Logger, for one call
    started: float = field(default_factory=time.time)

    @cached_property
    def suite(self) -> "SuiteConfig":
        """The suite that the stage is asked for, with nothing left to look up."""
        assert self.config.suite is not None
        return self.config.for_suite(self.config.suite)

    @cached_property
    def dependencies(self) -> dict[str, str]:
        """What the results depend on beside data: see `read_dependencies`. Of the time when it is first asked for."""
        return read_dependencies(self.name, self._items())

    @property
    def code(self) -> str:
        """Hash what computes weights and histories, of the code that the stage depends on."""
        return _computing(self.dependencies)

    def code_of(self, name: str, **of: str) -> str:
        """Hash the same of the stage of another name, and of the method or ablation that is given, as it is now."""
        items = self._items() | {f"item.{kind}": value for kind, value in of.items()}
        return _computing(read_dependencies(name, items))

    def _items(self) -> dict[str, str]:
        """What dvc.yaml's matrix calls `item`, and what it takes from params.yaml."""
        config = self.config
        named = {f"item.{kind}": getattr(config, kind) for kind in ("suite", "method", "ablation", "split")}
        return {name: value for name, value in named.items() if value is not None}

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Where each kind of file is, as dvc.yaml says."""
        return read_paths()

    def path(self, kind: str, *inner: str) -> Path:
        """Name a place: with "runs", "test", "triplet" it is runs/<suite>/test/triplet."""
        assert self.config.suite is not None
        return self.paths[kind].joinpath(self.config.suite, *inner)

    def named(self, name: str) -> "Stage":
        """Return the stage of another name with the same parameters; its dependencies are those of now."""
        return self if name == self.name else replace(self, name=name)

    def of_suite(self, name: str) -> "Stage":
        """Return the same stage for another suite."""
        return replace(self, config=replace(self.config, suite=name))

    def say(self, text: str) -> None:
        """Print for whoever looks on."""
        if not self.options.quiet:
            print(text, flush=True)

    def log(self, **figures: Any) -> dict[str, Any]:
        """Describe what differs from run to run, for logs and MLflow."""
        return {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 2),
            "commit": _commit(),
            "experiment": os.environ.get("DVC_EXP_NAME"),
            "baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
            "stage": os.environ.get("DVC_STAGE"),
            **figures,
        }


def _computing(dependencies: dict[str, str]) -> str:
    code = {name: sha for name, sha in dependencies.items() if name.startswith(COMPUTES) and name not in KEEPS}
    return fingerprint(code)


def read_paths() -> dict[str, Path]:
    """Read where each kind of file is, as dvc.yaml says."""
    return {kind: Path(path) for kind, path in read_yaml(Path("dvc.yaml"))["vars"][0]["paths"].items()}


def read_dependencies(stage: str, items: dict[str, str]) -> dict[str, str]:
    """Read what dvc.yaml says that a stage depends on: a hash for each file of code, the value for each parameter.

    Args:
        stage: its name in dvc.yaml; a stage that is not there depends on nothing.
        items: what stands for `${item.suite}` and the like.
    """
    block = read_yaml(Path("dvc.yaml"))["stages"].get(stage, {})
    params = read_yaml(Path("params.yaml"))
    found: dict[str, str] = {}
    for dependency in block.get("deps", []):
        name = _resolve(dependency, items)
        if name.startswith(("stages/", "tripletkd/")) or name == "uv.lock":
            found |= {file: sha256(ROOT / file) for file in _files(name)}
    for key in block.get("params", []):
        value: Any = params
        for part in _resolve(key, items).split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[_resolve(key, items)] = json.dumps(value, sort_keys=True)
    return found


def _resolve(text: str, items: dict[str, str]) -> str:
    for name, value in items.items():
        text = text.replace(f"${{{name}}}", value)
    return text


def _files(name: str) -> list[str]:
    """The file of that name, or the files in the folder of that name, from ROOT on; none where there is none."""
    path = ROOT / name
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    kept = [file for file in files if file.is_file() and "__pycache__" not in file.parts]
    return [file.relative_to(ROOT).as_posix() for file in kept]


def read_yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def refuse_changes(stage: Stage) -> None:
    """Compare what the stage depends on with what it was at the start.

    DVC would otherwise store the results under what stands there now.

    Raises:
        UserError: if a parameter or a file of code was changed meanwhile.
    """
    now, before = read_dependencies(stage.name, stage._items()), stage.dependencies
    changed = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    if not changed:
        return
    name = changed[0]
    values = f" from {before.get(name)} to {now.get(name)}" if not name.startswith(("stages/", "tripletkd/")) else ""
    others = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
    raise UserError(
        f"{name}: changed{values}{others} while the stage ran; its results are of what stood there at the start, and "
        "nothing is recorded of them as of what stands there now: run the same command again"
    )


def _commit() -> str | None:
    """Name the commit of the checkout, with "-dirty" after it where CODE was changed; None without git.

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
    """Name where the default MLflow store is: the main workspace, also for DVC's queued and temporary experiments."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


@contextmanager
def exclusive(*words: str) -> Iterator[None]:
    """Let one process at a time do what the words name.

    The lock ends with its holder, however that happens. Where no file can be written, or the file system knows no
    locks, nobody is refused.

    Raises:
        Busy: if another process is in such a block.
    """
    from filelock import FileLock, Timeout

    path = LOCKS / ".".join(word.replace("/", "-") for word in words)
    lock, holder = FileLock(path, blocking=False), ""
    with suppress(OSError):
        holder = path.read_text() if path.exists() else ""  # before acquiring, which empties it
    with suppress(OSError, NotImplementedError):  # where no lock can be had
        path.parent.mkdir(exist_ok=True)
        try:
            lock.acquire()
        except Timeout:  # an OSError itself
            who = f"process {holder}" if holder else "another process"
            raise Busy(
                f"{path}: {who} does this here already; wait until it ends, or stop it, and run the same command again"
            ) from None
        path.write_text(str(os.getpid()))
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()
            lock.release()


def run(
    main: Callable[[Stage], None],
    needs: Sequence[str] = ("suite",),
    logs: bool = True,
    allow_teacher: bool = False,
    trains: bool = False,
    asks: bool = False,
) -> None:
    """Parse the command line, check params.yaml, run `main`; a UserError becomes one message and exit code 1.

    Args:
        main: what the stage does; what takes long to import, it imports itself.
        needs: what of suite, method, ablation and split tells apart runs of this stage that may go on side by side.
        logs: whether the stage uses its logger, whose process imports MLflow while this one imports PyTorch.
        allow_teacher: whether it takes method=teacher.
        trains: whether it takes the options of training.
        asks: whether it takes the option to ask before days of work.
    """
    name = Path(sys.argv[0]).stem
    arguments = _parser(name, sys.modules[main.__module__].__doc__, needs, trains, asks).parse_intermixed_args()
    options = _options(arguments, trains)
    if options.worker:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
        _end_with_parent()
    with errors_for_people(), Logger(tracking_root()) if logs and not options.worker else nullcontext() as logger:
        from tripletkd.config.load import load

        config = load(Path.cwd(), options.overrides, allow_teacher)
        for need in needs:
            if getattr(config, need) is None:
                names = ", ".join(getattr(config, need + "s"))
                raise UserError(f"{need}: not given; expected {need}=NAME with one of {names}")
        stage = Stage(name, config, options, logger)
        stage.dependencies  # noqa: B018  # those of the start
        words = [name, *(getattr(config, need) for need in needs)]
        alone = needs and not options.worker and not options.only_seeds
        with exclusive(*words) if alone else nullcontext():
            main(stage)
        if not options.worker:
            refuse_changes(stage)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when the one that started it dies; elsewhere it goes on to its end."""
    with suppress(AttributeError, OSError, TypeError):  # the last on Windows
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of sys/prctl.h


def _parser(
    name: str, description: str | None, needs: Sequence[str], trains: bool, asks: bool
) -> argparse.ArgumentParser:
    program = f"python -m stages.{name}"
    typical = {"suite": "digits", "method": "triplet", "ablation": "margin", "split": "test"}
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
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
    # Hydra's, taken for what is said of several values to be said.
    parser.add_argument("-m", "--multirun", action="store_true", help=argparse.SUPPRESS)
    if asks:
        parser.add_argument("--ask", action="store_true", help="ask before days of work")
    if trains:
        parser.add_argument(
            "--only-seeds", type=_seeds, metavar="N,N", default=[], help="train these of the suite's seeds only"
        )
        parser.add_argument("--retrain", action="store_true", help="train finished seeds anew")
        parser.add_argument("--processes", type=_processes, metavar="P", help="train so many seeds side by side")
        parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def _options(arguments: argparse.Namespace, trains: bool) -> Options:
    minutes = arguments.max_minutes
    options = Options(
        overrides=arguments.overrides,
        deadline=None if minutes is None else time.monotonic() + 60 * minutes,
        quiet=arguments.quiet or bool(os.environ.get("TRIPLETKD_QUIET")),
        ask=getattr(arguments, "ask", False),
    )
    if not trains:
        return options
    return replace(
        options,
        only_seeds=arguments.only_seeds,
        retrain=arguments.retrain,
        processes=arguments.processes,
        worker=arguments.worker,
    )


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


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn what a person can mend into one message and an exit code that is not 0."""
    from tripletkd.errors import Paused

    try:
        yield
    except Paused as paused:
        print(f"paused: {paused}", file=sys.stderr)
        sys.exit(EX_TEMPFAIL)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EX_TEMPFAIL if isinstance(error, Busy) else 1)
    except OSError as error:  # no room, no rights: what stood there before is whole, see files.whole
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
    """Say what a person can do about errors of PyTorch and of memory; None for those that are ours."""
    text = (str(error).splitlines() or ["out of memory"])[0]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"{text}; take fewer seeds, a smaller recipe.batch_size, or run.fuse_seeds=never"
    if "deterministic implementation" in text:
        return f"run.deterministic: {text}; expected false for this network"
    return None
