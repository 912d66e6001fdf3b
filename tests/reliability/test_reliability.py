"""Whatever happens to a run: what was finished stays finished, what is wrong is named, no number is silently wrong.

Each attempt is counted (conftest.trial); `make reliability` runs all of it and writes docs/reliability.md.
"""

import fcntl
import itertools
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import faults
import numpy as np
import pytest
import yaml
from conftest import ROOT, trial
from PIL import Image
from shrunk import ENVIRONMENT, GIT, change, clone, command, lock, shrink, with_faults

from tripletkd.config.load import load
from tripletkd.errors import UserError
from tripletkd.training.run_record import read_log

pytestmark = [pytest.mark.slow, pytest.mark.fault]

STAGES = {
    "fetch": [],
    "train_teacher": [],
    "distill": ["method=triplet"],
    "evaluate": ["method=triplet"],
    "tabulate": [],
    "ablate": ["ablation=margin", "split=validation"],
    "export": ["method=teacher"],
}  # fmt: skip
# Other outputs than those of the shrunk parameters: a half-replaced one is then told from a whole one.
EARLIER = [
    "++suites.digits.data.per_class=30",
    "suites.digits.holdout=10",
    "++suites.digits.student.recipe={optimizer: {lr: 0.02}}",
]
TABLES = ("table.md", "table.csv", "table.json", "summary.json", "curves.csv", "report.html", "figures")
OUTPUTS = {
    "fetch": ["data/digits"],
    "train_teacher": ["runs/digits/test/teacher", "results/digits/measured/test/teacher.json"],
    "distill": ["runs/digits/test/triplet"],
    "evaluate": [f"results/digits/measured/test/triplet{end}" for end in (".json", ".csv", "_map.csv")],
    "tabulate": [f"results/digits/{name}" for name in TABLES],
    "ablate": [
        *(f"runs/digits/validation/ablations/margin/margin-{margin}" for margin in (1, 5)),
        "results/digits/measured/validation/ablations/margin.json",
    ],
    "export": ["exports/digits/teacher"],
}
# Moments between two changes of a file, after which much would have to be computed again, or a part is written
MOMENTS = {
    "fetch": ["tripletkd.data.dataset:save 1"],
    "train_teacher": ["tripletkd.training.trainer:Trainer.step 30", "tripletkd.training.run_record:write_seeds 1"],
    "distill": ["tripletkd.training.trainer:Trainer.step 30", "tripletkd.training.run_record:write_log 2"],
    "evaluate": ["tripletkd.evaluation.measure:measure 1"],
    "ablate": ["tripletkd.training.trainer:Trainer.step 60", "tripletkd.evaluation.measurement:write_ablation 1"],
    "export": ["tripletkd.export:verify 1"],
    "tabulate": ["tripletkd.reporting.tables:markdown 1"],
}
RUN = "runs/digits/test/triplet"
OFTEN = "run.checkpoint_minutes=0.000001"
LATE = "tripletkd.training.trainer:Trainer.step 50"  # in the last of three epochs
UNDISTURBED = "nothing; the same command again ends with the undisturbed bytes"

Contents = dict[str, bytes]
Started = subprocess.Popen[str]


class Runner:
    """Runs stages in processes forked from one that has imported what they need, with no MLflow."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        self.variables = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "nowhere://"}  # also of what a stage starts
        self.process = subprocess.Popen(
            [sys.executable, faults.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | self.variables,
        )

    def __call__(self, folder: Path, stage: str, *words: str, fault: str = "", bytes_a_file: int = 0) -> int:
        """Its exit status; -9 if it was killed."""
        assert self.process.stdin and self.process.stdout
        request = {
            "folder": str(folder),
            "stage": stage,
            "words": ("suite=digits", "run.ablations=[]", *STAGES[stage], *words),
            "output": str(self.output),
            "variables": self.variables,
            "fault": fault,
            "bytes_a_file": bytes_a_file,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code, self.most_kib = map(int, self.process.stdout.readline().split())
        return code

    def end(self, folder: Path, stage: str, *words: str) -> str:
        """Run a stage that must succeed; both of its outputs as one text."""
        assert self(folder, stage, *words) == 0, self.printed()
        return self.printed()

    def start(self, folder: Path, name: str, *words: str, before: Sequence[str] = (), to: int | None = None) -> Started:
        """A stage in a process of its own, as a person starts it."""
        command_line = ["python", "-m", f"stages.{name}", "suite=digits", "run.ablations=[]", *STAGES[name], *words]
        return subprocess.Popen(
            [*before, *command_line],
            cwd=folder,
            env=ENVIRONMENT | self.variables,
            stdout=to or subprocess.PIPE,
            stderr=to or subprocess.PIPE,
            text=True,
        )

    def printed(self) -> str:
        return self.output.read_text()

    def error(self) -> str:
        """The one line that a person gets."""
        lines = [line for line in self.printed().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in self.printed(), self.printed()
        return lines[0]

    def line(self, words: str) -> str:
        """The first line with these words."""
        return next(line for line in self.printed().splitlines() if words in line)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("runner"))
    with runner.process:
        yield runner
        assert runner.process.stdin
        runner.process.stdin.close()


def contents(folder: Path, *below: str) -> Contents:
    """Of all files that a run leaves, but for its log."""
    tops = [folder / name for name in below or ("data", "runs", "results", "checkpoints", "exports")]
    files = [file for top in tops for file in ([top] if top.is_file() else sorted(top.rglob("*"))) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name != "log.json"}


def run_all(stage: Runner, folder: Path, *words: str) -> dict[str, Path]:
    """The whole pipeline; returns a copy of the folder as it was before each stage, and at the "end"."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    shrink(folder)
    states = {}
    for name in STAGES:
        states[name] = folder.parent / f"{folder.name} before {name}"
        if name == "evaluate":
            for step in ("distill", "evaluate"):
                stage.end(folder, step, *words, "method=scratch")
        if name == "ablate":
            stage.end(folder, "train_teacher", *words, "split=validation")
        shutil.copytree(folder, states[name])
        stage.end(folder, name, *words)
    return states | {"end": folder}


