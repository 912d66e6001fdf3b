"""A seed is the unit of work: the real stages on the shrunk digits suite, in a folder of their own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from shrunk import ENVIRONMENT, change, shrink

from tripletkd.provenance import sha256


def stage(folder: Path, *words: str, code: int = 0) -> str:
    """Run one; both of its outputs as one text."""
    return python(folder, "-m", *words, code=code)


def python(folder: Path, *words: str, code: int) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "nowhere://"},
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
        "from stages import _command, distill\n"
        "_command.run(distill.main, needs=('suite', 'method', 'split'), trains=True)\n"
    )
    return python(folder, "-c", program, *words, code=code)


def hashes(folder: Path, method: str = "triplet") -> dict[str, str]:
    """Seed's folder -> sha256 of its weights, as they lie there."""
    run = folder / "runs/digits/test" / method
    return {path.parent.name: sha256(path) for path in sorted(run.glob("seed-*/weights.safetensors"))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and two seeds of triplet."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "tripletkd").symlink_to(ROOT / "tripletkd")  # where published figures are
    shrink(folder)
    stage(folder, "stages.fetch", "suite=digits")
    stage(folder, "stages.train_teacher", "suite=digits")
    stage(folder, "stages.distill", "suite=digits", "method=triplet")
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "project", symlinks=True))


DISTILL = ("stages.distill", "suite=digits", "method=triplet")


def test_added_seeds_are_trained_and_seeds_taken_away_are_not_trained_again(project: Path) -> None:
    before = hashes(project)
    change(project, "suites", "digits", "seeds", value=[1, 2, 3])
    printed = stage(project, *DISTILL)
    assert "seeds 1, 2 are there, as asked for" in printed
    after = hashes(project)
    assert before.items() < after.items() and list(after) == ["seed-1", "seed-2", "seed-3"]
    record = json.loads((project / "runs/digits/test/triplet/seed-3/record.json").read_text())
    assert record["trained_with"] == [3]
    change(project, "suites", "digits", "seeds", value=[1, 3])
    printed = stage(project, *DISTILL)
    assert "seed-2: no part of this run any more; moved to" in printed and "seeds 1, 3 are there" in printed
    aside = project / "checkpoints/digits/test/triplet/seed-2.removed/weights.safetensors"
    assert sha256(aside) == after["seed-2"]
    assert hashes(project) == {name: after[name] for name in ("seed-1", "seed-3")}


def test_another_parameter_trains_anew_and_says_so(project: Path) -> None:
    before = hashes(project)
    printed = stage(project, *DISTILL, "methods.triplet.triplet=1")
    assert printed.count("of other parameters, data, teacher or code; trained anew") == 2
    assert not set(before.values()) & set(hashes(project).values())


def test_what_does_not_change_the_numbers_trains_nothing(project: Path) -> None:
    printed = stage(project, *DISTILL, "run.checkpoint_minutes=1", "methods.kd.temperature=9")
    assert "seeds 1, 2 are there" in printed


def test_finished_seeds_are_retrained_on_demand_to_the_same_bytes(project: Path) -> None:
    before, path = hashes(project), project / "runs/digits/test/triplet/seed-1/weights.safetensors"
    inode = path.stat().st_ino
    assert "--retrain; trained anew" in stage(project, *DISTILL, "--retrain")
    assert hashes(project) == before and path.stat().st_ino != inode
    assert "2 seeds trained again, the same bytes" in stage(project, "stages.verify", *DISTILL[1:])


@pytest.mark.fault
def test_verify_trains_a_seed_with_those_that_it_was_trained_with(project: Path) -> None:
    stage(project, *DISTILL, "--only-seeds", "1", "--retrain")
    groups = [
        json.loads((project / f"runs/digits/test/triplet/seed-{seed}/record.json").read_text())["trained_with"]
        for seed in (1, 2)
    ]
    assert groups == [[1], [1, 2]]
    assert "2 seeds trained again, the same bytes" in stage(project, "stages.verify", *DISTILL[1:])


def test_verify_names_a_seed_with_other_bytes(project: Path) -> None:
    change(project, "suites", "digits", "seeds", value=[2])
    stage(project, *DISTILL)
    place = project / "runs/digits/test/triplet/seed-2"
    history = (place / "history.csv").read_text()
    (place / "history.csv").write_text(history.replace("1,0.01,", "1,0.02,"))
    record = json.loads((place / "record.json").read_text())
    record["history_sha256"] = sha256(place / "history.csv")
    (place / "record.json").write_text(json.dumps(record))
    printed = stage(project, "stages.verify", *DISTILL[1:], code=1)
    assert "seed-2/history.csv: other bytes when trained again" in printed


