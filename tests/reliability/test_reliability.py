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
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import faults
import pytest
import yaml
from conftest import ROOT, trial
from shrunk import ENVIRONMENT, GIT, change, clone, command, lock, shrink, stages_run, with_faults

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
RUN, TEACHER = "runs/digits/test/triplet", "runs/digits/test/teacher"
MEASURED, VARIANTS = "results/digits/measured", "runs/digits/validation/ablations/margin"
TABLES = ("table.md", "table.csv", "table.json", "summary.json", "curves.csv", "report.html", "figures")
OUTPUTS = {
    "fetch": ["data/digits"],
    "train_teacher": [TEACHER, f"{MEASURED}/test/teacher.json"],
    "distill": [RUN],
    "evaluate": [f"{MEASURED}/test/triplet{end}" for end in (".json", ".csv", "_map.csv")],
    "tabulate": [f"results/digits/{name}" for name in TABLES],
    "ablate": [f"{VARIANTS}/margin-1", f"{VARIANTS}/margin-5", f"{MEASURED}/validation/ablations/margin.json"],
    "export": ["exports/digits/teacher"],
}
STEP = "tripletkd.training.trainer:Trainer.step"  # 18 an epoch, of three, for the teacher and for both seeds together
MOMENTS = {  # between two changes of a file, after which much would have to be computed again
    "fetch": ["tripletkd.data.dataset:save 1"],
    "train_teacher": [f"{STEP} 30", "tripletkd.training.run_record:write_seeds 1"],
    "distill": [f"{STEP} 30", "tripletkd.training.run_record:write_log 2"],
    "evaluate": ["tripletkd.evaluation.measure:measure 1"],
    "ablate": [f"{STEP} 60", "tripletkd.evaluation.measurement:write_ablation 1"],
    "export": ["tripletkd.export:verify 1"],
    "tabulate": ["tripletkd.reporting.tables:markdown 1"],
}
OFTEN = "run.checkpoint_minutes=0.000001"
UNDISTURBED = "nothing; the same command again ends with the undisturbed bytes"

Process = subprocess.Popen[str]


class Runner:
    """Runs stages in processes forked from one that has imported what they need, with no MLflow."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        self.variables = {"PYTHONPATH": str(ROOT)}  # also of what a stage starts
        words, pipe, variables = [sys.executable, faults.__file__], subprocess.PIPE, ENVIRONMENT | self.variables
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=variables)

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
        print(json.dumps(request), file=self.process.stdin, flush=True)
        code, self.most_kib = map(int, self.process.stdout.readline().split())
        return code

    def end(self, folder: Path, stage: str, *words: str) -> str:
        """Run a stage that must succeed; both of its outputs as one text."""
        assert self(folder, stage, *words) == 0, self.printed()
        return self.printed()

    def start(self, folder: Path, name: str, *words: str, before: Sequence[str] = (), to: int | None = None) -> Process:
        """A stage in a process of its own, as a person starts it."""
        words = ("python", "-m", f"stages.{name}", "suite=digits", "run.ablations=[]", *STAGES[name], *words)
        pipe, variables = to or subprocess.PIPE, ENVIRONMENT | self.variables
        return subprocess.Popen([*before, *words], cwd=folder, env=variables, stdout=pipe, stderr=pipe, text=True)

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


class States:
    """The folder of a pipeline as it is before each stage and at the "end", and another one of EARLIER at the end."""

    def __init__(self, stage: Runner, top: Path) -> None:
        self.stage, self.top = stage, top
        self.earlier = self.run_all("earlier", *EARLIER)
        self.end = self.run_all("end")
        self.tmp = top

    def run_all(self, name: str, *words: str) -> Path:
        folder = self.top / name
        folder.mkdir()
        for file in ("params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / file, folder)
        shrink(folder)
        for stage in STAGES:
            for other in {"evaluate": ("distill", "evaluate"), "ablate": ("train_teacher",)}.get(stage, ()):
                self.stage.end(folder, other, *words, "split=validation" if stage == "ablate" else "method=scratch")
            if name == "end":
                shutil.copytree(folder, self.top / stage)
            self.stage.end(folder, stage, *words)
        return folder

    def before(self, stage: str, name: str = "folder") -> Path:
        """A copy of the folder before a stage."""
        return Path(shutil.copytree(self.top / stage, self.tmp / name))

    def with_earlier_outputs(self, stage: str, name: str = "folder") -> Path:
        """A copy of the folder before a stage, and in the place of its outputs those of the earlier run."""
        folder = self.before(stage, name)
        for output in OUTPUTS[stage]:
            (folder / output).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (self.earlier / output).is_dir() else shutil.copy
            copy(self.earlier / output, folder / output)
        return folder

    def assert_whole(self, stage: str, folder: Path) -> None:
        """Each output is the earlier one, the new one or, if it is a folder, not there; of a run, each seed's."""
        for output in OUTPUTS[stage]:
            for part in [f"{output}/{path.name}" for path in (self.end / output).glob("seed-*")] or [output]:
                found, earlier = contents(folder, part), contents(self.earlier, part)
                is_gone = found == {} and (self.earlier / part).is_dir()
                assert is_gone or found in (earlier, contents(self.end, part)), (part, list(found))

    def assert_undisturbed(self, stage: str, folder: Path) -> None:
        """The outputs have the undisturbed bytes, every seed has its log, and nothing else is left."""
        after = {file: content for file, content in contents(folder).items() if file.startswith(tuple(OUTPUTS[stage]))}
        assert after == contents(self.end, *OUTPUTS[stage])
        assert not left_over(folder)
        for record in [path for output in OUTPUTS[stage] for path in (folder / output).glob("seed-*/record.json")]:
            log = folder / "logs" / record.parent.relative_to(folder / "runs").with_suffix(".json")
            assert read_log(log, record).get("seconds"), log

    def assert_goes_on(self, stage: str, folder: Path) -> None:
        """After a stage died its outputs are whole, and the same command ends with the undisturbed bytes."""
        self.assert_whole(stage, folder)
        self.stage.end(folder, stage, OFTEN)
        self.assert_undisturbed(stage, folder)


