"""A stage at work: its parameters, its places, and one message for a person when something is wrong.

    python -m stages.distill suite=digits method=triplet [key=value ...] [--max-minutes M]

dvc.yaml says where files are and which parameters a stage depends on. The stages read it, so they run without DVC.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

from tripletkd.code_hash import read_again
from tripletkd.errors import Busy, Paused, UserError
from tripletkd.files import Json, read_yaml
from tripletkd.pipeline.arguments import Options, parse
from tripletkd.pipeline.code import code_of_stage
from tripletkd.pipeline.locks import exclusive
from tripletkd.provenance import fingerprint, sha256
from tripletkd.tracking import mirror

if TYPE_CHECKING:
    from tripletkd.config.load import Config
    from tripletkd.config.schema import Split, SuiteConfig

CODE = ["stages", "tripletkd", "dvc.yaml", "params.yaml", "pyproject.toml", "uv.lock"]  # what a run's numbers depend on
DIVIDED = ("distill", "train_teacher")  # stages that torchrun may start
EX_TEMPFAIL = 75  # of sysexits.h: the same command does it later. It stopped at a checkpoint, or another was at work


@dataclass(frozen=True)
class Stage:
    """A stage at work.

    Attributes:
        name: Its name in dvc.yaml.
        config: params.yaml with the overrides of the command line.
        options: What else the command line says.
        started: When it began, in seconds since 1970.
        instead: Other places than those of dvc.yaml, for kinds of files that are to be written elsewhere.
    """

    name: str
    config: "Config"
    options: Options = field(default_factory=Options)
    started: float = field(default_factory=time.time)
    instead: Mapping[str, Path] = field(default_factory=dict)

    @cached_property
    def suite(self) -> "SuiteConfig":
        """The suite that the stage is asked for, with nothing left to look up."""
        assert self.config.suite is not None
        return self.config.for_suite(self.config.suite)

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Where each kind of file is, as dvc.yaml says."""
        return {**read_paths(), **self.instead}

    def path(self, kind: str, *inner: str) -> Path:
        """Name a place: with "runs", "test", "triplet" it is runs/<suite>/test/triplet."""
        assert self.config.suite is not None
        return self.paths[kind].joinpath(self.config.suite, *inner)

    def of_suite(self, name: str) -> "Stage":
        """Return the same stage for another suite."""
        return replace(self, config=replace(self.config, suite=name))

    def on_split(self, split: "Split") -> "Stage":
        """Return the same stage for another split."""
        return replace(self, config=replace(self.config, split=split))

    def say(self, text: str) -> None:
        """Print for whoever looks on."""
        if not self.options.quiet:
            print(text, flush=True)

    def made(self, text: str, remains: str) -> None:
        """Print what was made; outside `dvc repro`, also what that would do with it."""
        self.say(text if "DVC_STAGE" in os.environ else f"{text}; `dvc repro` {remains}")

    def log(self, since: float | None = None, **more: object) -> Json:
        """Describe what differs from run to run, for logs and MLflow. It began at `since`, or with the stage."""
        began = self.started if since is None else since
        return {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "seconds": round(time.time() - began, 2),
            "commit": commit(),
            "experiment": os.environ.get("DVC_EXP_NAME"),
            "baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
            "stage": os.environ.get("DVC_STAGE"),
            **more,
        }

    @cached_property
    def dependencies(self) -> dict[str, str]:
        """What the results depend on beside data, as it is when this is first asked for."""
        return read_dependencies(self.name, self.config)


def read_paths() -> dict[str, Path]:
    """Read where each kind of file is, as dvc.yaml says."""
    return {kind: Path(path) for kind, path in read_yaml(Path("dvc.yaml"))["vars"][0]["paths"].items()}


def read_dependencies(stage: str, config: "Config") -> dict[str, str]:
    """Read what a stage depends on by dvc.yaml: what its code means, its parameters, and the files that it reads."""
    block, params = read_yaml(Path("dvc.yaml"))["stages"].get(stage, {}), read_yaml(Path("params.yaml"))
    names = {f"item.{kind}": getattr(config, kind) for kind in ("suite", "method", "ablation")}
    names |= {f"paths.{kind}": path for kind, path in read_paths().items()}
    names |= {"item.split": config.split, "run.split": config.split, "run.ablation_split": config.split}

    def filled(text: str) -> str:
        return re.sub(r"\$\{(.+?)\}", lambda found: str(names[found[1]]), text)

    found = code_of_stage(stage, config.method)
    for key in [filled(key) for key in block.get("params", []) if isinstance(key, str)]:
        value: object = params
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found[key] = json.dumps(value, sort_keys=True, default=str)
    for path in map(filled, block.get("deps", [])):
        found[path] = _content(Path(path))
    return found