@pytest.mark.fault
def test_a_history_that_was_cut_off_is_trained_anew(project: Path) -> None:
    before, history = hashes(project), project / "runs/digits/test/triplet/seed-2/history.csv"
    whole = history.read_text()
    history.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert "seed-2/history.csv: sha256 is" in stage(project, *DISTILL)
    assert history.read_text().count("\n") == whole.count("\n") and hashes(project).keys() == before.keys()


def test_only_some_of_the_seeds(project: Path) -> None:
    change(project, "suites", "digits", "seeds", value=[1, 2, 3, 4])
    stage(project, *DISTILL, "--only-seeds", "4")
    assert list(hashes(project)) == ["seed-1", "seed-2", "seed-4"]
    printed = stage(project, *DISTILL, "--only-seeds", "4,9", code=1)
    assert "--only-seeds: 9 is not there; expected some of 1, 2, 3, 4" in printed


def test_seeds_side_by_side_give_the_bytes_of_one_process(project: Path) -> None:
    """Each on a thread of its own, as images of 8 x 8 pixels have it in one process too."""
    apart = [*DISTILL, "run.fuse_seeds=never", "--retrain"]
    path = project / "runs/digits/test/triplet/seed-2/record.json"
    stage(project, *apart, "--processes", "1")
    together, record = hashes(project), path.read_text()
    stage(project, *apart, "--processes", "2")
    assert hashes(project) == together and path.read_text() == record
    assert json.loads(record)["trained_with"] == [2] and json.loads(record)["environment"]["fused_seeds"] is False


def test_seeds_that_were_stopped_side_by_side_go_on_side_by_side(project: Path) -> None:
    apart = [*DISTILL, "run.fuse_seeds=never", "--retrain"]
    stage(project, *apart, "--processes", "1")
    before = hashes(project)
    printed = stage(project, *apart, "--processes", "2", "--max-minutes", "0", code=75)
    assert printed.splitlines()[-1].startswith("paused: every seed that was begun stopped at a checkpoint; the same")
    patch = (
        "import stages._training as t; real = t._start_worker\n"
        "t._start_worker = lambda *words: print('a process for seed', words[2], flush=True) or real(*words)\n"
    )
    printed = patched(project, patch, *apart[1:], "--processes", "2")
    assert all(f"a process for seed {seed}\n" in printed for seed in (1, 2))
    assert printed.count("going on after epoch 1") == 2
    assert hashes(project) == before


@pytest.mark.fault
def test_a_seeds_process_that_found_other_parameters_is_noticed(project: Path) -> None:
    """They are put back before the stage that started it ends."""
    patch = (
        "import pathlib; import stages._training as t; real = t._start_worker\n"
        "path = pathlib.Path('params.yaml'); text = path.read_text()\n"
        "def edited(*words):\n"
        "    path.write_text(text.replace('    margin: ', '    margin: 3'))\n"
        "    process = real(*words); process.wait(); path.write_text(text); return process\n"
        "t._start_worker = edited\n"
    )
    words = [*DISTILL[1:], "run.fuse_seeds=never", "--retrain", "--processes", "2"]
    printed = patched(project, patch, *words, code=1)
    assert "digits/triplet, seed 1: params.yaml or the code was changed before its process began" in printed


def test_a_change_of_what_the_stage_depends_on_while_it_runs_is_refused(project: Path) -> None:
    """DVC would store what was trained with a margin of 5 as of the margin that stands there now."""
    patch = (
        "import pathlib, yaml; import stages._command as c; real = c.refuse_changes\n"
        "def edit(stage):\n"
        "    path = pathlib.Path('params.yaml'); params = yaml.safe_load(path.read_text())\n"
        "    params['methods']['triplet']['margin'] = 30; path.write_text(yaml.safe_dump(params)); real(stage)\n"
        "c.refuse_changes = edit\n"
    )
    before = hashes(project)
    printed = patched(project, patch, *DISTILL[1:], code=1)
    assert "methods.triplet: changed from" in printed and '"margin": 30' in printed
    assert hashes(project) == before
    assert "trained anew" in stage(project, *DISTILL)  # of the margin that stands there now


@pytest.mark.parametrize(
    ("precision", "has", "warns"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_a_processor_without_bfloat16_says_so_once(project: Path, precision: str, has: bool, warns: int) -> None:
    patch = f"import torch; torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: {has}\n"
    words = ["run.fuse_seeds=never", "--retrain", "--processes", "2", f"suites.digits.precision={precision}"]
    stage(project, "stages.train_teacher", "suite=digits", words[-1])
    printed = patched(project, patch, *DISTILL[1:], *words)
    assert printed.count("warning: digits/triplet, precision: bfloat16, for which this processor has no") == warns
