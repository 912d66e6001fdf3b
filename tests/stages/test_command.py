"""The command line that all stages share: what it takes, what it says when something is wrong, and the plan."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from stages._command import EX_TEMPFAIL, Stage, _commit, run

from stages import plan
from tripletkd.config.load import load
from tripletkd.errors import Paused


def test_options_may_stand_between_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def main(stage: Stage) -> None:
        seen.append((stage.options.quiet, stage.config.suite, stage.config.split))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["stage.py", "suite=digits", "--quiet", "split=validation"])
    run(main, needs=(), logs=False)
    assert seen == [(True, "digits", "validation")]


def test_a_script_is_run_as_its_module_is() -> None:
    asked = ["method=kd", "suite=nope"]
    script, module = (
        subprocess.run([sys.executable, *words, *asked], cwd=ROOT, capture_output=True, text=True, check=False)
        for words in (["stages/distill.py"], ["-m", "stages.distill"])
    )
    assert script.stderr.startswith("error: suite: 'nope' is not there; expected one of digits")
    assert (script.returncode, script.stderr) == (module.returncode, module.stderr)


def test_help_ends_with_an_example_that_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ablate.py", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        run(plan.main, needs=("suite", "method", "ablation", "split"), logs=False)
    assert ended.value.code == 0
    program, *overrides = capsys.readouterr().out.strip().rpartition("for example: python -m ")[2].split()
    assert program == "stages.ablate"
    settings = load(ROOT, overrides)
    assert None not in (settings.suite, settings.method, settings.ablation)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "error: CUDA out of memory.*run.fuse_seeds",
        ),
        (
            RuntimeError("f_backward_cuda does not have a deterministic implementation"),
            "error: run.deterministic: f_back",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
            "error: .*can't allocate memory.*fewer seeds",
        ),
        (MemoryError(), "error: out of memory; take fewer seeds"),
    ],
)
def test_what_a_device_cannot_do_is_said(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Stage) -> None:
        raise error

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["stage.py", "suite=digits"])
    with pytest.raises(SystemExit) as ended:
        run(main, needs=(), logs=False)
    assert ended.value.code == 1
    assert re.match(message, capsys.readouterr().err)


def test_the_plan_counts_the_epochs_that_will_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of both splits' teachers, and of an ablation whose variants differ in nothing but their epochs."""
    monkeypatch.chdir(ROOT)
    words = ["suite=digits", "suites.digits.seeds=[1,2]", "run.methods=[scratch]", "run.ablations=[longer]"]
    monkeypatch.setattr(sys, "argv", ["plan.py", *words])
    run(plan.main, needs=(), logs=False)
    settings = load(ROOT, words)
    digits = settings.for_suite("digits")
    expected = {
        "teacher": (2 * digits.teacher.recipe.epochs, 1),
        "scratch": (digits.student.recipe.epochs, 2),
        "ablations": (sum(variant.recipe.epochs for variant in digits.ablations["longer"]), 2),
    }
    assert expected["ablations"][0] > 4 * digits.student.recipe.epochs
    found = re.findall(r"^  (\w+) +(\d+) epochs, (\d+) seed\(s\): about ", capsys.readouterr().out, re.MULTILINE)
    assert {name: (int(epochs), int(seeds)) for name, epochs, seeds in found} == expected


