"""params.yaml and the command line: what is wrong is named, with what was found and what is expected."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from stages import Stage, _commit, plan, run
from tripletkd import methods, models
from tripletkd.config import load as config
from tripletkd.errors import UserError

WRONG = {
    "run.foo=1": "run.foo: unknown key; expected one of suites, methods",
    "+run.foo=1": "run.foo: found 1, expected a value of a known key",
    "foo=1": "foo",
    "run.seeds=[]": "run.seeds: found an empty list",
    "run.seeds=[0,1]": "suites.digits.teacher.seed: found 0, which is in run.seeds",
    "run.seeds=[1,2,1]": "run.seeds: 1 is listed 2 times",
    "run.seeds=[a]": "run.seeds[0]: found 'a', expected a whole number",
    "run.seeds=[1.5]": "run.seeds[0]",
    "run.seeds=[-1]": "run.seeds[0]: found -1, expected a value >= 0",
    "run.suites=[digits,nope]": "run.suites: 'nope' is not there",
    "run.methods=[kd,nope]": "run.methods: 'nope' is not there",
    "run.export=[teacher,nope]": "run.export: 'nope' is not there; expected one of teacher, ",
    "run.export=[kd,kd]": "run.export: 'kd' is listed 2 times",
    "run.device=gpu": "run.device: found 'gpu', expected a value in auto cpu cuda",
    "suite=nope": "suite: 'nope' is not there",
    "method=nope": "method: 'nope' is not there",
    "suites.digits.student.recipe.lr=0": "suites.digits.student.recipe.lr: found 0.0, expected a value > 0",
    "suites.digits.student.recipe.lr=fast": "suites.digits.student.recipe.lr: found 'fast', expected a number",
    "suites.digits.student.recipe.epochs=0": "suites.digits.student.recipe.epochs: found 0, expected a value >= 1",
    "suites.digits.student.network=nope": "suites.digits.student.network: found 'nope'",
    "suites.digits.inputs.std=[0]": "suites.digits.inputs.std[0]: found 0.0, expected a value > 0",
    "suites.digits=3": "suites.digits: found 3, expected a block of parameters",
    "suites.digit.holdout=3": "suites.digit: unknown key; expected one of digits, digits_resnet",
    "suites.digits.data=[1]": "suites.digits.data: found a list, expected a block",
    "run.seeds=1": "run.seeds: found a single value, expected a list",
    "run.deterministic=maybe": "run.deterministic: found 'maybe', expected true or false",
    "~run.seeds": "run.seeds: cannot be left out",
    "~methods.triplet.margin": "methods.triplet.margin: missing; every key of the block must be given",
    "methods.triplet.margin=null": "methods.triplet.margin: found no value, expected one",
    "methods.triplet.margn=1": "methods.triplet.margn: unknown key; expected one of ce, triplet, margin",
    "methods.tripet.margin=1": "methods.tripet: unknown key; expected one of scratch, logit_mse, kd",
    "methods.triplet.margin=-1": "methods.triplet.margin: found -1.0, expected a value >= 0",
    "methods.triplet.margin=x": "methods.triplet.margin: found 'x', expected a number",
    "methods.triplet.margin=nan": "methods.triplet.margin: found nan, expected a value that is a finite number",
    "methods.triplet.margin=inf": "methods.triplet.margin: found inf",
    "+methods.triplet.foo=1": "methods.triplet.foo: unknown key; expected one of ce, triplet, margin",
    "+methods.foo.ce=1": "methods.foo: unknown method; expected one of",
    "methods.kd=4": "methods.kd: found 4, expected a block",
    "claims=[{method: foo, over: [kd]}]": "claims[0].method: 'foo' is no method",
    "claims=[{method: kd, over: [foo]}]": "claims[0].over: 'foo' is no method",
    "run.ablations=[nope]": "run.ablations: 'nope' is not there; expected one of margin, lambda",
    "run.splits=[test]": "run.ablation_split: 'validation' is not there; expected one of test",
    "run.splits=[validation]": "run.split: 'test' is not there; expected one of validation",
    "split=train": "split: found 'train', expected a value in test validation",
    "suites.digits.holdout=0": "suites.digits.holdout: found 0, expected a value >= 1",
    "ablations.margin=[{margin: 1}]": "ablations.margin: found [{'margin': 1}], expected a list of two variants",
    "ablations.margin=[1, 2]": "ablations.margin[0]: found 1, expected a block",
    "ablations.margin=[{margin: 1}, {margin: -1}]": "ablations.margin[1].margin: found -1.0, expected a value >= 0",
    "ablations.margin=[{margin: 1}, {marge: 2}]": "ablations.margin[1].marge: unknown key; expected one of ce, kl",
    "ablations.margin=[{margin: 1}, {recipe: {lr: 0}}]": "ablations.margin[1].recipe.lr: found 0.0",
    "ablations.margin=[{margin: 1}, {margin: 1}]": "ablations.margin: 'as configured' is listed twice",
    "~methods.triplet_family": "methods.triplet_family: missing; the ablations vary it",
    "methods.dkd.suites={nope: {nckd: 1}}": "methods.dkd.suites",
    "methods.dkd.suites.cifar100_vgg13_vgg8.nckd=-1": "methods.dkd.suites.cifar100_vgg13_vgg8.nckd: found -1.0",
    "=3": "",
    "suites.digits.holdout=99999999999999999999": "suites.digits.holdout: found 99999999999999999999, expected a",
    "run.device=${oc.env:HOME}": "run.device: found 'run.device=${oc.env:HOME}', expected the value itself",
    "run.holdout=1,2": "run.holdout: found several values",
    "run.device=é": "'run.device=é' on the command line: cannot be read",
    "hydra.run.dir=x": "hydra.run.dir: unknown key",
    "methods.rkd.layers=[]": "methods.rkd.layers: found an empty list",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_named(override: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(ROOT, [override])
    assert WRONG[override] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  triplet: {ce: 1, triplet: 2, margin: 5}", "  triplet: {ce: 1, triplet: 2}", "methods.triplet.margin"),
        ("run:", "run: [", "params.yaml"),
        ("run:", "run: !!python/object:os.system", "params.yaml"),
        ("precision: float32", "precission: float32", "run.precission: unknown key"),
        ("seeds: [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]", "seeds: 5", "run.seeds"),
        (
            "seeds: [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]",
            "seeds: [[1]]",
            "run.seeds[0]: found [1], expected a value >= 0",
        ),
        ("seeds: [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]", "seeds: &a [*a]", "params.yaml, line 9: an alias, *a"),
        (
            "seeds: [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]",
            "seeds: " + 5000 * "[",
            "params.yaml, line 9: more than 20 blocks and lists",
        ),
        ("holdout: 30", f"holdout: {5000 * '9'}", "suites.digits.holdout: 5000 characters"),
        ("device: auto", "device: ${oc.env:HOME}", "run.device: found '${oc.env:HOME}', expected the value itself"),
        ("run:\n", "defaults: [params]\nrun:\n", "defaults[0]: unknown key"),
        ("  digits:\n", "  ../../elsewhere:\n", "found '../../elsewhere' as a name"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        config.load(tmp_path)
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run stages from the project's root"):
        config.load(tmp_path)


def test_overrides_reach_the_parameters() -> None:
    settings = config.load(ROOT, ["suite=cifar10", "method=triplet", "methods.triplet.margin=10", "run.seeds=[7]"])
    assert settings.run.seeds == [7]
    assert dataclasses.asdict(settings.methods["triplet"]) == {"ce": 1.0, "triplet": 2.0, "margin": 10.0}


def test_every_method_and_network_of_params_exists_and_the_other_way_round() -> None:
    settings = config.load(ROOT)
    assert sorted(settings.methods) == methods.names()
    for suite in settings.suites.values():
        size = 8 if suite.data.source == "digits" else 32
        for block in (suite.teacher, suite.student):
            assert models.build(block.network, (size, size, len(suite.inputs.mean) if size == 32 else 1), 10, seed=1)


def test_only_a_stage_that_asks_for_it_takes_the_teacher_for_a_method() -> None:
    assert config.load(ROOT, ["method=teacher"], teacher=True).method == "teacher"
    with pytest.raises(UserError, match="method: 'teacher' is not there"):
        config.load(ROOT, ["method=teacher"])


def test_options_may_stand_between_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def main(stage: Stage) -> None:
        seen.append((stage.quiet, stage.config.suite, stage.config.split))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["stage.py", "suite=digits", "--quiet", "split=validation"])
    run(main, needs=(), logs=False)
    assert seen == [(True, "digits", "validation")]


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
    settings = config.load(ROOT, overrides)
    assert None not in (settings.suite, settings.method, settings.ablation)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "error: CUDA out of memory.*run.folding",
        ),
        (
            RuntimeError("f_backward_cuda does not have a deterministic implementation"),
            "error: run.deterministic: f_back",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
            "error: .*can't allocate memory.*run.seeds",
        ),
        (MemoryError(), "error: out of memory; take fewer run.seeds"),
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
    words = ["suite=digits", "run.seeds=[1,2]", "run.methods=[scratch]", "run.ablations=[longer]"]
    monkeypatch.setattr(sys, "argv", ["plan.py", *words])
    run(plan.main, needs=(), logs=False)
    settings = config.load(ROOT, words)
    digits = settings.suites["digits"]
    expected = {
        "teacher": (2 * digits.teacher.recipe.epochs, 1),
        "scratch": (digits.student.recipe.epochs, 2),
        "ablations": (sum(variant.recipe.epochs for variant in settings.ablations["longer"]), 2),
    }
    assert expected["ablations"][0] > 4 * digits.student.recipe.epochs
    found = re.findall(r"^  (\w+) +(\d+) epochs, (\d+) seed\(s\): about ", capsys.readouterr().out, re.MULTILINE)
    assert {name: (int(epochs), int(seeds)) for name, epochs, seeds in found} == expected


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


def test_params_has_no_interpolation_and_no_anchor() -> None:
    """DVC resolves neither the way Hydra does; the same file is read by both."""
    lines = [line.split("#")[0] for line in (ROOT / "params.yaml").read_text().splitlines()]
    assert not [line for line in lines if "${" in line or ": &" in line or ": *" in line]


def test_the_paper_stands_in_params() -> None:
    """The method's and the protocol's numbers, from the authors' published run."""
    settings = config.load(ROOT)
    student = settings.suites["cifar10"].student.recipe
    assert dataclasses.asdict(settings.methods["triplet"]) == {"ce": 1.0, "triplet": 2.0, "margin": 5.0}
    assert (student.epochs, student.batch_size, student.lr, student.momentum) == (500, 100, 0.01, 0.9)
    assert (student.weight_decay, student.decay_epochs, student.decay_factor) == (0.007, [100, 200, 300, 400], 0.1)
    published = settings.suites["cifar10"].published
    assert (published["teacher"].accuracy, published["triplet"].accuracy) == (83.75, 80.91)


def test_copy_elsewhere_reads_the_copy(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text((tmp_path / "params.yaml").read_text().replace("margin: 5}", "margin: 6}"))
    assert config.load(tmp_path).methods["triplet"].margin == 6.0
