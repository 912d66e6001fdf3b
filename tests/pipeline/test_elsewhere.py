"""Train elsewhere, record here, with an environment of its own for the other machine: another Python, an older PyTorch,
and nothing but what training needs."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from shrunk import clone, command, stages_run

from tripletkd.training.run_record import RECORD, read_log, read_record

NEEDED = ["torch==2.11.0", "numpy", "safetensors", "tqdm", "hydra-core", "ruamel.yaml", "pydantic", "filelock"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of Python 3.12 with NEEDED and what those ask for; 5 GB, from PyPI."""
    uv = shutil.which("uv") or ROOT / ".uv/bin/uv"
    folder = tmp_path_factory.mktemp("elsewhere") / "environment"
    if subprocess.run([uv, "venv", "--quiet", "--python", "3.12", folder], check=False).returncode:
        pytest.skip("needs uv and Python 3.12")
    subprocess.run([uv, "pip", "install", "--quiet", "--python", folder / "bin/python", *NEEDED], check=True)
    return folder / "bin/python"


@pytest.mark.slow
@pytest.mark.network
def test_a_run_made_elsewhere_is_recorded_here(python: Path, tmp_path: Path) -> None:
    here, there = clone(tmp_path / "here"), tmp_path / "there"
    command(here, "dvc", "repro", "fetch@digits")
    there.mkdir()
    for name in ("stages", "tripletkd", "data", "params.yaml", "dvc.yaml"):
        copy = shutil.copytree if (here / name).is_dir() else shutil.copy
        copy(here / name, there / name)
    for stage, words in (("train_teacher", ["split=test"]), ("distill", ["method=triplet", "split=test"])):
        printed = command(there, str(python), "-m", f"stages.{stage}", "suite=digits", *words, PATH="/nowhere")
        assert "Traceback" not in printed
    for name in ("runs", "logs", "results"):
        shutil.copytree(there / name, here / name, dirs_exist_ok=True)
    for stage in ("train_teacher@digits-test", "distill@digits-triplet"):
        command(here, "dvc", "commit", "--force", stage)
    assert stages_run(command(here, "dvc", "repro", "evaluate@digits-triplet")) == ["evaluate@digits-triplet"]
    for seed in (1, 2):
        folder = here / f"runs/digits/test/triplet/seed-{seed}"
        assert read_record(folder).versions["torch"] == "2.11.0"
        log = read_log(here / f"logs/digits/test/triplet/seed-{seed}.json", folder / RECORD)
        assert log["environment"]["python"].startswith("3.12.") and log["training_seconds"] > 0
