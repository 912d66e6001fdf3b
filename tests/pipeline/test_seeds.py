"""A seed is the unit of work: the real stages on the shrunk digits suite, in a folder of their own."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from shrunk import ENVIRONMENT, change, shrink

from tripletkd.provenance import sha256

VARIABLES = ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
DISTILL = ("stages.distill", "suite=digits", "method=triplet")
APART = (*DISTILL, "run.fuse_seeds=never", "--retrain")


def stage(folder: Path, *words: str, code: int = 0) -> str:
    """Run one; both of its outputs as one text."""
    return python(folder, "-m", *words, code=code)


def python(folder: Path, *words: str, code: int) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=VARIABLES,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def patched(folder: Path, patch: str, *words: str, code: int = 0) -> str:
    """Run distill in a process in which something was patched before; both of its outputs as one text."""
    program = (
        f"import sys; sys.argv[0] = 'distill'\n{patch}"
        "from tripletkd.pipeline.stage import run\nfrom stages import distill\n"
        "if __name__ == '__main__':\n    run(distill.main, needs=('suite', 'method', 'split'), trains=True)\n"
    )
    (folder / "patched.py").write_text(program)
    return python(folder, "patched.py", *words, code=code)


def hashes(folder: Path) -> dict[str, str]:
    """Seed's folder -> sha256 of the weights that are in it."""
    run = folder / "runs/digits/test/triplet"
    return {path.parent.name: sha256(path) for path in sorted(run.glob("seed-*/weights.safetensors"))}


def trained_with(folder: Path, seed: int) -> object:
    return json.loads((folder / f"logs/digits/test/triplet/seed-{seed}.json").read_text())["trained_with"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and two seeds of triplet."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shrink(folder)
    stage(folder, "stages.fetch", "suite=digits")
    stage(folder, "stages.train_teacher", "suite=digits")
    stage(folder, *DISTILL)
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "project", symlinks=True))


def test_added_seeds_are_trained_and_seeds_taken_away_are_kept_aside(project: Path) -> None:
    before = hashes(project)
    change(project, "suites", "digits", "seeds", value=[1, 2, 3])
    assert "seeds 1, 2 are there, as asked for" in stage(project, *DISTILL)
    after = hashes(project)
    assert before.items() < after.items() and list(after) == ["seed-1", "seed-2", "seed-3"]
    assert [trained_with(project, seed) for seed in (2, 3)] == [[1, 2], [3]]
    change(project, "suites", "digits", "seeds", value=[1, 3])
    printed = stage(project, *DISTILL)
    assert "seed-2: no part of this run any more; moved to" in printed and "seeds 1, 3 are there" in printed
    aside = project / "checkpoints/digits/test/triplet/seed-2.removed/weights.safetensors"
    assert sha256(aside) == after["seed-2"]
    assert hashes(project) == {name: after[name] for name in ("seed-1", "seed-3")}


def test_another_parameter_trains_anew_and_one_that_changes_no_number_does_not(project: Path) -> None:
    before = hashes(project)
    printed = stage(project, *DISTILL, "run.checkpoint_minutes=1", "methods.kd.temperature=9")
    assert "seeds 1, 2 are there" in printed
    printed = stage(project, *DISTILL, "methods.triplet.triplet=1")
    assert printed.count("trained anew") == 2 and "the seeds of before are kept as checkpoints/digits" in printed
    assert not set(before.values()) & set(hashes(project).values())
    kept = (project / "checkpoints/digits/test/triplet").glob("seed-*/weights.safetensors")
    assert {sha256(weights) for weights in kept} == set(before.values())


def test_finished_seeds_are_retrained_on_demand_to_the_same_bytes(project: Path) -> None:
    before, path = hashes(project), project / "runs/digits/test/triplet/seed-1/weights.safetensors"
    inode = path.stat().st_ino
    assert "--retrain; trained anew" in stage(project, *DISTILL, "--retrain")
    assert hashes(project) == before and path.stat().st_ino != inode
    assert not list(project.glob("checkpoints/**/weights.safetensors"))  # there is nothing that was lost


@pytest.mark.fault
def test_a_history_that_was_cut_off_is_trained_anew(project: Path) -> None:
    history = project / "runs/digits/test/triplet/seed-2/history.csv"
    whole = history.read_text()
    history.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert "seed-2/history.csv: sha256 is" in stage(project, *DISTILL)
    assert history.read_text().count("\n") == whole.count("\n")


def test_only_some_of_the_seeds(project: Path) -> None:
    change(project, "suites", "digits", "seeds", value=[1, 2, 3, 4])
    stage(project, *DISTILL, "--only-seeds", "4")
    assert list(hashes(project)) == ["seed-1", "seed-2", "seed-4"]
    printed = stage(project, *DISTILL, "--only-seeds", "4,9", code=1)
    assert "--only-seeds: 9 is not there; expected some of 1, 2, 3, 4" in printed


