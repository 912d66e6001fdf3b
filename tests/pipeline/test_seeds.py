"""A seed is the unit of work: the real stages on the shrunk digits suite, in a folder of their own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from safetensors.torch import load_file
from shrunk import ENVIRONMENT, change, command, shrink, with_faults
from torch.testing import assert_close

from tripletkd.provenance import sha256

RUN = "digits/test/triplet"
DISTILL = ("stages.distill", "suite=digits", "method=triplet")
APART = (*DISTILL, "run.fuse_seeds=never", "--retrain", "--processes")


def stage(folder: Path, *words: str, code: int = 0, **variables: str) -> str:
    """Run one; both of its outputs as one text."""
    words, env = (sys.executable, "-m", *words), ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | variables
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run(words, cwd=folder, env=env, text=True, stdout=pipe, stderr=both, check=False)
    assert done.returncode == code, done.stdout
    return done.stdout


def hashes(folder: Path) -> dict[str, str]:
    """Seed's folder -> sha256 of the weights that are in it."""
    return {path.parent.name: sha256(path) for path in sorted(folder.glob(f"runs/{RUN}/seed-*/weights.safetensors"))}


def trained_with(folder: Path, seed: int) -> object:
    return json.loads((folder / f"logs/{RUN}/seed-{seed}.json").read_text())["trained_with"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and two seeds of triplet."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    shrink(folder)
    for words in (("stages.fetch", "suite=digits"), ("stages.train_teacher", "suite=digits"), DISTILL):
        stage(folder, *words)
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "project", symlinks=True))


def test_only_the_seeds_that_are_missing_are_trained_and_none_is_lost(project: Path) -> None:
    before = hashes(project)
    change(project, "suites", "digits", "seeds", value=[1, 3, 4])
    printed = stage(project, *DISTILL, "--only-seeds", "4,9", code=1)
    assert "--only-seeds: 9 is not there; expected some of 1, 3, 4" in printed
    stage(project, *DISTILL, "--only-seeds", "4")
    after = hashes(project)
    assert before.items() < after.items() and after.keys() - before.keys() == {"seed-4"}
    printed = stage(project, *DISTILL, "run.checkpoint_minutes=1", "methods.kd.temperature=9")  # which change no number
    assert "seed-2: no part of this run any more; moved to" in printed and "seeds 1, 4 are there" in printed
    aside = project / f"checkpoints/{RUN}/seed-2.removed/weights.safetensors"
    assert sha256(aside) == before["seed-2"]
    assert hashes(project).items() > {name: after[name] for name in ("seed-1", "seed-4")}.items()
    assert [trained_with(project, seed) for seed in (1, 3, 4)] == [[1, 2], [3], [4]]


def test_a_seed_that_is_taken_out_twice_is_kept_twice(project: Path) -> None:
    first = hashes(project)["seed-2"]
    for words in ((), ("methods.triplet.triplet=1",)):
        stage(project, *DISTILL, *words)
        second = hashes(project)["seed-2"]
        stage(project, *DISTILL, "suites.digits.seeds=[1]", *words)
    kept = {sha256(path) for path in project.glob(f"checkpoints/{RUN}/seed-2.removed*/weights.safetensors")}
    assert first != second and kept == {first, second}


OWN_CODE = {  # edits of a file, and what the stage says
    "initial weights of no seed": (
        "tripletkd/models/paper.py",
        {
            "(4 * width, classes)\n": "(4 * width, classes)\n        import numpy\n"
            "        self.fc2.bias.data += numpy.random.default_rng().random()\n"
        },
        "paper_student_quarter: fc2.bias begins with numbers that no seed determines",
    ),
    "a layer that an evaluation would thaw": (
        "tripletkd/models/paper.py",
        {"(4 * width, classes)\n": "(4 * width, classes)\n        self.fc2.eval()\n"},
        "paper_student_quarter: fc2 is in eval mode from the start",
    ),
    "a network that mixes images": (
        "tripletkd/models/paper.py",
        {"self.fc2(embedding), {": "self.fc2(embedding - embedding.mean(0)), {"},
        "paper_student_quarter: its output for an image depends on the others",
    ),
    "a loss whose noise no seed determines": (
        "tripletkd/methods/triplet.py",
        {"    outputs = batch": "    import numpy as np\n    np.random.rand()\n    outputs = batch"},
        "a step draws from the generator of numpy.random, which no seed determines",
    ),
    "a network whose file does not hold all of it": (
        "tripletkd/models/paper.py",
        {
            "(4 * width, classes)\n": "(4 * width, classes)\n        self.calls = 0\n",
            "self.fc2(embedding), {": "self.fc2(embedding) * self.count(), {",
            "class SecondStudent": "def count(self):\n    self.calls += self.training\n    return 1 + self.calls\n"
            "PaperStudent.count = count\nclass SecondStudent",
        },
        "paper_student_quarter has a state that its file does not hold",
    ),
}


@pytest.mark.parametrize("what", OWN_CODE)
def test_code_of_one_s_own_that_breaks_a_promise_is_refused(what: str, project: Path) -> None:
    name, edits, said = OWN_CODE[what]
    for package in ("tripletkd", "stages"):
        shutil.copytree(ROOT / package, project / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "uv.lock", project)
    text = (project / name).read_text()
    for found, replacement in edits.items():
        assert found in text
        text = text.replace(found, replacement, 1)
    (project / name).write_text(text)
    before = hashes(project)
    printed = stage(project, *DISTILL, code=1, PYTHONPATH=str(project))
    assert said in printed and hashes(project) == before