@pytest.fixture(scope="module")
def made(stage: Runner, tmp_path_factory: pytest.TempPathFactory) -> States:
    return States(stage, tmp_path_factory.mktemp("states"))


@pytest.fixture
def states(made: States, tmp_path: Path) -> States:
    made.tmp = tmp_path
    return made


def contents(folder: Path, *below: str) -> dict[str, bytes]:
    """Of all files that a run leaves, but for its log."""
    tops = [folder / name for name in below or ("data", "runs", "results", "checkpoints", "exports")]
    files = [file for top in tops for file in ([top] if top.is_file() else sorted(top.rglob("*"))) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name != "log.json"}


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def left_over(folder: Path) -> list[Path]:
    """What no stage may leave once it has ended well: parts of files, locks, checkpoints, what follows a training."""
    # But for a seed's lock: who died when it was finished leaves it, and nobody asks for that seed's again.
    found = [path for path in (folder / ".locks").glob("*") if ".seed-" not in path.name]
    # Seeds that were replaced are kept in folders of their own
    found += [
        path for path in (folder / "checkpoints").rglob("*") if path.is_file() and "seed-" not in path.parent.name
    ]
    return [*found, *(path for path in folder.rglob("*") if ".partial" in path.name or ".live." in path.name)]


def checkpoint_of(folder: Path, name: str) -> Path:
    """The only one of a run."""
    [path] = (folder / "checkpoints/digits/test" / name).glob("*.safetensors")
    return path


def trained_anew(printed: str) -> list[str]:
    """The seeds that stood there and were not kept."""
    found = re.findall(rf"^{RUN}, seeds ([\d, ]+): .*; trained anew$", printed, re.MULTILINE)
    return [seed for seeds in found for seed in seeds.split(", ")]


# --- killed anywhere --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_killed_before_any_change_of_a_file(name: str, stage: Runner, states: States) -> None:
    """Before the first, the second, ... until it is not killed any more."""
    for n in itertools.count(1, 4 if name == "ablate" else 1):  # which trains as distill does
        folder = states.with_earlier_outputs(name, str(n))
        if (code := stage(folder, name, OFTEN, fault=f"kill files {n}")) == 0:
            break
        with trial(f"kill -9 in {name}, before each of its changes of a file or folder") as fault:
            assert code == -signal.SIGKILL, stage.printed()
            states.assert_goes_on(name, folder)
            fault.seen = UNDISTURBED
        shutil.rmtree(folder)
    assert n > 5, "hardly a file was written: the fault was not injected"


