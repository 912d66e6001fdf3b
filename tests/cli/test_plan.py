"""The plan: what will be trained, how long it takes, and the question before days of work."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tripletkd.cli import plan
from tripletkd.config.load import load
from tripletkd.errors import UserError

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


@pytest.mark.parametrize("answer", ["n\n", "y\n", None], ids=["no", "yes", "nobody"])
def test_days_of_work_are_asked_about(answer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal; where there is none nobody can answer, and the way to start is named."""
    here, there = os.openpty() if answer is not None else os.pipe()[::-1]
    os.write(here, (answer or "").encode())
    words = [*SHORT, "suites.digits.recipe.epochs=99999999", "run.ablations=[]"]
    monkeypatch.chdir(ROOT)
    with os.fdopen(there) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        if answer == "y\n":
            plan.main(words, ask=True)
        else:
            refused = (
                "nothing was started" if answer else r"about [\d.]+ days of work, and no terminal to ask at: YES=1"
            )
            with pytest.raises(UserError, match=refused):
                plan.main(words, ask=True)
    os.close(here)


def test_make_paper_asks_unless_told_not_to(tmp_path: Path) -> None:
    """Not where runs are: they were pulled, and need no images, or a training was begun, and goes on."""

    def commands(*words: str) -> str:
        make = ["make", f"--makefile={ROOT}/Makefile", "--dry-run", "--no-print-directory", "--old-file=.venv/.synced"]
        done = subprocess.run([*make, "paper", *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.replace("\\\n", "")

    asked, experiment, *_ = commands().splitlines()
    assert asked.startswith("tripletkd plan cifar10") and asked.endswith("--ask")
    assert experiment.startswith("dvc exp run") and "--allow-missing" not in experiment
    assert "--ask" not in commands("YES=1")
    (tmp_path / "runs/cifar10").mkdir(parents=True)
    [experiment, *_] = commands().splitlines()
    assert experiment.startswith("dvc exp run --allow-missing")