@pytest.fixture(scope="module")
def states(stage: Runner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("states") / "whole"
    folder.mkdir()
    return run_all(stage, folder)


@pytest.fixture(scope="module")
def earlier(stage: Runner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "whole"
    folder.mkdir()
    return run_all(stage, folder, *EARLIER)["end"]


def copied(states: dict[str, Path], name: str, folder: Path) -> Path:
    return Path(shutil.copytree(states[name], folder))


def with_earlier_outputs(name: str, states: dict[str, Path], earlier: Path, folder: Path) -> Path:
    """The inputs of a stage, and in the place of its outputs those of an earlier run."""
    shutil.copytree(states[name], folder)
    for output in OUTPUTS[name]:
        (folder / output).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (earlier / output).is_dir() else shutil.copy
        copy(earlier / output, folder / output)
    return folder


def assert_whole(name: str, states: dict[str, Path], earlier: Path, folder: Path) -> None:
    """Each output of a stage is the earlier one, the new one or, if it is a folder, not there; never a part.

    Of a run that holds for each of its seeds.
    """
    for output in OUTPUTS[name]:
        seeds = [f"{output}/seed-{seed}" for seed in (0, 1, 2) if (states["end"] / output / f"seed-{seed}").exists()]
        for part in seeds or [output]:
            found = contents(folder, part)
            accepted = [contents(earlier, part), contents(states["end"], part)]
            assert found in accepted or (found == {} and (earlier / part).is_dir()), (part, list(found))


def left_over(folder: Path) -> list[Path]:
    """What no stage may leave once it has ended well: parts of files, locks, checkpoints, what follows a training."""
    # But for a seed's lock: who died when it was finished leaves it, and nobody asks for that seed's again.
    found = [path for path in (folder / ".locks").glob("*") if ".seed-" not in path.name]
    found += [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    return [*found, *(path for path in folder.rglob("*") if ".partial" in path.name or ".live." in path.name)]


def assert_undisturbed(name: str, states: dict[str, Path], folder: Path) -> None:
    """The outputs have the undisturbed bytes, every seed that was trained has its log, and nothing else is left."""
    after = {file: content for file, content in contents(folder).items() if file.startswith(tuple(OUTPUTS[name]))}
    assert after == contents(states["end"], *OUTPUTS[name])
    assert not left_over(folder)
    for output in OUTPUTS[name]:
        for record in (folder / output).glob("seed-*/record.json") if output.startswith("runs/") else ():
            log = folder / "logs" / record.parent.relative_to(folder / "runs").with_suffix(".json")
            assert read_log(log, record).get("seconds"), log


def assert_goes_on(name: str, stage: Runner, states: dict[str, Path], earlier: Path, folder: Path) -> None:
    """After a stage died: its outputs are whole, and the same command ends with the undisturbed bytes and no others."""
    assert_whole(name, states, earlier, folder)
    stage.end(folder, name, OFTEN)
    assert_undisturbed(name, states, folder)


# --- odd parameters ---------------------------------------------------------------------------------------------------

ODD = ["0", "3.5", "-0.5", "1e-320", "1e30", "true", "[]", "[1]"]


def accepted(folder: Path) -> list[str]:
    """What may be said of the shrunk suite, and is not refused; not of epochs or seeds, which may take for ever."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    suite, run = params["suites"]["digits"], params["run"]
    keys = [f"suites.digits.inputs.{key}" for key in suite["inputs"]] + [f"run.{key}" for key in run]
    keys += [f"suites.digits.{key}" for key in ("precision", "teacher_floor", "evaluate_every", "recipe.batch_size")]
    keys += [f"suites.digits.recipe.{part}.{k}" for part in ("optimizer", "schedule") for k in suite["recipe"][part]]
    keys += [f"methods.triplet.{key}" for key in params["methods"]["triplet"]]
    found = []
    for key, value in itertools.product(keys, ODD):
        with suppress(UserError):
            load(folder, ["suite=digits", f"{key}={value}"])
            found.append(f"{key}={value}")
    return found


def test_odd_values_that_are_accepted_run_or_stop_with_one_message(
    stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    words = accepted(states["train_teacher"])
    assert len(words) > 20
    for number, word in enumerate(words):
        with trial("an odd value that params.yaml may have: the teacher and a student are trained with it") as fault:
            folder = copied(states, "train_teacher", tmp_path / str(number))
            for name in ("train_teacher", "distill"):
                if code := stage(folder, name, word):
                    assert code == 1, (word, stage.printed())
                    fault.seen = f"nothing, or for example `{stage.error()[:150]}`"
                    break


# --- killed anywhere --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_killed_before_any_change_of_a_file(
    name: str, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    """Before the first, the second, ... until it is not killed any more."""
    for n in itertools.count(1, 4 if name == "ablate" else 1):  # which trains as distill does
        folder = with_earlier_outputs(name, states, earlier, tmp_path / str(n))
        code = stage(folder, name, OFTEN, fault=f"kill files {n}")
        if code == 0:
            break
        with trial(f"kill -9 in {name}, before each of its changes of a file or folder") as fault:
            assert code == -signal.SIGKILL, stage.printed()
            assert_goes_on(name, stage, states, earlier, folder)
            fault.seen = UNDISTURBED
        shutil.rmtree(folder)
    assert n > 5, "hardly a file was written: the fault was not injected"


@pytest.mark.parametrize(("name", "moment"), [(name, moment) for name in MOMENTS for moment in MOMENTS[name]])
def test_killed_at_a_step_of_the_computation(
    name: str, moment: str, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    folder = with_earlier_outputs(name, states, earlier, tmp_path / "folder")
    with trial(f"kill -9 in {name}, between two steps of its computation") as fault:
        assert stage(folder, name, OFTEN, fault=f"kill {moment}") == -signal.SIGKILL, stage.printed()
        assert_goes_on(name, stage, states, earlier, folder)
        if name in ("train_teacher", "distill", "ablate"):  # what was trained is not trained again
            assert re.search(r"going on after epoch \d|are there, as asked for", stage.printed())
        fault.seen = UNDISTURBED


def images_in(kind: str, folder: Path) -> Path:
    """Class folders of grey images, or an archive of them."""
    rng = np.random.default_rng(0)
    for part, name, number in itertools.product(("train", "test"), "ab", range(5)):
        file = folder / "images" / part / name / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    if kind == "folder":
        return folder / "images"
    return Path(shutil.make_archive(str(folder / "archive"), "gztar", folder / "images"))


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_killed_while_images_are_decoded(
    kind: str, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    words = [f"suites.digits.data.source={kind}", f"++suites.digits.data.path={images_in(kind, tmp_path)}"]
    sound = copied(states, "fetch", tmp_path / "sound")
    stage.end(sound, "fetch", *words)
    for moment in ("_by_class 1", "Decoded._decode 2", "Decoded._decode 20"):
        folder = with_earlier_outputs("fetch", states, earlier, tmp_path / moment)
        with trial("kill -9 in fetch, while a folder or an archive of images is decoded") as fault:
            code = stage(folder, "fetch", *words, fault=f"kill tripletkd.data.sources:{moment}")
            assert code == -signal.SIGKILL, stage.printed()
            assert contents(folder, "data/digits") == contents(earlier, "data/digits")
            stage.end(folder, "fetch", *words)
            assert everything(folder) == everything(sound)
            fault.seen = UNDISTURBED


@pytest.mark.parametrize("bytes_a_file", [400, 5000, 20000])  # what is printed is a file too
@pytest.mark.parametrize("name", STAGES)
def test_a_file_that_ends_midway(
    name: str, bytes_a_file: int, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    """The kernel refuses to write beyond that byte of whatever file is the first to be longer, or kills who tries."""
    folder = with_earlier_outputs(name, states, earlier, tmp_path / "refused")
    if stage(folder, name, OFTEN, bytes_a_file=bytes_a_file) == 0:  # no file of this stage is that long
        return
    with trial("no room for a file (a limit of its size)") as fault:
        fault.seen = f"`{stage.error()}`"
        place = "(data|runs|results|checkpoints|exports)/digits"
        assert re.match(rf"error: {place}\S*: File too large; fix that", stage.error())
        assert not [file for file in folder.rglob("*") if ".partial" in file.name]
        assert_goes_on(name, stage, states, earlier, folder)
    folder = with_earlier_outputs(name, states, earlier, tmp_path / "killed")
    with trial(f"killed in {name}, at a byte partway through a file") as fault:
        assert stage(folder, name, OFTEN, fault="kill", bytes_a_file=bytes_a_file) == -signal.SIGXFSZ
        assert_goes_on(name, stage, states, earlier, folder)
        fault.seen = UNDISTURBED


# --- twice at once ----------------------------------------------------------------------------------------------------


def ended(process: Started, code: int) -> str:
    """What it says on standard error."""
    _, printed = process.communicate()
    assert process.returncode == code, printed
    return printed.strip()


def refused(process: Started, lock: Path, holder: int) -> str:
    """What a process says that has found another one at work."""
    line = ended(process, 75)
    assert line.startswith(f"error: .locks/{lock.name}: process {holder} does this here already; wait until it ends")
    return f"`{line.replace(str(holder), '6589')}`"


def wait_for(condition: Callable[[], object], process: Started) -> None:
    """Until it holds, while the process goes on."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def holder_of(lock: Path) -> str:
    """The process that a lock names; nothing where there is none."""
    with suppress(FileNotFoundError):
        return lock.read_text()
    return ""


@pytest.mark.parametrize(
    ("name", "words", "locked"),
    [
        ("tabulate", [], "tabulate.digits"),
        ("distill", [], "distill.digits.triplet.test"),
        ("distill", ["--only-seeds", "1"], "distill.digits.test.triplet.seed-1"),
    ],
)
def test_a_stage_that_runs_already_is_not_started_again(
    name: str, words: list[str], locked: str, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    folder, lock = copied(states, name, tmp_path / "folder"), tmp_path / "folder/.locks" / locked
    with trial("a stage, run directly, that another process runs already in the same folder") as fault:
        first = stage.start(folder, name, *words)
        wait_for(lambda: holder_of(lock), first)
        os.kill(first.pid, signal.SIGSTOP)
        fault.seen = refused(stage.start(folder, name, *words), lock, first.pid)
        os.kill(first.pid, signal.SIGCONT)
        ended(first, 0)
        stage.end(folder, name)
        if not words:
            assert_undisturbed(name, states, folder)


@pytest.mark.parametrize("seconds", [0, 1])
def test_two_direct_runs_at_once_leave_the_undisturbed_bytes(
    seconds: float, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    """Without a lock they take each other's half-written files away."""
    alone, folder = (copied(states, "distill", tmp_path / name) for name in ("alone", "folder"))
    many_writes = ["suites.digits.student.recipe.epochs=100", OFTEN]
    stage.end(alone, "distill", *many_writes)
    with trial("a stage started twice, almost simultaneously") as fault:
        first = stage.start(folder, "distill", *many_writes)
        time.sleep(seconds)
        second = stage.start(folder, "distill", *many_writes)
        first.wait()
        winner, loser = (second, first) if first.returncode else (first, second)
        refused(loser, folder / ".locks/distill.digits.triplet.test", winner.pid)
        ended(winner, 0)
        assert contents(folder, "runs", "checkpoints") == contents(alone, "runs", "checkpoints")
        assert not left_over(folder)
        fault.seen = "that message, of either of them; the other one leaves the undisturbed bytes"


def test_two_processes_on_seeds_of_one_run(stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    sound, folder = (copied(states, "distill", tmp_path / name) for name in ("sound", "folder"))
    for seed in "12":
        stage.end(sound, "distill", "--only-seeds", seed)
    with trial("`--only-seeds` of two seeds of one run at once") as fault:
        for process in [stage.start(folder, "distill", "--only-seeds", seed, OFTEN) for seed in "12"]:
            ended(process, 0)
        assert contents(folder, RUN) == contents(sound, RUN)
        assert "seeds 1, 2 are there, as asked for" in stage.end(folder, "distill")
        assert not left_over(folder)
        fault.seen = "nothing: both succeed"


# --- under DVC --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dvc repro in a clone, on a path with spaces and letters of other alphabets."""
    folder = clone(tmp_path_factory.mktemp("Ünïcode 学生 and spaces") / "a clone")
    change(folder, "run", "export", value=["teacher"])
    with trial("a clone on a path with spaces and non-ASCII letters") as fault:
        command(folder, "dvc", "repro", MLFLOW_TRACKING_URI="nowhere://")
        fault.seen = "nothing"
    return folder


def checkpoint_of(folder: Path, name: str) -> Path:
    """The only one of a run."""
    [path] = (folder / "checkpoints/digits/test" / name).iterdir()
    return path


def repro(folder: Path, path: str, fault: str, where: str, *targets: str) -> tuple[int, str]:
    """dvc repro in a process group of its own, with a fault."""
    variables = {"PYTHONPATH": path, "FAULT": fault, "FAULT_IN": where, "MLFLOW_TRACKING_URI": "nowhere://"}
    done = subprocess.run(
        ["dvc", "repro", *targets],
        cwd=folder,
        env=ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        start_new_session=True,
    )
    return done.returncode, done.stdout


def test_dvc_repro_killed_again_and_again_ends_with_the_undisturbed_lock(undisturbed: Path, tmp_path: Path) -> None:
    """Each time it goes on and is killed a little later: the stage alone, or all there is, DVC among it, in turns."""
    folder, path = clone(tmp_path / "clone"), with_faults(tmp_path)
    change(folder, "run", "export", value=["teacher"])
    change(folder, "run", "checkpoint_minutes", value=0.000001)
    moments = [(name, moment) for name in MOMENTS for moment in MOMENTS[name]]
    for (name, moment), action in zip(moments, itertools.cycle(["kill", "crash"]), strict=False):
        who = "the stage" if action == "kill" else "DVC and the stage at once"
        with trial(f"dvc repro: kill -9 of {who}") as fault:
            code, printed = repro(folder, path, f"{action} {moment}", f"stages.{name}", name)
            assert code == (-signal.SIGKILL if action == "crash" else 255), (moment, printed)
            fault.seen = "the stage that failed, or nothing; the next `dvc repro` goes on, to the undisturbed dvc.lock"
    command(folder, "dvc", "repro", MLFLOW_TRACKING_URI="nowhere://")
    assert lock(folder) == lock(undisturbed)
    assert contents(folder, "results", "data") == contents(undisturbed, "results", "data")


def test_ctrl_c_leaves_a_checkpoint_and_a_line_on_how_to_go_on(undisturbed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "copy", symlinks=True))
    shutil.rmtree(folder / RUN)
    command(folder, "sed", "-i", "/^  distill@digits-triplet:/,/^  [a-z]/ s/size: .*/size: 1/", "dvc.lock")
    shutil.rmtree(folder / ".dvc/cache/runs")
    with trial("dvc repro: Ctrl-C within an epoch") as fault:
        step = "interrupt tripletkd.training.trainer:Trainer.step 25"
        code, printed = repro(folder, with_faults(tmp_path), step, "method=triplet")
        assert code != 0
        checkpoint = checkpoint_of(folder, "triplet").relative_to(folder)
        line = f"paused: stopped at epoch 2 of 3 (SIGINT); the same command goes on from {checkpoint}"
        assert printed.count(line) == 1 and "Traceback" not in printed, printed
        again = command(folder, "dvc", "repro", MLFLOW_TRACKING_URI="nowhere://")
        assert f"{checkpoint}: going on after epoch 2" in again
        assert lock(folder) == lock(undisturbed)
        fault.seen = f"`{line}`"


def test_of_two_dvc_repro_at_once_the_second_says_who_holds_the_lock(undisturbed: Path) -> None:
    with trial("two dvc repro at once") as fault:
        before = lock(undisturbed)
        words, variables = ["dvc", "repro", "--force"], ENVIRONMENT | {"MLFLOW_TRACKING_URI": "nowhere://"}
        with subprocess.Popen(words, cwd=undisturbed, env=variables, stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout
            while "Running stage" not in first.stdout.readline():
                pass
            printed = command(undisturbed, "dvc", "repro", check=False)
            first.stdout.read()
        assert first.returncode == 0 and lock(undisturbed) == before
        fault.seen = f"`{next(line for line in printed.splitlines() if str(first.pid) in line).strip()}`"


def test_queued_experiments_at_once_succeed_and_log_to_the_main_store(tmp_path: Path) -> None:
    folder, margins = clone(tmp_path / "clone"), {"narrow": 2, "wide": 20}
    command(folder, "dvc", "repro")
    command(folder, "git", "add", "-A")
    command(folder, *GIT, "commit", "-qm", "a baseline")
    for name, margin in margins.items():
        command(folder, "dvc", "exp", "run", "--queue", "-n", name, "-S", f"methods.triplet.margin={margin}")
    with trial("two queued experiments at once (`dvc queue start -j 2`)") as fault:
        command(folder, "dvc", "queue", "start", "-j", "2")
        deadline = time.monotonic() + 500
        # A run for the method and one for each of its two seeds
        while logged(folder) != sorted((name, float(margin)) for name, margin in margins.items() for _ in range(3)):
            status = command(folder, "dvc", "queue", "status")
            assert "Failed" not in status and time.monotonic() < deadline, (status, logged(folder))
            time.sleep(2)
        fault.seen = "`Success` for each in `dvc queue status`, and in MLflow's main store all their runs"


def logged(folder: Path) -> list[tuple[str, float]]:
    """The experiments in MLflow's store that are finished, with the margin of each run in them."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        query = (
            "SELECT e.value, p.value FROM runs r JOIN params p ON p.run_uuid = r.run_uuid "
            "JOIN tags e ON e.run_uuid = r.run_uuid AND e.key = 'log.experiment' "
            "WHERE p.key = 'method.margin' AND r.status = 'FINISHED' AND r.lifecycle_stage = 'active'"
        )
        return sorted((name, float(margin)) for name, margin in database.execute(query))


# --- no room, no rights, damage ---------------------------------------------------------------------------------------


def test_a_full_disk(stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=180k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with trial("a full disk (a file system of 180 KB)") as fault:
            folder = copied(states, "train_teacher", tmp_path / "folder")
            assert stage(folder, "train_teacher") == 1
            fault.seen = f"`{stage.error()}`"
            assert "No space left on device" in stage.error() and "/digits/" in stage.error()
            assert contents(folder, "data") == contents(states["train_teacher"], "data")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("fetch", "data"),
        ("train_teacher", "checkpoints"),
        ("distill", RUN),
        ("tabulate", "results/digits/table.md"),
        ("ablate", "results/digits/measured/validation/ablations"),
    ],
)
def test_a_place_that_cannot_be_written(
    name: str, place: str, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    """A file where a folder must be, or a folder where a file must be: no rights that root could ignore."""
    folder = copied(states, name, tmp_path / "folder")
    with trial("a place that cannot be written") as fault:
        if place.endswith(".md"):
            (folder / place).mkdir(parents=True)
        elif place == RUN:
            (folder / place).symlink_to("/proc/self/nowhere")
        else:
            (folder / place).write_text("in the way")
        assert stage(folder, name, OFTEN) == 1, stage.printed()
        assert place.split("/", maxsplit=1)[0] in stage.error()
        fault.seen = f"`{stage.error()}`"


def without_rights_of_root() -> list[str]:
    """What a command begins with so that file modes hold for it, as they do for anyone but root."""
    if os.getuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv, or not to be root")
    gone = "-dac_override,-dac_read_search,-fowner"
    return ["setpriv", f"--bounding-set={gone}", f"--inh-caps={gone}"]


def set_modes(folder: Path, files: int, folders: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(folders if path.is_dir() else files)


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("name", ["train_teacher", "tabulate"])
def test_a_folder_that_may_be_read_and_not_written(
    name: str, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    folder = with_earlier_outputs(name, states, earlier, tmp_path / "folder")
    before = everything(folder)
    with trial("a folder of someone else, that may be read and not written") as fault:
        set_modes(folder, 0o444, 0o555)
        printed = ended(stage.start(folder, name, before=without_rights_of_root()), 1)
        set_modes(folder, 0o644, 0o755)
        fault.seen = f"`{printed}`"
        assert re.match(r"error: (runs|results|checkpoints)\S*: Permission denied; fix that and", printed), printed
        assert everything(folder) == before


READ = [
    *(("train_teacher", f"data/digits/{name}") for name in ("dataset.json", "images.npy", "labels.npy")),
    *(("evaluate", f"{RUN}/seed-1/{name}") for name in ("weights.safetensors", "history.csv", "record.json")),
    ("tabulate", "results/digits/measured/test/triplet.json"),
    ("ablate", "runs/digits/validation/teacher/seed-0/weights.safetensors"),
]
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[: len(content) // 2],
    "a bit changed": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "another file": lambda content: b"{}",
}


@pytest.mark.parametrize(("name", "file"), READ)
def test_a_file_that_may_not_be_read_or_is_damaged_is_named(
    name: str, file: str, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(states, name, tmp_path / "folder")
    before, content = everything(folder), (folder / file).read_bytes()
    with trial("a file that may not be read") as fault:
        (folder / file).chmod(0)
        printed = ended(stage.start(folder, name, before=without_rights_of_root()), 1)
        (folder / file).chmod(0o644)
        assert re.match(rf"error: {file}: (Permission denied|cannot be read)", printed), printed
        assert everything(folder) == before
        fault.seen = f"`{printed}`"
    for kind, damaged in DAMAGE.items():
        if kind == "a bit changed" and file.endswith(".json"):
            continue  # DVC's hash tells: a number within a text has no other witness
        with trial("a damaged file that a stage reads") as fault:
            (folder / file).write_bytes(damaged(content))
            assert stage(folder, name) == 1, stage.printed()
            assert str(Path(file).parent) in stage.error()
            fault.seen = f"`{stage.error()[:160]}...`"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_not_used(damage: str, stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(states, "distill", tmp_path / "folder")
    stage(folder, "distill", OFTEN, fault=f"kill {LATE}")
    path = checkpoint_of(folder, "triplet")
    path.write_bytes(damaged := DAMAGE[damage](path.read_bytes()))
    with trial("a damaged checkpoint") as fault:
        assert stage(folder, "distill", OFTEN, fault=f"kill {LATE}") != 0
        line = stage.line("starting anew")
        assert line.startswith(f"{path.relative_to(folder)}: cannot be read")
        aside = re.search(r"moved to (\S+), starting anew", line)
        assert aside and path.with_name(aside[1]).read_bytes() == damaged
        printed = stage.end(folder, "distill", OFTEN)
        assert "starting anew" not in printed and printed.count("going on after epoch 2") == 1
        assert contents(folder, RUN) == contents(states["end"], RUN)
        assert [*path.parent.iterdir()] == [path.with_name(aside[1])]
        fault.seen = f"`{line}`"


def test_a_checkpoint_of_other_inputs_is_named_and_left(stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    folder, other = copied(states, "distill", tmp_path / "folder"), "suites.digits.student.recipe.optimizer.lr=0.02"
    stage(folder, "distill", OFTEN, other, fault=f"kill {LATE}")
    path = checkpoint_of(folder, "triplet")
    before = path.read_bytes()
    with trial("a checkpoint of other inputs") as fault:
        stage.end(folder, "distill", OFTEN)
        fault.seen = f"`{stage.line('starting anew')}`"
        assert f"{path.relative_to(folder)}: belongs to a run with other inputs; left there, starting anew" in fault.seen
        assert checkpoint_of(folder, "triplet") == path and path.read_bytes() == before
        assert contents(folder, RUN) == contents(states["end"], RUN)
        assert f"{path.relative_to(folder)}: going on after epoch 2" in stage.end(folder, "distill", OFTEN, other)
        assert not path.exists()


def test_students_of_another_teacher_are_not_measured(stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(states, "evaluate", tmp_path / "folder")
    path = folder / RUN / "seed-1/record.json"
    record = json.loads(path.read_text())
    record["identity"]["teacher_sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    with trial("students of another teacher, carried here") as fault:
        assert stage(folder, "evaluate") == 1
        assert "made with teacher_sha256 0000" in stage.error()
        fault.seen = f"`{stage.error()[:120]}...`"


# --- a seed is the unit of work ---------------------------------------------------------------------------------------


def trained_anew(printed: str) -> list[str]:
    """The seeds that stood there and were not kept."""
    return re.findall(rf"^{RUN}/seed-(\d+): .*; trained anew$", printed, re.MULTILINE)


def test_seeds_that_are_added_are_trained_alone_whenever_that_is_killed(
    stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    words = ["suites.digits.seeds=[1,2,3,4]"]
    sound, earlier = copied(states, "evaluate", tmp_path / "sound"), contents(states["evaluate"], RUN)
    stage.end(sound, "distill", *words)
    whole = contents(sound, RUN)
    assert earlier.items() < whole.items()
    for n in itertools.count(1, 2):
        folder = copied(states, "evaluate", tmp_path / str(n))
        code = stage(folder, "distill", *words, fault=f"kill files {n}")
        if code == 0:
            break
        with trial("kill -9 while seeds are added to finished ones, before every other change of a file") as fault:
            assert code == -signal.SIGKILL, stage.printed()
            left = {file: content for file, content in contents(folder, RUN).items() if ".partial" not in file}
            assert earlier.items() <= left.items() <= whole.items()
            printed = stage.end(folder, "distill", *words)
            assert "seeds 1, 2" in printed and not trained_anew(printed)
            assert contents(folder, RUN) == whole
            assert not left_over(folder)
            fault.seen = "nothing; the same command again trains what is missing and no more"
        shutil.rmtree(folder)
    assert n > 10


SIDE_BY_SIDE = [
    *("suites.digits.seeds=[1,2,3]", "suites.digits.student.recipe.epochs=20", "run.fuse_seeds=never", OFTEN),
    *("--processes", "2"),
]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_seeds_side_by_side_end_with_the_undisturbed_bytes(
    how: str, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    sound, folder = (copied(states, "distill", tmp_path / name) for name in ("sound", "folder"))
    stage.end(sound, "distill", *SIDE_BY_SIDE)
    first = stage.start(folder, "distill", *SIDE_BY_SIDE)
    with first, trial(f"seeds side by side, a process each: {how} to the one that started them") as fault:
        wait_for(lambda: len([*folder.glob("checkpoints/**/seeds-*.safetensors")]) == 2, first)
        first.send_signal(getattr(signal, how))
        if how == "SIGKILL":
            first.wait()
            fault.seen = "nothing, or that its seeds' processes are at work still; the same command goes on"
        else:
            fault.seen = f"`{ended(first, 75).splitlines()[-1]}`"
            assert "paused: every seed that was begun stopped at a checkpoint; the same command goes" in fault.seen
        deadline = time.monotonic() + 60
        while stage(folder, "distill", *SIDE_BY_SIDE):  # those that outlive a killed one are in the way, by name
            assert how == "SIGKILL" and time.monotonic() < deadline, stage.printed()
            assert re.search(r"seed-\d: process \d+ does this here already", stage.printed()), stage.printed()
            time.sleep(1)
        assert not trained_anew(stage.printed())
        assert contents(folder, RUN) == contents(sound, RUN)
        assert not left_over(folder)


@pytest.mark.parametrize(
    ("file", "damage"),
    [("weights.safetensors", "a bit changed"), ("weights.safetensors", "cut off"), ("record.json", "another file")],
)
def test_a_damaged_seed_is_named_and_trained_anew_alone(
    file: str, damage: str, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    alone, folder = (copied(states, "evaluate", tmp_path / name) for name in ("alone", "folder"))
    stage.end(alone, "distill", "--only-seeds", "1", "--retrain")
    path = folder / RUN / "seed-1" / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with trial("a damaged seed of a finished run") as fault:
        printed = stage.end(folder, "distill")
        assert trained_anew(printed) == ["1"] and "seeds 2 are there, as asked for" in printed
        assert f"{RUN}/seed-1/{file}: " in stage.line("trained anew")
        fault.seen = f"`{stage.line('trained anew')[:150]}...`"
        assert contents(folder, RUN) == contents(alone, RUN)
        stage.end(folder, "evaluate")


def test_parameters_that_are_edited_while_a_stage_trains(
    stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    folder, edited = copied(states, "distill", tmp_path / "folder"), tmp_path / "edited"
    before, whole = (folder / "params.yaml").read_bytes(), contents(states["end"], RUN)
    edited.mkdir()
    shutil.copy(folder / "params.yaml", edited)
    change(edited, "suites", "digits", "student", "recipe", value={"optimizer": {"lr": 0.02}})
    stage.variables["EDITED"] = str(edited)
    with trial("params.yaml edited while a stage trains") as fault:
        assert stage(folder, "distill", fault="edit tripletkd.training.trainer:Trainer.step 20") == 1, stage.printed()
        line = stage.error()
        assert line.startswith('error: suites.digits.student: changed from {"network": ') and '"lr": 0.02' in line
        assert "while the stage ran" in line and "run the same command again" in line
        assert contents(folder, RUN) == whole
        other = Path(shutil.copytree(folder, tmp_path / "other"))
        (folder / "params.yaml").write_bytes(before)
        printed = stage.end(folder, "distill")
        assert "seeds 1, 2 are there, as asked for" in printed and not trained_anew(printed)
        assert trained_anew(stage.end(other, "distill")) == ["1", "2"]
        assert not contents(other, RUN).items() & {k: v for k, v in whole.items() if "record" not in k}.items()
        fault.seen = f"`{line[:60]} ... {line[-100:]}`"


def test_code_that_is_edited_while_a_stage_trains(tmp_path: Path) -> None:
    folder, edited, file = clone(tmp_path / "clone"), tmp_path / "edited", "tripletkd/methods/triplet.py"
    (edited / file).parent.mkdir(parents=True)
    before = (folder / file).read_text()
    after = before.replace("near - far + margin", "near - far - margin")
    there = partial(
        command, folder, PYTHONPATH=with_faults(tmp_path), MLFLOW_TRACKING_URI="nowhere://", EDITED=str(edited)
    )
    for words in ("fetch", "train_teacher"):
        there("python", "-m", f"stages.{words}", "suite=digits")
    distill = ["python", "-m", "stages.distill", "suite=digits", "method=triplet"]
    edit = {"FAULT": "edit tripletkd.training.trainer:Trainer.step 20", "FAULT_IN": "stages.distill"}
    with trial("a comment written into the code while a stage trains") as fault:
        (edited / file).write_text(f"# a comment\n{before}")
        assert "error" not in there(*distill, **edit)
        assert (folder / file).read_text() != before
        fault.seen = "nothing"
    with trial("an operator of the code edited while a stage trains") as fault:
        (edited / file).write_text(after)
        printed = there(*distill, "--retrain", check=False, **edit)
        line = next(line for line in printed.splitlines() if line.startswith("error: "))
        assert line.startswith("error: code: changed from ") and "while the stage ran. Its results are of what" in line
        (folder / file).write_text(before)
        assert "seeds 1, 2 are there, as asked for" in there(*distill)
        (folder / file).write_text(after)
        assert trained_anew(there(*distill)) == ["1", "2"]
        fault.seen = f"`{line}`"


# --- numbers ----------------------------------------------------------------------------------------------------------


def measure_scratch(stage: Runner, folder: Path, *words: str) -> None:
    """The other method, of the same seeds, which the table needs."""
    for name in ("distill", "evaluate"):
        stage.end(folder, name, *words, "method=scratch")


def rows_of(folder: Path, seed: int) -> list[str]:
    return (folder / f"{RUN}/seed-{seed}/history.csv").read_text().splitlines()[1:]


@pytest.mark.parametrize("at", [(20, 2, 2), (54, 3, 18)], ids=str)
@pytest.mark.parametrize("fuse_seeds", ["always", "never"])
def test_a_loss_that_is_not_finite_ends_its_seed_alone(
    fuse_seeds: str, at: tuple[int, int, int], stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    step, epoch, within = at  # the step of all, and which of its epoch it is
    words = ["suites.digits.seeds=[1,2,3]", f"run.fuse_seeds={fuse_seeds}"]
    sound, struck = (copied(states, "distill", tmp_path / name) for name in ("sound", "struck"))
    measure_scratch(stage, struck, *words)
    together = [*words, "--processes", "1"]
    stage.end(sound, "distill", *together)
    with trial("a loss that is not finite, in one of three seeds") as fault:
        assert stage(struck, "distill", *together, fault=f"poison tripletkd.training.trainer:Trainer.step {step}") == 0
        why = json.loads((struck / RUN / "seed-2/record.json").read_text())["failed"]
        assert re.fullmatch(rf"(ce|triplet) is (nan|inf) at epoch {epoch}, step {within}", why)
        assert f"seed 2 failed: {why}; the other seeds go on" in stage.printed()
        for other in (1, 3):
            file = f"{RUN}/seed-{other}/weights.safetensors"
            assert (struck / file).read_bytes() == (sound / file).read_bytes()
            assert rows_of(struck, other) == rows_of(sound, other)
        assert len(rows_of(struck, 2)) == epoch - 1
        for name in ("evaluate", "tabulate"):
            stage.end(struck, name, *words)
        [row] = [r for r in json.loads((struck / "results/digits/table.json").read_text())["rows"] if r["failed"]]
        assert (row["method"], row["n"], row["failed"]) == ("triplet", 2, {"2": why})
        assert f"- triplet, seed 2: {why}" in (struck / "results/digits/table.md").read_text()
        fault.seen = f"`seed 2 failed: {why}; the other seeds go on`, and a line below the table"


def test_a_method_whose_every_seed_fails_stops_the_pipeline(
    stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    folder, wild = copied(states, "distill", tmp_path / "folder"), "suites.digits.student.recipe.optimizer.lr=1e30"
    with trial("a loss that is not finite, in every seed") as fault:
        for name in ("distill", "distill", "evaluate"):  # also the second time: no checkpoint of it is left
            assert stage(folder, name, wild) == 1
            assert "every seed failed: seed 1: " in stage.error() and "seed 2: " in stage.error()
        fault.seen = f"`{stage.error()[:150]}...`"


# --- endurance --------------------------------------------------------------------------------------------------------


def test_five_thousand_epochs(stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    """Memory is flat, a checkpoint grows by its history, a row an epoch and seed, and a file gets no bar."""
    memory, size = {}, {}
    for epochs in (500, 5000):
        folder = copied(states, "fetch", tmp_path / str(epochs))
        stage.end(folder, "fetch", "++suites.digits.data.per_class=1")
        words = [f"suites.digits.recipe.epochs={epochs}", "suites.digits.evaluate_every=100"]
        late = "kill tripletkd.training.run_record:write_seeds 1"
        code = stage(folder, "train_teacher", *words, "run.checkpoint_minutes=0.05", fault=late)
        assert code == -signal.SIGKILL and not stage.printed(), stage.printed()
        memory[epochs] = stage.most_kib
        size[epochs] = checkpoint_of(folder, "teacher").stat().st_size
    stage.end(folder, "train_teacher", *words)
    with trial("5,000 epochs in one run") as fault:
        a_row = (size[5000] - size[500]) / 4500
        grown = (memory[5000] - memory[500]) / 1024
        assert 50 < a_row < 300
        assert grown < 20
        assert len((folder / "runs/digits/test/teacher/seed-0/history.csv").read_text().splitlines()) == 5001
        fault.seen = f"{grown:.0f} MiB more memory than 500 epochs; the checkpoint grows by {a_row:.0f} bytes an epoch"


def shown(printed: str, columns: int) -> list[str]:
    """The lines of a terminal after all of that, and those that ever stood there."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\r|\n|\x1b\[A|\x1b\[[\d;]*[A-Za-z]|.", printed):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
        elif part == "\x1b[A":
            row = max(row - 1, 0)
        elif not part.startswith("\x1b"):
            if column == columns:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append("")
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(("name", "columns"), [("train_teacher", 80), ("distill", 200), ("ablate", 40)])
def test_the_bar_stays_on_one_line_of_a_terminal(
    name: str, columns: int, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(states, name, tmp_path / "folder")
    with trial("a terminal of 40, 80 or 200 columns") as fault:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        whose = "" if name == "train_teacher" else "student."
        process = stage.start(folder, name, f"suites.digits.{whose}recipe.epochs=40", to=theirs)
        os.close(theirs)
        printed = b""
        with suppress(OSError):  # Linux's way to say that the other end is closed
            while part := os.read(ours, 65536):
                printed += part
        os.close(ours)
        assert process.wait() == 0, printed
        text = printed.decode()
        lines = [line for line in shown(text, columns) if line]
        bars = [line for line in lines if line.startswith("digits/")]
        assert text.count("%|") > 10 * len(bars)  # it moved
        assert len(bars) == (2 if name == "ablate" else 1), lines
        assert lines == bars
        assert all("100%|" in bar and len(bar) <= columns for bar in bars)
        fault.seen = f"a bar for each run, for example `{bars[0]}`"


def test_sixty_four_seeds(stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(states, "distill", tmp_path / "folder")
    words = f"suites.digits.seeds={list(range(1, 65))}".replace(" ", "")
    with trial("64 seeds at once") as fault:
        measure_scratch(stage, folder, words)
        for name in ("distill", "evaluate", "tabulate"):
            stage.end(folder, name, words)
        rows = json.loads((folder / "results/digits/table.json").read_text())["rows"]
        assert [row["n"] for row in rows] == [1, 64, 64]
        fault.seen = "a table with n = 64"