@pytest.mark.parametrize("answer", ["", "n\n", "y\n", None], ids=["end", "no", "yes", "nobody"])
def test_days_of_work_are_asked_about(
    answer: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a terminal; where there is none nobody can answer, and the way to start is named."""
    here, there = os.openpty() if answer is not None else os.pipe()[::-1]
    os.write(here, (answer or "\x04").encode())  # Ctrl-D
    words = ["suite=digits", "suites.digits.recipe.epochs=99999999", "run.methods=[scratch]", "run.ablations=[]"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["plan.py", *words, "--ask"])
    with os.fdopen(there) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        if answer == "y\n":
            run(plan.main, needs=(), logs=False, asks=True)
        else:
            with pytest.raises(SystemExit) as ended:
                run(plan.main, needs=(), logs=False, asks=True)
            assert ended.value.code == 1
    os.close(here)
    printed = capsys.readouterr()
    assert ("Start about" in printed.out) == (answer is not None)
    refused = r"error: about [\d.]+ days of work, and no terminal to ask at: YES=1 starts it without asking\n"
    assert re.fullmatch({None: refused, "y\n": ""}.get(answer, "error: nothing was started\n"), printed.err)


def test_minutes_of_work_are_not_asked_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["plan.py", "suite=digits", "run.methods=[scratch]", "run.ablations=[]", "--ask"])
    run(plan.main, needs=(), logs=False, asks=True)
    assert "Start" not in capsys.readouterr().out


def test_make_paper_asks_unless_told_not_to(tmp_path: Path) -> None:
    """Not where runs are: they were pulled, and need no images, or a training was begun, and goes on."""

    def commands(*words: str) -> str:
        make = ["make", f"--makefile={ROOT}/Makefile", "--dry-run", "--no-print-directory", "--old-file=.venv/.synced"]
        done = subprocess.run([*make, "paper", *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.replace("\\\n", "")

    plan, experiment, *_ = commands().splitlines()
    assert plan.startswith("python -m stages.plan suite=cifar10") and plan.endswith("--ask")
    assert experiment.startswith("dvc exp run") and "--allow-missing" not in experiment
    assert "--ask" not in commands("YES=1")
    (tmp_path / "runs/cifar10").mkdir(parents=True)
    [experiment, *_] = commands().splitlines()
    assert experiment.startswith("dvc exp run --allow-missing")
    (tmp_path / "data/cifar10").mkdir(parents=True)
    (tmp_path / "data/cifar10/images.safetensors").touch()
    [experiment, *_] = commands().splitlines()
    assert experiment.startswith("dvc exp run") and "--allow-missing" not in experiment


def test_a_commit_is_dirty_where_code_was_changed_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *author, *words], capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    assert _commit() is None
    git("init", "-q")
    assert _commit() is None
    for name in ("dvc.lock", "params.yaml"):
        (tmp_path / name).write_text("one")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "dvc.lock").write_text("two")
    assert _commit() == head
    (tmp_path / "params.yaml").write_text("two")
    assert _commit() == f"{head}-dirty"


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(_: Stage) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["stage.py", "suite=digits"])
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(main, needs=(), logs=False)


def test_a_run_that_was_stopped_says_so_and_ends_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not 0, for nothing is finished, and not 1, for nothing is wrong: a scheduler starts it again."""

    def main(_: Stage) -> None:
        raise Paused("stopped at epoch 2 of 3 (SIGTERM); the same command goes on from here")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["stage.py", "suite=digits"])
    with pytest.raises(SystemExit) as ended:
        run(main, needs=(), logs=False)
    assert ended.value.code == EX_TEMPFAIL == 75
    assert capsys.readouterr().err == (
        "paused: stopped at epoch 2 of 3 (SIGTERM); the same command goes on from here\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only-seeds", "11,x"], "argument --only-seeds: invalid list of seeds value: '11,x'"),
        (["--max-minutes", "nan"], "argument --max-minutes: invalid number of minutes value: 'nan'"),
        (["--processes", "two"], "argument --processes: invalid number of processes value: 'two'"),
        (["--processes", "0"], "argument --processes: invalid number of processes value: '0'"),
    ],
)
def test_an_option_that_cannot_be_read_is_named(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["distill.py", "suite=digits", *words])
    with pytest.raises(SystemExit) as ended:
        run(plan.main, needs=(), logs=False, trains=True)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_only_stages_that_train_take_the_options_of_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "suite=digits", "--retrain"])
    with pytest.raises(SystemExit) as ended:
        run(plan.main, needs=(), logs=False)
    assert ended.value.code == 2 and "unrecognized arguments: --retrain" in capsys.readouterr().err
