"""Whatever happens to a run: what was finished stays finished, what is wrong is named, no number is silently wrong.

Each attempt is counted (conftest.trial); `make reliability` runs all of it and writes docs/reliability.md.
"""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from conftest import ROOT, trial
from shrunk import ENVIRONMENT, shrink

pytestmark = pytest.mark.slow

STAGES = {
    "fetch": [],
    "train_teacher": [],
    "distill": ["method=triplet"],
    "evaluate": ["method=triplet"],
    "tabulate": [],
}  # fmt: skip
# Other outputs than those of the shrunk parameters: a half-replaced one is then told from a whole one.
EARLIER = ["suites.digits.data.per_class=30", "suites.digits.student.recipe.lr=0.02"]
OUTPUTS = {
    "fetch": ["data/digits"],
    "train_teacher": ["runs/digits/teacher", "results/digits/measured/teacher.json"],
    "distill": ["runs/digits/triplet"],
    "evaluate": ["results/digits/measured/triplet.json", "results/digits/measured/triplet.csv"],
    "tabulate": [
        f"results/digits/{name}"
        for name in ("table.md", "table.csv", "table.json", "summary.json", "curves.csv", "curves.png")
    ],
}

Contents = dict[str, bytes]


class Runner:
    """Runs stages in processes forked from one that has imported what they need, with no MLflow."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        (folder / "mlflow.py").write_text("raise ImportError('no MLflow in this test')\n")
        self.variables = {"PYTHONPATH": str(folder)}
        self.process = subprocess.Popen(
            [sys.executable, faults.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        )

    def __call__(self, folder: Path, stage: str, *words: str, fault: str = "", bytes_a_file: int = 0) -> int:
        """Its exit status; -9 if it was killed."""
        assert self.process.stdin and self.process.stdout
        words = ("suite=digits", *STAGES[stage], *words)
        request = {
            "folder": str(folder),
            "stage": stage,
            "words": words,
            "output": str(self.output),
            "variables": self.variables,
            "fault": fault,
            "bytes_a_file": bytes_a_file,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def printed(self) -> str:
        return self.output.read_text()

    def error(self) -> str:
        """The one line that a person gets."""
        lines = [line for line in self.printed().splitlines() if not line.startswith("warning: not logged")]
        assert lines and lines[-1].startswith("error: "), self.printed()
        assert "Traceback" not in self.printed()
        return lines[-1]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("runner"))
    with runner.process:
        yield runner
        assert runner.process.stdin
        runner.process.stdin.close()


def contents(folder: Path, *below: str) -> Contents:
    """Of all files that a run leaves, but for its log."""
    tops = [folder / name for name in below or ("data", "runs", "results", "checkpoints")]
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
                assert stage(folder, step, *words, "method=scratch") == 0, stage.printed()
        shutil.copytree(folder, states[name])
        assert stage(folder, name, *words) == 0, stage.printed()
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


def with_earlier_outputs(name: str, states: dict[str, Path], earlier: Path, folder: Path) -> Path:
    """The inputs of a stage, and in the place of its outputs those of an earlier run."""
    shutil.copytree(states[name], folder)
    for output in OUTPUTS[name]:
        (folder / output).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (earlier / output).is_dir() else shutil.copy
        copy(earlier / output, folder / output)
    return folder


def assert_whole(name: str, states: dict[str, Path], earlier: Path, folder: Path) -> None:
    """Each output of a stage is the earlier one, the new one or, if it is a folder, not there; never a part."""
    for output in OUTPUTS[name]:
        found = contents(folder, output)
        accepted = [contents(earlier, output), contents(states["end"], output)]
        assert found in accepted or (found == {} and (earlier / output).is_dir()), (output, list(found))


# --- killed anywhere --------------------------------------------------------------------------------------------------

MOMENTS = {
    "fetch": ["tripletkd.sources:digits 1", "tripletkd.data:save 1", "tripletkd.tracking:Logger._send 1"],
    "train_teacher": [
        *(f"tripletkd.train:Trainer.step {n}" for n in (1, 17, 18, 19, 40, 54)),
        *(f"tripletkd.checkpoint:Checkpoint.save {n}" for n in (1, 2, 3)),
        "tripletkd.record:write 1",
        "tripletkd.record:write_history 1",
        "tripletkd.evaluate:measure 1",
        "tripletkd.tracking:Logger._send 1",
        "tripletkd.checkpoint:Checkpoint.remove 1",
    ],
    "distill": [
        *(f"tripletkd.train:Trainer.step {n}" for n in (1, 5, 18, 19, 36, 54)),
        *(f"tripletkd.checkpoint:Checkpoint.save {n}" for n in (1, 2, 3)),
        "tripletkd.record:write 1",
        "tripletkd.record:write_history 1",
        "tripletkd.tracking:Logger._send 1",
        "tripletkd.checkpoint:Checkpoint.remove 1",
    ],
    "evaluate": [
        "tripletkd.data:load 1",
        "tripletkd.record:read 1",
        "tripletkd.record:Record.load_networks 2",
        "tripletkd.evaluate:measure 1",
        "tripletkd.record:write_history 1",
    ],
    "tabulate": [
        *(f"tripletkd.report:{name} 1" for name in ("rows", "verdicts", "curves", "markdown", "plot_curves")),
        "tripletkd.tracking:Logger._send 1",
    ],
}


def assert_goes_on(name: str, stage: Runner, states: dict[str, Path], earlier: Path, folder: Path) -> None:
    """After a stage died: its outputs are whole, and the same command ends with the undisturbed bytes and no others."""
    assert_whole(name, states, earlier, folder)
    assert stage(folder, name, "run.checkpoint_minutes=0.000001") == 0, stage.printed()
    after = {file: content for file, content in contents(folder).items() if file.startswith(tuple(OUTPUTS[name]))}
    assert after == contents(states["end"], *OUTPUTS[name])
    assert not [file for file in folder.rglob("*") if ".partial" in file.name]
    assert not contents(folder, "checkpoints")


@pytest.mark.parametrize("name", STAGES)
def test_killed_before_any_change_of_a_file(
    name: str, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    """Before the first, the second, ... until it is not killed any more."""
    for n in range(1, 100):
        folder = with_earlier_outputs(name, states, earlier, tmp_path / str(n))
        code = stage(folder, name, "run.checkpoint_minutes=0.000001", fault=f"kill files {n}")
        if code == 0:
            break
        with trial(f"kill -9 in {name}, before each of its changes of a file or folder") as fault:
            assert code == -signal.SIGKILL, stage.printed()
            assert_goes_on(name, stage, states, earlier, folder)
            fault.seen = "nothing; the same command again ends with the undisturbed bytes"
    assert n > 5, "hardly a file was written: the fault was not injected"


@pytest.mark.parametrize(("name", "moment"), [(name, moment) for name in MOMENTS for moment in MOMENTS[name]])
def test_killed_at_a_step_of_the_computation(
    name: str, moment: str, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    folder = with_earlier_outputs(name, states, earlier, tmp_path / "folder")
    with trial(f"kill -9 in {name}, between two steps of its computation") as fault:
        code = stage(folder, name, "run.checkpoint_minutes=0.000001", fault=f"kill {moment}")
        assert code == -signal.SIGKILL, stage.printed()
        assert_goes_on(name, stage, states, earlier, folder)
        fault.seen = "nothing; the same command again ends with the undisturbed bytes"
        if (
            moment.startswith(("tripletkd.record:write", "tripletkd.evaluate", "tripletkd.tracking"))
            and "train" in name
        ):
            assert "going on after epoch 3" in stage.printed()  # what was trained is not trained again


@pytest.mark.parametrize("bytes_a_file", [1, 100, 1000, 5000, 20000, 60000])
@pytest.mark.parametrize("name", STAGES)
def test_killed_in_the_midst_of_writing_a_file(
    name: str, bytes_a_file: int, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    """The kernel ends the process at that byte of whatever file is the first to be longer."""
    folder = with_earlier_outputs(name, states, earlier, tmp_path / "folder")
    code = stage(folder, name, "run.checkpoint_minutes=0.000001", fault="kill", bytes_a_file=bytes_a_file)
    if code == 0:  # no file of this stage is that long
        return
    with trial(f"killed in {name}, at a byte in the midst of a file") as fault:
        assert code == -signal.SIGXFSZ, stage.printed()
        assert_goes_on(name, stage, states, earlier, folder)
        fault.seen = "nothing; the same command again ends with the undisturbed bytes"
