"""What `tripletkd submit` says where there is nothing to submit to, and what it would submit."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from shrunk import change, clone

from tripletkd.cli.__main__ import tripletkd
from tripletkd.cli.submit import due


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone(tmp_path_factory.mktemp("project"))


def test_parameters_and_slurm_are_checked_before_anything_is_submitted(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where git is the only program on the PATH."""
    (tmp_path / "git").symlink_to(shutil.which("git") or "git")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(project)

    def refusal() -> str:
        done = CliRunner().invoke(tripletkd, ["submit", "--time=1"])
        assert done.exit_code == 1 and done.output.startswith("error: ") and done.output.count("\n") == 1
        return done.output.removeprefix("error: ")

    assert refusal().startswith("squeue: not found on PATH; expected a machine")
    params = (project / "params.yaml").read_text()
    change(project, "methods", "triplet", "margin", value=-1)
    assert refusal().startswith("methods.triplet.margin: ")
    (project / "params.yaml").write_text(params + "\n")
    (project / "tripletkd/methods/mine.py").touch()
    assert refusal().startswith("params.yaml, tripletkd/methods/mine.py: not committed; jobs run later")
    (project / "params.yaml").write_text(params)
    (project / "tripletkd/methods/mine.py").unlink()


def test_what_is_due_is_in_the_order_and_with_the_commands_of_dvc(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    found = {stage.name: stage for stage in due()}
    places = {name: place for place, name in enumerate(found)}
    assert len(found) == 10
    assert all(places[name] < places[stage.name] for stage in found.values() for name in stage.after)
    distill = found["distill@digits-triplet"]
    assert distill.command == "python -m stages.distill suite=digits method=triplet split=test"
    assert {*distill.after} == {"fetch@digits", "fetch_weights@digits", "train_teacher@digits-test"}