def test_killed_while_seeds_are_added_to_finished_ones(stage: Runner, states: States) -> None:
    words, sound = ["suites.digits.seeds=[1,2,3,4]"], states.before("evaluate", "sound")
    earlier = contents(sound, RUN)
    stage.end(sound, "distill", *words)
    whole = contents(sound, RUN)
    assert earlier.items() < whole.items()
    for n in itertools.count(1, 2):
        folder = states.before("evaluate", str(n))
        if (code := stage(folder, "distill", *words, fault=f"kill files {n}")) == 0:
            break
        with trial("kill -9 while seeds are added to finished ones, before every other change of a file") as fault:
            assert code == -signal.SIGKILL, stage.printed()
            left = {file: content for file, content in contents(folder, RUN).items() if ".partial" not in file}
            assert earlier.items() <= left.items() <= whole.items()
            printed = stage.end(folder, "distill", *words)
            assert "seeds 1, 2" in printed and not trained_anew(printed)
            assert contents(folder, RUN) == whole and not left_over(folder)
            fault.seen = "nothing; the same command again trains what is missing and no more"
        shutil.rmtree(folder)
    assert n > 10


@pytest.mark.parametrize("name", STAGES)
def test_a_file_that_ends_midway(name: str, stage: Runner, states: States) -> None:
    """The kernel refuses to write beyond a byte of whatever file is the first to be longer, or kills who tries."""
    for kind, fault, code in (("refused", "", 1), ("killed", "kill", -signal.SIGXFSZ)):
        folder = states.with_earlier_outputs(name, kind)
        with trial(f"no room for a file, or killed at a byte partway through it: {kind}") as seen:
            assert stage(folder, name, OFTEN, fault=fault, bytes_a_file=1500) == code, stage.printed()
            seen.seen = UNDISTURBED
            if not fault:
                seen.seen = f"`{stage.error()}`"
                assert re.match(r"error: [a-z]+/digits\S*: File too large", stage.error())
                assert not [file for file in folder.rglob("*") if ".partial" in file.name]
            states.assert_goes_on(name, folder)


