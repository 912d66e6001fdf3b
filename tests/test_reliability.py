"""Whatever happens to a run: what was finished stays finished, what is wrong is named, no number is silently wrong.

Each attempt is counted (conftest.trial); `make reliability` runs all of it and writes docs/reliability.md.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import pytest
from conftest import ROOT, trial
from shrunk import BIN, ENVIRONMENT, clone, command, lock, shrink

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
    "train_teacher": ["runs/digits/test/teacher", "results/digits/measured/test/teacher.json"],
    "distill": ["runs/digits/test/triplet"],
    "evaluate": [f"results/digits/measured/test/triplet{end}" for end in (".json", ".csv", "_map.csv")],
    "tabulate": [
        f"results/digits/{name}"
        for name in ("table.md", "table.csv", "table.json", "summary.json", "curves.csv", "report.html", "figures")
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
        words = ("suite=digits", "run.ablations=[]", *STAGES[stage], *words)
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
        code, self.most_kib = map(int, self.process.stdout.readline().split())
        return code

    def printed(self) -> str:
        return self.output.read_text()

    def error(self) -> str:
        """The one line that a person gets."""
        lines = [line for line in self.printed().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in self.printed(), self.printed()
        return lines[0]


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
        "tripletkd.provenance:write_csv 1",
        "tripletkd.evaluate:measure 1",
        "tripletkd.tracking:Logger._send 1",
        "tripletkd.checkpoint:Checkpoint.remove 1",
    ],
    "distill": [
        *(f"tripletkd.train:Trainer.step {n}" for n in (1, 5, 18, 19, 36, 54)),
        *(f"tripletkd.checkpoint:Checkpoint.save {n}" for n in (1, 2, 3)),
        "tripletkd.record:write 1",
        "tripletkd.provenance:write_csv 1",
        "tripletkd.tracking:Logger._send 1",
        "tripletkd.checkpoint:Checkpoint.remove 1",
    ],
    "evaluate": [
        "tripletkd.data:load 1",
        "tripletkd.record:read 1",
        "tripletkd.record:Record.load_networks 2",
        "tripletkd.evaluate:measure 1",
        "tripletkd.provenance:write_csv 1",
    ],
    "tabulate": [
        *(
            f"tripletkd.{name} 1"
            for name in ("report:rows", "report:curves", "tables:markdown", "page:pictures", "page:html")
        ),
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


def copied(states: dict[str, Path], name: str, folder: Path) -> Path:
    return Path(shutil.copytree(states[name], folder))


def with_faults(folder: Path) -> str:
    """A PYTHONPATH with which FAULT and FAULT_IN work in every Python process."""
    (folder / "sitecustomize.py").write_text("import faults\nfaults.install_from_environment()\n")
    return os.pathsep.join(map(str, (folder, ROOT / "tests")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dvc repro in a clone, on a path with spaces and letters of other alphabets."""
    folder = clone(tmp_path_factory.mktemp("Ünïcode 学生 and spaces") / "a clone")
    with trial("a clone on a path with spaces and non-ASCII letters") as fault:
        command(folder, "dvc", "repro")
        fault.seen = "nothing"
    return folder


DVC_FAULTS = [
    ("kill", "tripletkd.data:save 1", "stages.fetch"),
    ("crash", "files 2", "stages.fetch"),
    ("crash", "tripletkd.train:Trainer.step 30", "stages.train_teacher"),
    ("kill", "tripletkd.evaluate:measure 1", "stages.train_teacher"),
    ("kill", "tripletkd.provenance:write_csv 1", "method=scratch"),
    ("crash", "tripletkd.checkpoint:Checkpoint.save 1", "method=triplet"),
    ("crash", "tripletkd.tracking:Logger._send 1", "stages.distill"),
    ("kill", "tripletkd.evaluate:measure 1", "stages.evaluate"),
    ("crash", "tripletkd.provenance:write_csv 1", "stages.evaluate"),
    ("crash", "tripletkd.page:html 1", "stages.tabulate"),
    ("kill", "tripletkd.tracking:Logger._send 1", "stages.tabulate"),
]