def test_seeds_side_by_side_give_the_bytes_of_one_process_also_when_they_were_stopped(project: Path) -> None:
    """Each on a thread of its own, as images of 8 x 8 pixels have it in one process too."""
    stage(project, *APART, "--processes", "1")
    together, record = hashes(project), (project / "runs/digits/test/triplet/seed-2/record.json").read_text()
    printed = stage(project, *APART, "--processes", "2", "--max-minutes", "0", code=75)
    assert printed.splitlines()[-1].startswith("paused: every seed that was begun stopped at a checkpoint; the same")
    printed = stage(project, *APART, "--processes", "2")
    assert printed.count("going on after epoch 1") == 2
    assert hashes(project) == together
    assert (project / "runs/digits/test/triplet/seed-2/record.json").read_text() == record
    assert trained_with(project, 2) == [2]


@pytest.mark.fault
def test_seeds_side_by_side_end_with_the_process_that_started_them(project: Path) -> None:
    """Killed, it leaves them no longer than an epoch; stopped, it stops them at checkpoints."""
    student = {"network": "paper_student_quarter", "recipe": {"epochs": 100000}}
    change(project, "suites", "digits", "student", value=student)
    change(project, "run", "checkpoint_minutes", value=0.001)
    for number, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -9)):
        with subprocess.Popen(
            [sys.executable, "-m", *APART, "--processes", "2"], cwd=project, env=VARIABLES, stderr=subprocess.PIPE
        ) as process:
            checkpoints = project / "checkpoints/digits/test/triplet"
            deadline = time.monotonic() + 120
            while len(list(checkpoints.glob("seeds-*.safetensors"))) < 2:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
            process.send_signal(number)
            assert process.stderr is not None
            process.stderr.read()  # which ends when all that were started have ended
            assert process.wait() == code
        for path in checkpoints.iterdir():
            path.unlink()


@pytest.mark.fault
def test_a_seeds_process_that_found_other_code_is_noticed(project: Path) -> None:
    patch = (
        "import tripletkd.pipeline.train as t; real = t._train_side_by_side\n"
        "def edited(*words):\n    t.Job.code = 'f' * 64\n    real(*words)\n"
        "t._train_side_by_side = edited\n"
    )
    printed = patched(project, patch, *APART[1:], "--processes", "2", code=1)
    assert "digits/triplet, seed 1: the code was changed before its process began" in printed


@pytest.mark.fault
def test_a_change_of_what_the_stage_depends_on_while_it_runs_is_refused(project: Path) -> None:
    """DVC would store what was trained with a margin of 5 as of the margin that is there now."""
    patch = (
        "import pathlib, yaml; import tripletkd.pipeline.stage as c; real = c.refuse_changes\n"
        "def edit(stage):\n"
        "    path = pathlib.Path('params.yaml'); params = yaml.safe_load(path.read_text())\n"
        "    params['methods']['triplet']['margin'] = 30; path.write_text(yaml.safe_dump(params)); real(stage)\n"
        "c.refuse_changes = edit\n"
    )
    before = hashes(project)
    printed = patched(project, patch, *DISTILL[1:], code=1)
    assert "methods.triplet: changed from" in printed and '"margin": 30' in printed
    assert hashes(project) == before
    assert "trained anew" in stage(project, *DISTILL)  # of the margin that is there now


@pytest.mark.fault
def test_a_file_that_was_replaced_after_the_stage_had_read_it_is_noticed(project: Path) -> None:
    """DVC would store what was measured as of the runs that are there now."""
    record = "runs/digits/test/triplet/seed-1/record.json"
    patch = (
        "import pathlib; import tripletkd.pipeline.stage as c; real = c.refuse_changes\n"
        f"def edit(stage):\n    path = pathlib.Path('{record}'); path.write_text(path.read_text() + ' '); real(stage)\n"
        "c.refuse_changes = edit\n"
    )
    words = ("suite=digits", "method=triplet")
    printed = python(project, "-c", f"{patch}import stages.evaluate as e\ne.run(e.main, needs=('suite', 'method'))",
                     *words, code=1)  # fmt: skip
    assert "error: runs/digits/test/triplet: changed from" in printed


@pytest.mark.parametrize(
    ("precision", "has", "warns"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_a_processor_without_bfloat16_says_so_once(project: Path, precision: str, has: bool, warns: int) -> None:
    patch = f"import torch; torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: {has}\n"
    stage(project, "stages.train_teacher", "suite=digits", f"suites.digits.precision={precision}")
    printed = patched(project, patch, *APART[1:], "--processes", "2", f"suites.digits.precision={precision}")
    assert printed.count("warning: digits/triplet, precision: bfloat16, for which this processor has no") == warns