def _content(path: Path) -> str:
    """Hash a file, or the texts in a folder: its records name the hashes of weights, which are compared when read."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in (".json", ".csv"))
    return fingerprint({str(file): sha256(file) for file in files})


def refuse_changes(stage: Stage) -> None:
    """Compare what the stage depends on with what it was at the start.

    DVC would otherwise store the results under what is there now.

    Raises:
        UserError: If a parameter or the code was changed meanwhile.
    """
    read_again()
    now, before = read_dependencies(stage.name, stage.config), stage.dependencies
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{name}: changed from {before.get(name)} to {now.get(name)} while the stage ran. Its results are of "
                "what was there at the start, and nothing is recorded of them: run the same command again"
            )


@cache
def commit() -> str | None:
    """Name the commit of the checkout, with "-dirty" after it where CODE is otherwise; None without git.

    dvc.lock and results/ do not count: DVC itself changes them before a stage runs.
    """

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        # No word comes from outside, and git is the one on the PATH.
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False)  # nosec B603 B607  # noqa: S603

    with suppress(OSError):
        head, changed = git("rev-parse", "--verify", "HEAD"), git("status", "--porcelain", "--", *CODE)
        if head.returncode == changed.returncode == 0:
            return head.stdout.strip() + ("-dirty" if changed.stdout else "")
        if Path(".git").exists():  # such as of another owner
            said = (head.stderr or changed.stderr).partition("\n")[0]
            print(f"warning: git names no commit for the logs ({said})", file=sys.stderr)
    return None


def tracking_root() -> Path:
    """Name where the default MLflow store is: the main workspace, also for DVC's queued and temporary experiments."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def torchrun() -> tuple[int, int]:
    """Return the number of this process and how many there are, where torchrun started them; else 0 and 1."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def run(
    main: Callable[[Stage], None],
    needs: Sequence[str] = ("suite",),
    trains: bool = False,
    allow_teacher: bool = False,
) -> None:
    """Parse the command line, check params.yaml, run `main`; a UserError becomes one message and exit code 1.

    Args:
        main: What the stage does. It imports itself what takes long to import.
        needs: What of suite, method, ablation and split tells apart runs of this stage that may go on side by side.
        trains: Whether it takes the options of training.
        allow_teacher: Whether it takes method=teacher.
    """
    assert isinstance(main, FunctionType)
    name = Path(main.__code__.co_filename).stem
    overrides, options = parse(name, main.__globals__["__doc__"], needs, trains)
    if follows := torchrun()[0] > 0:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # the first process says everything
    with errors_for_people():
        if torchrun()[1] > 1 and name not in DIVIDED:
            raise UserError(f"torchrun: stages.{name} is for one process, expected one of {', '.join(DIVIDED)}")
        stage = open_stage(name, overrides, needs, options, allow_teacher)
        stage.dependencies  # noqa: B018  # those of the start
        words = [name, *(getattr(stage.config, need) for need in needs)]
        with ExitStack() as stack:
            if not follows:
                stack.enter_context(nullcontext() if options.only_seeds else exclusive(*words))
                stack.enter_context(mirror.start(tracking_root()))
            main(stage)
        refuse_changes(stage)


def open_stage(
    name: str,
    overrides: Sequence[str] = (),
    needs: Sequence[str] = (),
    options: Options | None = None,
    allow_teacher: bool = False,
) -> Stage:
    """Return a stage with params.yaml of the present folder, checked.

    Args:
        name: Its name in dvc.yaml, or another one.
        overrides: Such as "methods.triplet.margin=10".
        needs: What of suite, method, ablation and split must be given.
        options: What else the command line says.
        allow_teacher: Whether method=teacher is accepted.

    Raises:
        UserError: If params.yaml or an override is wrong, or something is not given.
    """
    from tripletkd.config.load import load

    config = load(Path.cwd(), overrides, allow_teacher)
    for need in needs:
        if getattr(config, need) is None:
            names = ", ".join(getattr(config, need + "s"))
            raise UserError(f"{need}: not given; expected {need}=NAME with one of {names}")
    return Stage(name, config, options or Options())


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn what a person can mend into one message and an exit code that is not 0."""
    follows = torchrun()[0] > 0  # the first process of a training says for all what all of them meet
    try:
        yield
    except Paused as paused:
        if not follows:
            print(f"paused: {paused}", file=sys.stderr)
        sys.exit(EX_TEMPFAIL)
    except UserError as error:
        if not follows:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(EX_TEMPFAIL if isinstance(error, Busy) else 1)
    except OSError as error:  # no room, no rights: what was there before is whole, see files.whole
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