def repro(folder: Path, path: str, fault: str, where: str) -> tuple[int, str]:
    """dvc repro in a process group of its own, with a fault."""
    done = subprocess.run(
        ["dvc", "repro"],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": path, "FAULT": fault, "FAULT_IN": where},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        start_new_session=True,
    )
    return done.returncode, done.stdout


def test_dvc_repro_killed_again_and_again_ends_with_the_undisturbed_lock(undisturbed: Path, tmp_path: Path) -> None:
    """Each time it goes on and is killed a little later: the stage alone, or all there is, DVC among it."""
    folder, path = clone(tmp_path / "clone"), with_faults(tmp_path)
    for action, moment, where in DVC_FAULTS:
        with trial(f"dvc repro: kill -9 of {'a stage' if action == 'kill' else 'DVC and its stage at once'}") as fault:
            code, printed = repro(folder, path, f"{action} {moment}", where)
            assert code == (-signal.SIGKILL if action == "crash" else 255), printed
            fault.seen = "the stage that failed, or nothing; the next `dvc repro` goes on from there"
    command(folder, "dvc", "repro")
    assert lock(folder) == lock(undisturbed)
    assert contents(folder, "results", "data") == contents(undisturbed, "results", "data")


@pytest.mark.parametrize("where", ["stages.train_teacher", "method=triplet"])
def test_ctrl_c_leaves_a_checkpoint_and_a_line_on_how_to_go_on(where: str, undisturbed: Path, tmp_path: Path) -> None:
    folder, path = clone(tmp_path / "clone"), with_faults(tmp_path)
    with trial("dvc repro: Ctrl-C in the midst of an epoch") as fault:
        code, printed = repro(folder, path, "interrupt tripletkd.train:Trainer.step 25", where)
        assert code != 0
        name = "teacher" if "teacher" in where else "triplet"
        checkpoint = f"checkpoints/digits/test/{name}.safetensors"
        line = f"error: stopped at epoch 2 of 3 (SIGINT); the same command goes on from {checkpoint}"
        assert printed.count(line) == 1 and "Traceback" not in printed, printed
        assert (folder / checkpoint).exists()
        assert f"{checkpoint}: going on after epoch 2" in command(folder, "dvc", "repro")
        assert lock(folder) == lock(undisturbed)
        fault.seen = f"`{line}`"


def test_of_two_dvc_repro_at_once_the_second_says_who_holds_the_lock(undisturbed: Path) -> None:
    with trial("two dvc repro at once") as fault:
        before = lock(undisturbed)
        words = ["dvc", "repro", "--force"]
        with subprocess.Popen(words, cwd=undisturbed, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout
            while "Running stage" not in first.stdout.readline():
                pass
            printed = command(undisturbed, "dvc", "repro", check=False)
            first.stdout.read()
        assert str(first.pid) in printed, printed
        assert first.returncode == 0 and lock(undisturbed) == before
        line = next(line for line in printed.splitlines() if str(first.pid) in line)
        fault.seen = f"`{line.strip().replace(f'{BIN}/', '')}`"


# --- no room, no rights, damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bytes_a_file", [400, 1000, 5000, 20000])  # what is printed is a file too
@pytest.mark.parametrize("name", STAGES)
def test_no_room_for_a_file(
    name: str, bytes_a_file: int, stage: Runner, states: dict[str, Path], earlier: Path, tmp_path: Path
) -> None:
    folder = with_earlier_outputs(name, states, earlier, tmp_path / "folder")
    code = stage(folder, name, "run.checkpoint_minutes=0.000001", bytes_a_file=bytes_a_file)
    if code == 0:  # no file of this stage is that long
        return
    with trial("no room for a file (a limit of its size)") as fault:
        assert code == 1
        fault.seen = f"`{stage.error()}`"
        assert re.match(r"error: (data|runs|results|checkpoints)/digits\S*: File too large; mend that", stage.error())
        assert not [file for file in folder.rglob("*") if ".partial" in file.name]
        assert_goes_on(name, stage, states, earlier, folder)


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
        ("train_teacher", "runs"),
        ("train_teacher", "checkpoints"),
        ("distill", "runs/digits/test/triplet/weights"),
        ("evaluate", "results"),
        ("tabulate", "results/digits/table.md"),
    ],
)
def test_a_place_that_cannot_be_written(
    name: str, place: str, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    """A file where a folder must be, or a folder where a file must be: no rights that root could ignore."""
    folder = copied(states, name, tmp_path / "folder")
    with trial("a place that cannot be written") as fault:
        shutil.rmtree(folder / place, ignore_errors=True)
        if place.endswith(".md"):
            (folder / place).mkdir(parents=True)
        elif "weights" in place:
            (folder / "runs/digits/test/triplet").symlink_to("/proc/self/nowhere")
        else:
            (folder / place).write_text("in the way")
        assert stage(folder, name, "run.checkpoint_minutes=0.000001") == 1, stage.printed()
        assert place.split("/", maxsplit=1)[0] in stage.error()
        fault.seen = f"`{stage.error()}`"


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "a bit changed": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "garbage": lambda content: b"\xff" * 1000,
    "another file": lambda content: b"{}",
}
READ = {
    "train_teacher": ["data/digits/dataset.json", "data/digits/images.safetensors"],
    "evaluate": [f"runs/digits/test/triplet/{name}" for name in ("weights/seed-1.safetensors", "record.json")],
    "tabulate": ["results/digits/measured/test/triplet.json"],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("name", "file"), [(name, file) for name in READ for file in READ[name]])
