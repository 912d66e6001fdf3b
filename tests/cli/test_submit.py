"""What `tripletkd submit` says where there is nothing to submit to, and what it would submit."""

import shutil
import sys
from pathlib import Path

import pytest
from shrunk import change, clone, command

from tripletkd.cli.submit import due


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone(tmp_path_factory.mktemp("project"))


def refusal(project: Path, folder: Path) -> str:
    """What is printed where git is the only program on the PATH."""
    folder.joinpath("git").unlink(missing_ok=True)
    folder.joinpath("git").symlink_to(shutil.which("git") or "git")
    words = (sys.executable, "-m", "tripletkd.cli", "submit", "--time=1")
    return command(project, *words, check=False, PATH=str(folder))


def test_parameters_and_slurm_are_checked_before_anything_is_submitted(project: Path, tmp_path: Path) -> None:
    printed = refusal(project, tmp_path)
    assert printed.startswith("error: squeue: not found on PATH; expected a machine") and printed.count("\n") == 1
    params = (project / "params.yaml").read_text()
    change(project, "methods", "triplet", "margin", value=-1)
    assert refusal(project, tmp_path).startswith("error: methods.triplet.margin: ")
    change(project, "methods", "triplet", "margin", value=4)
    assert refusal(project, tmp_path).startswith("error: params.yaml: not committed; jobs run later")
    (project / "params.yaml").write_text(params)
    (project / "tripletkd/methods/mine.py").touch()
    assert refusal(project, tmp_path).startswith("error: tripletkd/methods/mine.py: not committed; jobs run later")
    (project / "tripletkd/methods/mine.py").unlink()


def test_what_is_due_is_in_the_order_and_with_the_commands_of_dvc(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    found = {stage.name: stage for stage in due()}
    places = {name: place for place, name in enumerate(found)}
    assert len(found) == 9
    assert all(places[name] < places[stage.name] for stage in found.values() for name in stage.after)
    distill = found["distill@digits-triplet"]
    assert distill.command == "python -m stages.distill suite=digits method=triplet split=test"
    assert {*distill.after} == {"fetch@digits", "train_teacher@digits-test"}