def cloned(folder: Path) -> Path:
    clone(folder)
    change(folder, "run", "export", value=["teacher"])
    change(folder, "run", "checkpoint_minutes", value=0.000001)
    return folder


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dvc repro` makes undisturbed, committed."""
    folder = cloned(tmp_path_factory.mktemp("repeated") / "clone")
    command(folder, "dvc", "repro")
    command(folder, "git", "add", "-A")
    command(folder, *GIT, "commit", "-qm", "results")
    return folder


def assert_repeats(folder: Path, repeated: Path) -> None:
    assert not stages_run(command(folder, "dvc", "repro"))
    assert lock(folder) == lock(repeated)
    assert contents(folder, "results", "data") == contents(repeated, "results", "data")


def test_dvc_repro_killed_again_and_again_ends_with_the_undisturbed_lock(repeated: Path, tmp_path: Path) -> None:
    """Each time it goes on and is stopped a little later: the stage alone, DVC with it, or both by Ctrl-C."""
    folder, path = cloned(tmp_path / "Ünïcode 学生 and spaces"), with_faults(tmp_path)
    moments = [(name, moment, "kill") for name in MOMENTS for moment in MOMENTS[name]]
    moments[1::2] = [(name, moment, "crash") for name, moment, _ in moments[1::2]]
    moments.insert(3, ("distill", f"{STEP} 25", "interrupt"))
    for name, moment, action in moments:
        how = {"kill": "kill -9 of the stage", "crash": "kill -9 of DVC and the stage", "interrupt": "Ctrl-C"}[action]
        with trial(f"dvc repro: {how}") as fault:
            variables = {"PYTHONPATH": path, "FAULT": f"{action} {moment}", "FAULT_IN": f"stages.{name}"}
            process = at_once(folder, ["dvc", "repro", name], **variables)
            printed, _ = process.communicate()
            fault.seen = "the stage that failed, or nothing; the next `dvc repro` goes on, to the undisturbed dvc.lock"
            if action == "interrupt":
                assert "Traceback" not in printed
                fault.seen = f"`{next(line for line in printed.splitlines() if line.startswith('paused: '))}`"
                assert "stopped at epoch 2 of 3 (SIGINT); the same command goes on from checkpoints/" in fault.seen
            else:
                assert process.returncode == (-signal.SIGKILL if action == "crash" else 255), (moment, printed)
    command(folder, "dvc", "repro")
    assert_repeats(folder, repeated)


# --- twice at once ----------------------------------------------------------------------------------------------------


def at_once(folder: Path, words: Sequence[str], **variables: str) -> Process:
    """A command that is not waited for, both of its outputs as one text."""
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(
        words, cwd=folder, env=ENVIRONMENT | variables, stdout=pipe, stderr=both, text=True, start_new_session=True
    )


def test_two_dvc_repros_at_once_lose_nothing(repeated: Path, tmp_path: Path) -> None:
    folder = cloned(tmp_path / "clone")
    with trial("`dvc repro` twice at once in one folder") as fault:
        fault.seen = "nothing: the later one waits"
        for process in [at_once(folder, ["dvc", "repro"]) for _ in range(2)]:
            printed, _ = process.communicate()
            assert "Traceback" not in printed
            if process.returncode:  # it does not wait, and says so
                said = next(line for line in printed.splitlines() if re.search("lock|does this here", line))
                fault.seen = (
                    f"`{said.replace(f'{folder}/', '')}`, of the later one; the other ends with the undisturbed bytes"
                )
        command(folder, "dvc", "repro")
        assert_repeats(folder, repeated)


def test_two_queued_experiments_at_once_lose_nothing(repeated: Path) -> None:
    before = contents(repeated, "results", "data", "runs")
    with trial("two queued experiments at once") as fault:
        for margin in "12":
            words = ["-S", f"methods.triplet.margin={margin}"]
            command(repeated, "dvc", "exp", "run", "--queue", "--name", f"margin-{margin}", *words)
        command(repeated, "timeout", "600", "dvc", "exp", "run", "--run-all", "--jobs", "2")
        expected, changed = lock(repeated), {f"{name}@digits-triplet" for name in ("distill", "evaluate")}
        for margin in "12":
            commit = command(repeated, "git", "for-each-ref", "--format=%(refname)", f"refs/exps/**/margin-{margin}")
            found = yaml.safe_load(command(repeated, "git", "show", f"{commit.strip()}:dvc.lock"))["stages"]
            told = {name for name in expected if found[name] != expected[name]}
            assert changed <= told <= {*changed, "code", "tabulate@digits"}
            assert found["distill@digits-triplet"]["params"]["params.yaml"]["methods.triplet"]["margin"] == int(margin)
        assert contents(repeated, "results", "data", "runs") == before and lock(repeated) == expected
        fault.seen = "nothing: each has its results, and the folder is as it was"


def ended(process: Process, code: int) -> str:
    """What it says on standard error."""
    _, printed = process.communicate()
    assert process.returncode == code, printed
    return printed.strip()


def wait_for(condition: Callable[[], object], process: Process) -> None:
    """Until it holds, while the process goes on."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_two_processes_at_once_leave_the_undisturbed_bytes(stage: Runner, states: States) -> None:
    """Without a lock they take each other's half-written files away."""
    alone, folder, other = (states.before("distill", name) for name in ("alone", "folder", "other"))
    many_writes = ["suites.digits.student.recipe.epochs=100", OFTEN, "run.fuse_seeds=never", "--processes", "1"]
    stage.end(alone, "distill", *many_writes)
    with trial("a stage started twice, almost simultaneously") as fault:
        first, second = (stage.start(folder, "distill", *many_writes) for _ in range(2))
        first.wait()
        winner, loser = (second, first) if first.returncode else (first, second)
        fault.seen = f"`{ended(loser, 75)}`, of either; the other one leaves the undisturbed bytes"
        assert f".locks/distill.digits.triplet.test: process {winner.pid} does this here already" in fault.seen
        ended(winner, 0)
        assert contents(folder, RUN, "checkpoints") == contents(alone, RUN) and not left_over(folder)
    with trial("`--only-seeds` of two seeds of one run at once") as fault:
        for process in [stage.start(other, "distill", *many_writes, "--only-seeds", seed) for seed in "12"]:
            ended(process, 0)
        assert contents(other, RUN) == contents(alone, RUN) and not left_over(other)
        fault.seen = "nothing: both succeed"


SIDE_BY_SIDE = [
    *("suites.digits.seeds=[1,2,3]", "suites.digits.student.recipe.epochs=20", "run.fuse_seeds=never", OFTEN),
    *("--processes", "2"),
]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_seeds_side_by_side_end_with_the_undisturbed_bytes(how: str, stage: Runner, states: States) -> None:
    sound, folder = (states.before("distill", name) for name in ("sound", "folder"))
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
        assert contents(folder, RUN) == contents(sound, RUN) and not left_over(folder)


# --- no room, no rights, damage, edits --------------------------------------------------------------------------------


def without_rights_of_root() -> list[str]:
    """What a command begins with so that file modes hold for it, as they do for anyone but root."""
    if os.getuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv, or not to be root")
    gone = "-dac_override,-dac_read_search,-fowner"
    return ["setpriv", f"--bounding-set={gone}", f"--inh-caps={gone}"]


def test_a_folder_that_may_be_read_and_not_written(stage: Runner, states: States) -> None:
    name = "train_teacher"
    folder = states.with_earlier_outputs(name)
    before = everything(folder)
    with trial("a folder of someone else, that may be read and not written") as fault:
        command(folder, "chmod", "-R", "a-w", ".")
        printed = ended(stage.start(folder, name, before=without_rights_of_root()), 1)
        fault.seen = f"`{printed}`"
        assert re.match(r"error: (runs|results|checkpoints)\S*: Permission denied; fix that and", printed), printed
        assert everything(folder) == before


READ = [
    *(("train_teacher", f"data/digits/{name}") for name in ("dataset.json", "images.npy", "labels.npy")),
    *(("evaluate", f"{RUN}/seed-1/{name}") for name in ("weights.safetensors", "history.csv", "record.json")),
    ("tabulate", f"{MEASURED}/test/triplet.json"),
    ("ablate", "runs/digits/validation/teacher/seed-0/weights.safetensors"),
]


@pytest.mark.parametrize(("name", "file"), READ)
def test_a_file_that_cannot_be_read_or_is_damaged_is_named(name: str, file: str, stage: Runner, states: States) -> None:
    folder = states.before(name)
    before, content = everything(folder), (folder / file).read_bytes()
    with trial("a file that may not be read") as fault:
        (folder / file).chmod(0)
        printed = ended(stage.start(folder, name, before=without_rights_of_root()), 1)
        (folder / file).chmod(0o644)
        assert re.match(rf"error: {file}: (Permission denied|cannot be read)", printed), printed
        assert everything(folder) == before
        fault.seen = f"`{printed}`"
    a_bit = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]  # of a text DVC's hash tells, and nothing else
    for damaged in (content[: len(content) // 2], b"{}" if file.endswith(".json") else a_bit):
        with trial("a damaged file that a stage reads") as fault:
            (folder / file).write_bytes(damaged)
            assert stage(folder, name) == 1, stage.printed()
            assert str(Path(file).parent) in stage.error()
            fault.seen = f"`{stage.error()[:160]}...`"
            if file.startswith(RUN):
                printed = stage.end(folder, "distill")
                assert trained_anew(printed) == ["1"] and "seeds 2 are there, as asked for" in printed
                stage.end(folder, name)


def test_a_checkpoint_of_other_inputs_is_named_and_left(stage: Runner, states: States) -> None:
    folder, other = states.before("distill"), "suites.digits.student.recipe.optimizer.lr=0.02"
    stage(folder, "distill", OFTEN, other, fault=f"kill {STEP} 50")
    path = checkpoint_of(folder, "triplet")
    before, name = path.read_bytes(), path.relative_to(folder)
    with trial("a checkpoint of other inputs") as fault:
        stage.end(folder, "distill", OFTEN)
        fault.seen = f"`{stage.line('starting anew')}`"
        assert str(name) in fault.seen and checkpoint_of(folder, "triplet").read_bytes() == before
        assert contents(folder, RUN) == contents(states.end, RUN)
        assert f"{name}: going on after epoch 2" in stage.end(folder, "distill", OFTEN, other)


def test_parameters_and_code_that_are_edited_while_a_stage_trains(tmp_path: Path) -> None:
    folder, edited, file = clone(tmp_path / "clone"), tmp_path / "edited", "tripletkd/methods/triplet.py"
    there = partial(command, folder, PYTHONPATH=with_faults(tmp_path), EDITED=str(edited))
    distill = ["python", "-m", "stages.distill", "suite=digits", "method=triplet"]
    for name in ("fetch", "train_teacher"):
        there("python", "-m", f"stages.{name}", "suite=digits")
    params, code = (folder / "params.yaml").read_text(), (folder / file).read_text()

    def during(place: str, before: str, after: str, *words: str, check: bool) -> str:
        """What distill says while whose training a file is edited; it is put back."""
        (edited / place).parent.mkdir(parents=True)
        (edited / place).write_text(after)
        printed = there(*distill, *words, FAULT=f"edit {STEP} 20", FAULT_IN="stages.distill", check=check)
        assert (folder / place).read_text() == after
        (folder / place).write_text(before)
        shutil.rmtree(edited)
        return printed

    with trial("a comment written into the code while a stage trains") as fault:
        assert "error" not in during(file, code, f"# a comment\n{code}", check=True)
        fault.seen = "nothing"
    whole = contents(folder, RUN)
    for place, before, after in (
        (file, code, code.replace("near - far + margin", "near - far - margin")),
        ("params.yaml", params, re.sub("(  triplet:\n(    .*\n)*?    margin:) .*", r"\1 30", params)),
    ):
        with trial(f"{place} edited while a stage trains") as fault:
            printed = during(place, before, after, "--retrain", check=False)
            fault.seen = f"`{next(line for line in printed.splitlines() if line.startswith('error: '))}`"
            assert "changed from " in fault.seen and "while the stage ran. Its results are of what was" in fault.seen
            assert "seeds 1, 2 are there, as asked for" in there(*distill) and contents(folder, RUN) == whole
            (folder / place).write_text(after)
            assert trained_anew(there(*distill)) == ["1", "2"]
            (folder / place).write_text(before)
            there(*distill)


LAUGHS = "a: &a0 [x, x]\n" + "".join(f"a{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
ODD: list[tuple[str, str, str]] = [  # text of params.yaml, what stands there instead, the key that is named if refused
    ("run:\n", f"{LAUGHS}run:\n", "a0[0]: found an alias"),
    ("run:\n", f"x: {'[' * 5000}{']' * 5000}\nrun:\n", "params.yaml"),
    ("device: auto", "device: !!python/object/apply:os.system ['touch owned']", "params.yaml"),
    ("device: auto", "device: ${oc.env:HOME}", "run.device"),
    ("  digits:\n", "  ../../x:\n", "digits"),
    ("epochs: 3", "epochs: 0", "epochs"),
    ("lr: 0.01", "lr: .nan", "lr"),
    ("lr: 0.01", "lr: 1.0e-320", "lr"),  # another run's
    ("seeds:\n    - 1\n    - 2\n", "seeds: [2, 2]\n", "seeds"),
    ("margin: 5", "margin: 5.0", ""),
    ("seeds:\n    - 1\n    - 2\n", "seeds: [2, 1]\n", ""),
    ("about: 'Small", "about: '| <b> 学生 \u2028 Small", ""),
]


@pytest.mark.parametrize(("old", "new", "named"), ODD)
def test_an_odd_value_is_refused_in_one_line_or_tabulated(
    old: str, new: str, named: str, stage: Runner, states: States
) -> None:
    folder = states.before("tabulate")
    path = folder / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1), encoding="utf-8")
    before = everything(folder)
    with trial("an odd value in params.yaml") as fault:
        code = stage(folder, "tabulate")
        assert code == (1 if named else 0), stage.printed()
        if named:
            assert named in stage.error() and len(stage.printed().splitlines()) == 1
            assert not [file for file, content in everything(folder).items() if before.get(file) != content]
        else:
            rows = json.loads((folder / "results/digits/table.json").read_text())["rows"]
            assert [row["n"] for row in rows] == [1, 2, 2]
        fault.seen = "one line, of the key and what was found, or the table of a valid one"


# --- numbers, endurance -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "epoch", "within"), [(20, 2, 2), (54, 3, 18)])
def test_a_loss_that_is_not_finite_ends_its_seed_alone(
    step: int, epoch: int, within: int, stage: Runner, states: States
) -> None:
    words = ["suites.digits.seeds=[1,2,3]"]
    sound, struck = (states.before("distill", name) for name in ("sound", "struck"))
    for name in ("distill", "evaluate"):
        stage.end(struck, name, *words, "method=scratch")  # which the table needs
    together = [*words, "--processes", "1"]
    stage.end(sound, "distill", *together)
    with trial("a loss that is not finite, in one of three seeds") as fault:
        assert stage(struck, "distill", *together, fault=f"poison {STEP} {step}") == 0
        why = json.loads((struck / RUN / "seed-2/record.json").read_text())["failed"]
        assert re.fullmatch(rf"(ce|triplet) is (nan|inf) at epoch {epoch}, step {within}", why)
        assert f"seed 2 failed: {why}; the other seeds go on" in stage.printed()
        for file in [f"{RUN}/seed-{n}/{name}" for n in (1, 3) for name in ("weights.safetensors", "history.csv")]:
            assert (struck / file).read_bytes() == (sound / file).read_bytes()
        assert len((struck / RUN / "seed-2/history.csv").read_text().splitlines()) == epoch  # with its header
        for name in ("evaluate", "tabulate"):
            stage.end(struck, name, *words)
        [row] = [r for r in json.loads((struck / "results/digits/table.json").read_text())["rows"] if r["failed"]]
        assert (row["method"], row["n"], row["failed"]) == ("triplet", 2, {"2": why})
        assert f"- triplet, seed 2: {why}" in (struck / "results/digits/table.md").read_text()
        fault.seen = f"`seed 2 failed: {why}; the other seeds go on`, and a line below the table"


def test_five_thousand_epochs(stage: Runner, states: States) -> None:
    """Memory is flat, a checkpoint grows by its history, a row an epoch and seed, and a file gets no bar."""
    memory, size = {}, {}
    for epochs in (500, 5000):
        folder = states.before("fetch", str(epochs))
        few = "++suites.digits.data.per_class=1"
        stage.end(folder, "fetch", few)
        words = [few, f"suites.digits.recipe.epochs={epochs}", "suites.digits.evaluate_every=100"]
        late = "kill tripletkd.training.run_record:write_seeds 1"
        assert stage(folder, "train_teacher", *words, "run.checkpoint_minutes=0.05", fault=late) == -signal.SIGKILL
        assert not stage.printed()
        memory[epochs], size[epochs] = stage.most_kib, checkpoint_of(folder, "teacher").stat().st_size
    stage.end(folder, "train_teacher", *words)
    with trial("5,000 epochs in one run") as fault:
        a_row, grown = (size[5000] - size[500]) / 4500, (memory[5000] - memory[500]) / 1024
        assert 50 < a_row < 300 and grown < 20
        assert len((folder / TEACHER / "seed-0/history.csv").read_text().splitlines()) == 5001
        fault.seen = f"{grown:.0f} MiB more memory than 500 epochs; the checkpoint grows by {a_row:.0f} bytes an epoch"


def test_the_bar_stays_on_one_line_of_a_terminal(stage: Runner, states: States) -> None:
    folder, columns = states.before("distill"), 60
    with trial("a narrow terminal") as fault:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        process = stage.start(folder, "distill", "suites.digits.student.recipe.epochs=40", to=theirs)
        os.close(theirs)
        printed = b""
        with suppress(OSError):  # Linux's way to say that the other end is closed
            while part := os.read(ours, 65536):
                printed += part
        os.close(ours)
        assert process.wait() == 0, printed
        [line] = printed.decode().strip().split("\n")
        drawn = line.split("\r")
        assert len(drawn) > 10 and max(map(len, drawn)) <= columns and "\x1b" not in line
        assert drawn[-1].startswith("digits/") and "100%|" in drawn[-1]
        fault.seen = f"a bar for each run, for example `{drawn[-1]}`"