def test_a_damaged_file_is_named(
    name: str, file: str, damage: str, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(states, name, tmp_path / "folder")
    content = (folder / file).read_bytes()
    if damage == "a bit changed" and file.endswith(".json") and not file.startswith("data"):
        pytest.skip("DVC's hash tells: a number within a text has no other witness")
    (folder / file).write_bytes(DAMAGE[damage](content))
    with trial("a damaged file that a stage reads") as fault:
        assert stage(folder, name) == 1, stage.printed()
        assert str(Path(file).parent) in stage.error()
        fault.seen = f"`{stage.error()[:160]}...`"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_not_used(damage: str, stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(states, "distill", tmp_path / "folder")
    stage(folder, "distill", "run.checkpoint_minutes=0.000001", fault="kill tripletkd.train:Trainer.step 50")
    path = folder / "checkpoints/digits/test/triplet.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with trial("a damaged checkpoint") as fault:
        assert stage(folder, "distill") == 0
        line = next(line for line in stage.printed().splitlines() if "starting anew" in line)
        assert line.startswith("checkpoints/digits/test/triplet.safetensors: cannot be read (")
        assert contents(folder, "runs/digits/test/triplet") == contents(states["end"], "runs/digits/test/triplet")
        fault.seen = f"`{line}`"


@pytest.mark.parametrize("key", ["data_sha256", "teacher_sha256"])
def test_students_of_another_run_are_not_measured(
    key: str, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(states, "evaluate", tmp_path / "folder")
    path = folder / "runs/digits/test/triplet/record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: "0" * 64}))
    with trial("students of other images or another teacher, carried here") as fault:
        assert stage(folder, "evaluate") == 1
        assert "trained with" in stage.error() and "0000" in stage.error()
        fault.seen = f"`{stage.error()[:120]}...`"


# --- numbers ----------------------------------------------------------------------------------------------------------


def copy_scratch(source: Path, folder: Path) -> None:
    """The measurements of the other method, which the table needs."""
    for file in (source / "results/digits/measured/test").glob("scratch*"):
        shutil.copy(file, folder / "results/digits/measured/test")


def rows_of(folder: Path, seed: int) -> list[str]:
    rows = (folder / "runs/digits/test/triplet/history.csv").read_text().splitlines()
    return [row for row in rows if row.startswith(f"{seed},")]


@pytest.mark.parametrize(("step", "epoch", "within"), [(1, 1, 1), (20, 2, 2), (54, 3, 18)])
@pytest.mark.parametrize("folding", ["always", "never"])
def test_a_loss_that_is_not_finite_ends_its_seed_alone(
    folding: str, step: int, epoch: int, within: int, stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    words = ["run.seeds=[1,2,3]", f"run.folding={folding}"]
    sound, struck = (copied(states, "distill", tmp_path / name) for name in ("sound", "struck"))
    for folder in (sound, struck):
        copy_scratch(states["end"], folder)
    assert stage(sound, "distill", *words) == 0
    with trial("a loss that is not finite, in one of three seeds") as fault:
        assert stage(struck, "distill", *words, fault=f"poison tripletkd.train:Trainer.step {step}") == 0
        record = json.loads((struck / "runs/digits/test/triplet/record.json").read_text())
        [(seed, why)] = record["failed"].items()
        assert seed == "2" and re.fullmatch(rf"(ce|triplet) is (nan|inf) at epoch {epoch}, step {within}", why)
        assert f"seed 2 failed: {why}; the other seeds go on" in stage.printed()
        for other in (1, 3):
            file = f"runs/digits/test/triplet/weights/seed-{other}.safetensors"
            assert (struck / file).read_bytes() == (sound / file).read_bytes()
            assert rows_of(struck, other) == rows_of(sound, other)
        assert len(rows_of(struck, 2)) == epoch - 1
        for name in ("evaluate", "tabulate"):
            assert stage(struck, name, *words) == 0, stage.printed()
        [row] = [r for r in json.loads((struck / "results/digits/table.json").read_text())["rows"] if r["failed"]]
        assert (row["method"], row["n"], row["failed"]) == ("triplet", 2, {"2": why})
        assert f"- triplet, seed 2: {why}" in (struck / "results/digits/table.md").read_text()
        fault.seen = f"`seed 2 failed: {why}; the other seeds go on`, and a line below the table"


def test_a_method_whose_every_seed_fails_stops_the_pipeline(
    stage: Runner, states: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(states, "distill", tmp_path / "folder")
    with trial("a loss that is not finite, in every seed") as fault:
        for _ in range(2):  # also the second time: no checkpoint of it is left
            assert stage(folder, "distill", "suites.digits.student.recipe.lr=1e30") == 1
            assert "every seed failed: seed 1: " in stage.error() and "seed 2: " in stage.error()
        fault.seen = f"`{stage.error()[:150]}...`"
        assert stage(folder, "evaluate") == 1
        assert "every seed failed" in stage.error()


# --- endurance --------------------------------------------------------------------------------------------------------


def test_five_thousand_epochs(stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    """Memory is flat, and a checkpoint grows by its history: a row an epoch and seed."""
    memory, size = {}, {}
    for epochs in (500, 5000):
        folder = copied(states, "fetch", tmp_path / str(epochs))
        assert stage(folder, "fetch", "suites.digits.data.per_class=1") == 0
        words = [f"suites.digits.teacher.recipe.epochs={epochs}", "suites.digits.evaluate_every=100"]
        code = stage(
            folder, "train_teacher", *words, "run.checkpoint_minutes=0.05", fault="kill tripletkd.record:write 1"
        )
        assert code == -signal.SIGKILL, stage.printed()
        memory[epochs] = stage.most_kib
        size[epochs] = (folder / "checkpoints/digits/test/teacher.safetensors").stat().st_size
    assert stage(folder, "train_teacher", *words) == 0
    with trial("5,000 epochs in one run") as fault:
        a_row = (size[5000] - size[500]) / 4500
        grown = (memory[5000] - memory[500]) / 1024
        assert 50 < a_row < 300
        assert grown < 20
        fault.seen = f"{grown:.0f} MiB more memory than 500 epochs; the checkpoint grows by {a_row:.0f} bytes an epoch"


def test_sixty_four_seeds(stage: Runner, states: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(states, "distill", tmp_path / "folder")
    copy_scratch(states["end"], folder)
    words = [f"run.seeds={list(range(1, 65))}".replace(" ", ""), "suites.digits.student.recipe.epochs=1"]
    with trial("64 seeds at once") as fault:
        for name in ("distill", "evaluate", "tabulate"):
            assert stage(folder, name, *words) == 0, stage.printed()
        rows = json.loads((folder / "results/digits/table.json").read_text())["rows"]
        assert [row["n"] for row in rows] == [1, 2, 64]
        fault.seen = "a table with n = 64"
