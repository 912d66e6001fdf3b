"""The plan: what will be trained, how long it takes, and the question before days of work."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from io import StringIO
from pathlib import Path

import pytest
from conftest import ROOT

from tripletkd.cli import plan
from tripletkd.config.load import load
from tripletkd.errors import UserError
from tripletkd.pipeline.stage import open_stage

SHORT = ["suite=digits", "run.methods=[scratch]"]


def test_the_plan_counts_the_epochs_that_will_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both splits' teachers, and of an ablation whose variants differ in nothing but their epochs."""
    monkeypatch.chdir(ROOT)
    words = [*SHORT, "suites.digits.seeds=[1,2]", "run.ablations=[longer]"]
    plan.main(words, ask=True)  # minutes are not asked about
    digits = load(ROOT, words).for_suite("digits")
    assert digits.teacher.recipe
    expected = {
        "teacher": (2 * digits.teacher.recipe.epochs, 1),
        "scratch": (digits.student.recipe.epochs, 2),
        "ablations": (sum(variant.recipe.epochs for variant in digits.ablations["longer"]), 2),
    }
    found = re.findall(r"^  (\w+) +(\d+) epochs, (\d+) seed\(s\): about ", capsys.readouterr().out, re.MULTILINE)
    assert {name: (int(epochs), int(seeds)) for name, epochs, seeds in found} == expected


@pytest.mark.parametrize(
    ("answer", "refused"), [("n\n", "nothing was started"), ("y\n", ""), (None, "no terminal to ask at: YES=1")]
)
def test_days_of_work_are_asked_about(answer: str | None, refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal; where there is none nobody can answer, and the way to start is named."""
    stdin = StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: answer is not None)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.chdir(ROOT)
    words = [*SHORT, "suites.digits.recipe.epochs=99999999", "run.ablations=[]"]
    with pytest.raises(UserError, match=refused) if refused else nullcontext():
        plan.main(words, ask=True)


def test_make_paper_asks_unless_told_not_to(tmp_path: Path) -> None:
    """Not where runs are: they were pulled, and need no images, or a training was begun, and goes on."""

    def commands(*words: str) -> str:
        make = ["make", f"--makefile={ROOT}/Makefile", "--dry-run", "--no-print-directory", "--old-file=.venv/.synced"]
        done = subprocess.run([*make, "paper", *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.replace("\\\n", "")

    asked = commands()
    assert asked.startswith("tripletkd plan cifar10") and "--ask\n" in asked and "dvc repro \n" in asked
    assert "dvc exp run" not in asked  # which deletes the seeds of a run that was stopped
    assert "--ask" not in commands("YES=1")
    (tmp_path / "runs/cifar10").mkdir(parents=True)
    assert "dvc repro --allow-missing\n" in commands()


@pytest.mark.parametrize(("words", "train"), [([], 898), (["++suites.digits.data.per_class=3"], 30)])
def test_images_of_other_settings_are_not_counted(
    words: list[str], train: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The images that are there are three of each class; `dvc repro` fetches what params.yaml says."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    said = {"source": "digits", "selection": "per_class 3", "images": {"train": 30, "test": 30}}
    described = said | {"image_shape": [8, 8, 1], "classes": list("0123456789")}
    (tmp_path / "data/digits").mkdir(parents=True)
    (tmp_path / "data/digits/dataset.json").write_text(json.dumps(described))
    sizes = plan.size_of_data(open_stage("plan", [*SHORT, *words]))
    assert sizes and sizes.train == train