def test_a_log_says_how_fast_was_what_was_computed(project: Path) -> None:
    """Seeds that failed in their first epoch did not compute all of them."""
    stage(project, *DISTILL, "suites.digits.student.recipe.optimizer.lr=1.0e+9", code=1)
    log = json.loads((project / f"logs/{RUN}/seed-1.json").read_text())
    rows = sum((project / f"runs/{RUN}/seed-{seed}/history.csv").read_text().count("\n") - 1 for seed in (1, 2))
    images = json.loads((project / "data/digits/dataset.json").read_text())["images"]["train"]
    assert log["training_images_per_second"] <= images * rows / (log["training_seconds"] - 0.006)


def test_what_another_parameter_made_is_trained_anew(project: Path) -> None:
    before = hashes(project)
    printed = stage(project, *DISTILL, "methods.triplet.triplet=1")
    assert (
        f"runs/{RUN}, seeds 1, 2: of other parameters" in printed
        and "the seeds of before are kept as checkpoints/digits" in printed
    )
    assert not set(before.values()) & set(hashes(project).values())
    kept = project.glob(f"checkpoints/{RUN}/seed-*/weights.safetensors")
    assert {sha256(weights) for weights in kept} == set(before.values())


@pytest.mark.fault
def test_a_file_that_was_replaced_after_the_stage_had_read_it_is_noticed(project: Path, tmp_path: Path) -> None:
    """DVC would store what was measured as of the runs that are there now."""
    record, edited = f"runs/{RUN}/seed-1/record.json", tmp_path / "edited"
    (edited / record).parent.mkdir(parents=True)
    (edited / record).write_text((project / record).read_text() + " ")
    fault = {"FAULT": "edit tripletkd.evaluation.measure:measure 1", "FAULT_IN": "evaluate", "EDITED": str(edited)}
    path = f"{with_faults(tmp_path)}:{ROOT}"
    printed = stage(project, "stages.evaluate", *DISTILL[1:], code=1, PYTHONPATH=path, **fault)
    assert f"error: runs/{RUN}: changed from" in printed


@pytest.mark.smoke
def test_seeds_side_by_side_give_the_bytes_of_one_process_also_when_they_were_stopped(project: Path) -> None:
    """Each on a thread of its own, as images of 8 x 8 pixels have it in one process too."""
    record = project / f"runs/{RUN}/seed-2/record.json"
    stage(project, *APART, "1")
    together, recorded, kept = hashes(project), record.read_text(), {*project.glob("checkpoints/**/weights.*")}
    printed = stage(project, *APART, "2", "--max-minutes", "0", code=75)
    assert printed.splitlines()[-1].startswith("paused: every seed that was begun stopped at a checkpoint")
    assert stage(project, *APART, "2").count("going on after epoch 1") == 2
    assert hashes(project) == together and record.read_text() == recorded and trained_with(project, 2) == [2]
    assert kept == {*project.glob("checkpoints/**/weights.*")}  # nothing was lost, so that nothing is kept


@pytest.mark.smoke
def test_two_processes_of_one_training_end_together_and_go_on_together(project: Path, tmp_path: Path) -> None:
    """One is killed in the second epoch of the second seed; the weights are those of one process but for rounding."""
    run = project / "runs" / RUN
    expected = {seed: load_file(run / f"seed-{seed}/weights.safetensors") for seed in (1, 2)}
    one = json.loads((run / "seed-2/record.json").read_text())
    shutil.rmtree(run)
    torchrun = ("torchrun", "--standalone", "--nproc-per-node=2", "-m", *DISTILL, "run.checkpoint_minutes=0.000001")
    variables: dict[str, Any] = {"PYTHONPATH": f"{with_faults(tmp_path, rank='1')}:{ROOT}", "OMP_NUM_THREADS": "1"}
    fault = {"FAULT": "kill tripletkd.training.trainer:Trainer.step 77", "FAULT_IN": "stages.distill"}
    command(project, *torchrun, check=False, **(variables | fault))
    assert list(hashes(project)) == ["seed-1"]
    printed = command(project, *torchrun, **variables)
    assert printed.count("triplet: seeds 1 are there") == printed.count("going on after epoch 1") == 1
    for seed, weights in expected.items():
        assert_close(load_file(run / f"seed-{seed}/weights.safetensors"), weights, rtol=1e-4, atol=1e-5)
        assert trained_with(project, seed) == [seed]
    several = json.loads((run / "seed-2/record.json").read_text())
    assert {key for key in one if one[key] != several[key]} == {"weights_sha256", "history_sha256"}
    assert not list(project.glob("checkpoints/digits/**/*.safetensors")) and not list(project.glob(".locks/*"))


@pytest.mark.parametrize(("rank", "said"), [("0", "torchrun: stages.evaluate is for one process"), ("1", "")])
def test_torchrun_starts_no_stage_that_does_not_train_and_the_first_process_says_so(
    rank: str, said: str, project: Path
) -> None:
    variables: dict[str, Any] = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    printed = command(project, sys.executable, "-m", "stages.evaluate", *DISTILL[1:], check=False, **variables)
    assert said in printed and bool(said) == bool(printed)
