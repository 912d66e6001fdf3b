"""params.yaml and the command line: what is wrong is named, with what was found and what is expected."""

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated, Literal

import pytest
from conftest import ROOT, committed

from tripletkd import methods, models
from tripletkd.config import load as config
from tripletkd.config.check import check
from tripletkd.errors import UserError
from tripletkd.training.optim import SGD, AdamW, Cosine, MultiStep, Recipe

WRONG = {
    "run.foo=1": "run.foo: unknown key; expected one of suites, methods",
    "+run.foo=1": "run.foo: unknown key; expected one of suites, methods",
    "foo=1": "foo: unknown key; expected one of suite, method, ablation, split, run",
    "suites.digits.seeds=[]": "suites.digits.seeds: found an empty list",
    "suites.digits.seeds=[0,1]": "suites.digits.teacher.seed: found 0, which is in suites.digits.seeds",
    "suites.digits.seeds=[1,2,1]": "suites.digits.seeds: 1 is listed 2 times",
    "suites.digits.seeds=[a]": "suites.digits.seeds[0]: found 'a', expected a whole number",
    "suites.digits.seeds=[1.5]": "suites.digits.seeds[0]: found 1.5, expected a whole number",
    "suites.digits.seeds=[true]": "suites.digits.seeds[0]: found True, expected a whole number",
    "suites.digits.seeds=[null]": "suites.digits.seeds[0]: found no value, expected one",
    "suites.digits.seeds=[-1]": "suites.digits.seeds[0]: found -1, expected a value >= 0",
    "suites.digits.precision=float16": "suites.digits.precision: found 'float16', expected a value in float32 float64",
    "run.suites=[digits,nope]": "run.suites: 'nope' is not there",
    "run.methods=[kd,nope]": "run.methods: 'nope' is not there",
    "run.export=[teacher,nope]": "run.export: 'nope' is not there; expected one of teacher, ",
    "run.export=[kd,kd]": "run.export: 'kd' is listed 2 times",
    "run.device=gpu": "run.device: found 'gpu', expected a value in auto cpu cuda",
    "suite=nope": "suite: 'nope' is not there",
    "method=nope": "method: 'nope' is not there",
    "suites.digits.recipe.optimizer.lr=0": "suites.digits.recipe.optimizer.lr: found 0.0, expected a value > 0",
    "suites.digits.recipe.optimizer.lr=fast": "suites.digits.recipe.optimizer.lr: found 'fast', expected a number",
    "suites.digits.recipe.optimizer.name=lion": "suites.digits.recipe.optimizer.name: found 'lion', expected a value",
    "~suites.digits.recipe.optimizer.name": "suites.digits.recipe.optimizer.name: missing; every key",
    "suites.digits.recipe.optimizer.name=adamw": "suites.digits.recipe.optimizer.momentum: unknown key; expected",
    "+suites.digits.recipe.schedule.gamma=1": "suites.digits.recipe.schedule.gamma: unknown key; expected one of name",
    "suites.digits.recipe.epochs=0": "suites.digits.recipe.epochs: found 0, expected a value >= 1",
    "suites.digits.recipe.schedule.decay_epochs=[0]": "suites.digits.recipe.schedule.decay_epochs: found [0], expected",
    "suites.digits.recipe.schedule.decay_epochs=[9,4]": "schedule.decay_epochs: found [9, 4], expected epochs from",
    "suites.digits.recipe.schedule.decay_epochs=[29]": "found [29], expected epochs from 1 to 28, each after the last",
    "suites.digits.recipe.epochs=21": "suites.digits.recipe.schedule.decay_epochs: found [22], expected",
    "+suites.digits.recipe.schedule.warmup_epochs=28": "suites.digits.recipe.schedule.warmup_epochs: found 28",
    "+suites.digits.teacher.recipe={epochs: 9}": "suites.digits.teacher.recipe.schedule.decay_epochs: found [22]",
    "+suites.digits.student.recipe={optimizer: {lr: 0}}": "suites.digits.student.recipe.optimizer.lr: found 0.0",
    "+suites.digits.student.recipe={lr: 1}": "suites.digits.student.recipe.lr: unknown key; expected one of epochs",
    "+suites.digits.student.recipe=[1]": "suites.digits.student.recipe: found a list, expected a block of parameters",
    "suites.digits.evaluate_every=29": "suites.digits.evaluate_every: found 29, expected at most 28, the teacher's",
    "suites.digits_resnet.evaluate_every=21": "suites.digits_resnet.evaluate_every: found 21, expected at most 20, the",
    "suites.digits.teacher_floor=101": "suites.digits.teacher_floor: found 101.0, expected a value <= 100",
    "suites.digits.published=nope.csv": "suites.digits.published: nope.csv: not there; expected a CSV file",
    "suites.digits.student.network=nope": "suites.digits.student.network: found 'nope'",
    "suites.digits.inputs.std=[0]": "suites.digits.inputs.std[0]: found 0.0, expected a value > 0",
    "suites.digits=3": "suites.digits: found 3, expected a block of parameters",
    "suites.digit.holdout=3": "suites.digit: unknown key; expected one of digits, digits_resnet",
    "suites.digits.data=[1]": "suites.digits.data: found a list, expected a block",
    "run.methods=kd": "run.methods: found a single value, expected a list",
    "suites.digits.seeds=1": "suites.digits.seeds: found a single value, expected a list",
    "suites.digits.seeds=20-11": "suites.digits.seeds: found '20-11', expected a list, or a range such as 11-20",
    "suites.digits.seeds=1-2000": "suites.digits.seeds: found '1-2000', expected a list, or a range such as 11-20",
    "suites.digits.seeds=0-5": "suites.digits.teacher.seed: found 0, which is in suites.digits.seeds",
    "claims={method: kd}": "claims: found a block of parameters, expected a list",
    "run.deterministic=maybe": "run.deterministic: found 'maybe', expected true or false",
    "~run.device": "run.device: missing; every key of the block must be given",
    "~suites.digits.seeds": "suites.digits.seeds: missing; every key of the block must be given",
    "~run.nope": "run.nope: unknown key; expected one of suites",
    "~methods.triplet.margin": "methods.triplet.margin: missing; every key of the block must be given",
    "methods.triplet.margin=null": "methods.triplet.margin: found no value, expected one",
    "methods.triplet.margn=1": "methods.triplet.margn: unknown key; expected one of ce, triplet, margin",
    "methods.tripet.margin=1": "methods.tripet: unknown key; expected one of scratch, ",
    "method.triplet.margin=1": "is a single value; did you mean methods.triplet.margin?",
    "triplet.margin=1": "ablations, claims; did you mean methods.triplet.margin?",
    "suite.digits.seeds=[1]": "did you mean suites.digits.seeds?",
    "methods.triplet.margin=-1": "methods.triplet.margin: found -1.0, expected a value >= 0",
    "methods.triplet.margin=x": "methods.triplet.margin: found 'x', expected a number",
    "methods.triplet.margin=nan": "methods.triplet.margin: found nan, expected a value that is a finite number",
    "methods.triplet.margin=inf": "methods.triplet.margin: found inf",
    "+methods.triplet.foo=1": "methods.triplet.foo: unknown key; expected one of ce, triplet, margin",
    "+methods.foo.ce=1": "methods.foo: unknown method; expected one of",
    "methods.kd=4": "methods.kd: found 4, expected a block",
    "claims=[{method: foo, over: [kd]}]": "claims[0].method: 'foo' is not there",
    "claims=[{method: kd, over: [foo]}]": "claims[0].over: 'foo' is not there; expected one of scratch, ",
    "claims=[{method: kd, over: [kd]}]": "claims[0].over: 'kd' is not there; expected one of scratch, ",
    "claims=[{method: kd, over: [pair, pair]}]": "claims[0].over: 'pair' is listed 2 times",
    "methods.at.layers=[stage1,stage1]": "methods.at.layers: 'stage1' is listed 2 times",
    "run.ablations=[nope]": "run.ablations: 'nope' is not there; expected one of margin, lambda",
    "run.splits=[test]": "run.ablation_split: 'validation' is not there; expected one of test",
    "run.splits=[validation]": "run.split: 'test' is not there; expected one of validation",
    "split=train": "split: found 'train', expected a value in test validation",
    "suites.digits.holdout=0": "suites.digits.holdout: found 0, expected a value >= 1",
    "ablations.margin=[{margin: 1}]": "ablations.margin: found [{'margin': 1}], expected a list of two variants",
    "ablations.margin=[{margin: 1}, {recipe: 2}]": "ablations.margin[1].recipe: found 2, expected a block",
    "ablations.lambda=[{margin: 1}, {margin: -1}]": "ablations.lambda[1].margin: found -1.0, expected a value >= 0",
    "ablations.margin=[1, 2]": "ablations.margin[0]: found 1, expected a block",
    "ablations.margin=[{margin: 1}, {margin: -1}]": "ablations.margin[1].margin: found -1.0, expected a value >= 0",
    "ablations.margin=[{margin: 1}, {marge: 2}]": "ablations.margin[1].marge: unknown key; expected one of ce, kl",
    "ablations.margin=[{margin: 1}, {recipe: {optimizer: {lr: 0}}}]": "ablations.margin[1].recipe.optimizer.lr: found",
    "ablations.margin=[{margin: 1}, {margin: 1}]": "ablations.margin: 'as configured' is listed twice",
    "~methods.triplet_family": "methods.triplet_family: missing; the ablations vary it",
    "methods.dkd.suites={nope: {nckd: 1}}": "methods.dkd.suites",
    "methods.dkd.suites.cifar100_vgg13_vgg8.nckd=-1": "methods.dkd.suites.cifar100_vgg13_vgg8.nckd: found -1.0",
    "=3": "",
    "suites.digits.holdout=99999999999999999999": "suites.digits.holdout: found 99999999999999999999, expected a",
    "run.device=${oc.env:HOME}": "run.device: found 'run.device=${oc.env:HOME}', expected the value itself",
    "run.device=cpu,cuda": "run.device: found several values, expected one; `dvc exp run --queue -S 'run.dev",
    "method=kd,pair": "method: found several values, expected one; `dvc repro` runs every method that",
    "run.checkpoint_minutes=1e31": "run.checkpoint_minutes: found 1e+31, expected a value of at most 1e+30",
    "+run.device=cpu": "run.device",
    "run/device=cpu": "run/device: unknown key",
    "suites.digits.holdout.x=1": "suites.digits.holdout.x: unknown key; expected one of none: it is a single value",
    "run.device=é": "'run.device=é' on the command line: cannot be read",
    "hydra.run.dir=x": "hydra.run.dir: unknown key",
    "methods.rkd.layers=[]": "methods.rkd.layers: found an empty list",
    "suites.digits.student.recipe.optimizr.lr=1": "suites.digits.student.recipe.optimizr: unknown key; expected one of",
    "suites.digits.student.recpe.epochs=1": "suites.digits.student.recpe: unknown key; expected one of network",
    "suites.digits.recipe.optimizer={name: adamw}": "suites.digits.recipe.optimizer.lr: missing",
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
        (
            "triplet: {ce: 1, triplet: 2, ",
            "triplet: {ce: 1, ",
            "methods.triplet.triplet: missing",
        ),
        ("run:", "run: [", "params.yaml"),
        ("run:", "run: !!python/object:os.system", "params.yaml"),
        ("precision: float32", "precission: float32", "suites.digits.precission: unknown key"),
        ("mean: [0.307]", "mean: 5", "suites.digits.inputs.mean: found a single value, expected a list"),
        (
            "mean: [0.307]",
            "mean: [[1]]",
            "suites.digits.inputs.mean[0]: found a list, expected a number",
        ),
        ("mean: [0.307]", "mean: &a [*a]", "params.yaml, line LINE: an alias, *a"),
        (
            "mean: [0.307]",
            "mean: " + 5000 * "[",
            "params.yaml, line LINE: more than 20 blocks and lists",
        ),
        ("holdout: 30", f"holdout: {5000 * '9'}", "suites.digits.holdout: 5000 characters"),
        ("device: auto", "device: ${oc.env:HOME}", "run.device: found '${oc.env:HOME}', expected the value itself"),
        ("run:\n", "defaults: [params]\nrun:\n", "defaults[0]: unknown key"),
        ("  digits:\n", "  ../../elsewhere:\n", "found '../../elsewhere' as a name"),
        ("  digits_resnet:\n", "  a.b:\n", "suites.a.b: found 'a.b' as a name, expected letters, digits and _ - in it"),
        ("  digits_resnet:\n", "  17:\n", "suites: found 17 as a name, expected text"),
        ("  split: test", "  split: test\n  split: validation", "found duplicate key split"),
        ("device: auto", "device: ???", "run.device: missing"),
        ("device: auto", "device: yes", "run.device: found True, expected a value in auto cpu cuda"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        config.load(tmp_path)
    line = text[: text.index(old)].count("\n") + 1
    assert message.replace("LINE", str(line)) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run stages from the project's root"):
        config.load(tmp_path)


def test_overrides_reach_the_parameters() -> None:
    settings = config.load(
        ROOT, ["suite=cifar10", "method=triplet", "methods.triplet.margin=10", "suites.cifar10.seeds=[7]"]
    )
    suite = settings.for_suite("cifar10")
    assert suite.seeds == [7]
    assert dataclasses.asdict(suite.methods["triplet"]) == {
        "ce": 1.0,
        "triplet": 2.0,
        "margin": 10.0,
        "standardize": False,
    }


def test_a_range_of_seeds_is_written_out() -> None:
    settings = config.load(ROOT, ["suites.cifar10.seeds=[7]"])
    assert settings.suites["digits"].seeds == [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    assert settings.suites["cifar10"].seeds == [7]
    assert config.load(ROOT, ["suites.digits.seeds=3-4"]).suites["digits"].seeds == [3, 4]


@pytest.mark.parametrize(
    "override",
    ["methods.triplet.margin=7", "run.ablation_split=test", "suites.digits.recipe.epochs=2", "suites.digits.seeds=1-5"],
)
def test_what_dvc_exp_run_sets_changes_one_line(override: str, tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides  # what it calls

    before = (ROOT / "params.yaml").read_text().splitlines()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", [override])
    after = (tmp_path / "params.yaml").read_text().splitlines()
    assert len(after) == len(before)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_every_method_and_network_of_params_exists_and_the_other_way_round() -> None:
    settings = config.load(ROOT)
    assert sorted(settings.methods) == methods.names()
    for suite in settings.suites.values():
        size = 8 if suite.data.source == "digits" else 32
        for block in (suite.teacher, suite.student):
            assert models.build(block.network, (size, size, len(suite.inputs.mean) if size == 32 else 1), 10, seed=1)


def test_only_a_stage_that_asks_for_it_takes_the_teacher_for_a_method() -> None:
    assert config.load(ROOT, ["method=teacher"], allow_teacher=True).method == "teacher"
    with pytest.raises(UserError, match="method: 'teacher' is not there"):
        config.load(ROOT, ["method=teacher"])


def test_params_has_no_interpolation_and_no_anchor() -> None:
    """DVC resolves neither the way Hydra does; the same file is read by both."""
    lines = [line.split("#")[0] for line in (ROOT / "params.yaml").read_text().splitlines()]
    assert not [line for line in lines if "${" in line or ": &" in line or ": *" in line]


def test_the_paper_stands_in_params(tmp_path: Path) -> None:
    """The method's and the protocol's numbers, from the authors' published run."""
    (tmp_path / "params.yaml").write_text(committed("params.yaml"))
    (tmp_path / "tripletkd").symlink_to(ROOT / "tripletkd")  # with the published figures
    suite = config.load(tmp_path).for_suite("cifar10")
    assert dataclasses.asdict(suite.methods["triplet"]) == {
        "ce": 1.0,
        "triplet": 2.0,
        "margin": 5.0,
        "standardize": False,
    }
    assert suite.student.recipe == Recipe(
        epochs=500,
        batch_size=100,
        optimizer=SGD(lr=0.01, momentum=0.9, weight_decay=0.007),
        schedule=MultiStep(decay_epochs=(100, 200, 300, 400), decay_factor=0.1),
    )
    published = suite.published
    assert (published["teacher"].accuracy, published["triplet"].accuracy) == (83.75, 80.91)
    assert published["triplet"].curve == "tripletkd/published/oki2020_cifar10_triplet.csv"


def test_copy_elsewhere_reads_the_copy(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text((tmp_path / "params.yaml").read_text().replace("holdout: 30", "holdout: 29"))
    assert config.load(tmp_path).for_suite("digits").holdout == 29


# --- what a suite comes to --------------------------------------------------------------------------------------------


def test_a_recipe_is_written_once_and_changed_where_it_differs() -> None:
    resnets = config.load(ROOT).for_suite("digits_resnet")
    sgd = SGD(lr=0.05, momentum=0.9, weight_decay=0.0005)
    assert resnets.teacher.recipe == Recipe(30, 50, sgd, MultiStep(decay_epochs=(20, 26), decay_factor=0.1))
    assert resnets.student.recipe == Recipe(20, 50, sgd, MultiStep(decay_epochs=(14, 18), decay_factor=0.1))
    digits = config.load(ROOT).for_suite("digits")
    assert digits.teacher.recipe == digits.student.recipe


def test_another_optimizer_or_schedule_starts_anew() -> None:
    """Nothing of sgd or multistep is left in it."""
    changes = "{optimizer: {name: adamw, lr: 0.001, weight_decay: 0}, schedule: {name: cosine, warmup_epochs: 2}}"
    suite = config.load(ROOT, [f"+suites.digits.student.recipe={changes}", "run.ablations=[margin]"]).for_suite(
        "digits"
    )
    assert suite.student.recipe == Recipe(28, 50, AdamW(lr=0.001, weight_decay=0), Cosine(warmup_epochs=2))
    assert isinstance(suite.teacher.recipe.optimizer, SGD)


def test_the_command_line_changes_blocks_that_are_written_and_blocks_that_are_not() -> None:
    """A block is merged into what is there; one of another name takes its place."""

    def student(*words: str) -> Recipe:
        return config.load(ROOT, words).for_suite("digits").student.recipe

    optimizer = student("suites.digits.recipe.optimizer={name: adamw, lr: 0.1, weight_decay: 0}").optimizer
    assert optimizer == AdamW(lr=0.1, weight_decay=0)
    for word in ("recipe.optimizer={lr: 0.5}", "student.recipe.optimizer={lr: 0.5}", "student.recipe.optimizer.lr=0.5"):
        assert student(f"suites.digits.{word}").optimizer == SGD(lr=0.5, momentum=0.9, weight_decay=0.0005)
    assert student("suites.digits.student={network: resnet8, recipe: {epochs: 40}}").epochs == 40


def test_an_ablation_varies_the_recipe_by_its_leaves() -> None:
    words = [
        "run.ablations=[longer,margin]",
        "ablations.margin=[{margin: 1, outputs: unit}, "
        "{outputs: unit, recipe: {optimizer: {name: adamw, lr: 0.1, weight_decay: 0}}}]",
    ]
    found = config.load(ROOT, words).for_suite("digits").ablations
    assert [variant.label for variant in found["longer"]] == [
        "triplet 0",
        "triplet 0, epochs 112, decay_epochs [88]",
        "triplet 2",
        "triplet 2, epochs 112, decay_epochs [88]",
    ]
    assert found["longer"][1].recipe.epochs == 112
    assert found["longer"][1].recipe.schedule == MultiStep(decay_epochs=(88,), decay_factor=0.1)
    assert [variant.label for variant in found["margin"]] == ["margin 1", "optimizer adamw, lr 0.1, weight_decay 0"]
    assert found["margin"][1].recipe.optimizer == AdamW(lr=0.1, weight_decay=0)


def test_ablations_that_nobody_asked_for_need_not_fit_a_suites_recipe() -> None:
    words = [
        "run.ablations=[margin]",
        "suites.digits.recipe.schedule={name: cosine}",
    ]
    assert list(config.load(ROOT, words).for_suite("digits").ablations) == ["margin"]
    with pytest.raises(UserError, match=r"ablations.longer.1..recipe.schedule.decay_epochs: unknown key"):
        config.load(ROOT, [*words, "ablation=longer"])


def test_a_method_may_be_otherwise_in_a_suite_and_each_suite_has_its_own() -> None:
    settings = config.load(ROOT, ["suite=digits"])
    nckd = {name: settings.for_suite(name).methods["dkd"].nckd for name in settings.suites}
    assert (nckd["digits"], nckd["cifar100_resnet56_resnet20"], nckd["cifar100_vgg13_vgg8"]) == (8.0, 2.0, 6.0)


def test_published_figures_stand_in_files() -> None:
    settings = config.load(ROOT)
    counts = {name: len(settings.for_suite(name).published) for name in settings.suites}
    assert sum(counts.values()) == 2 + 5 * 14
    published = settings.for_suite("cifar100_vgg13_vgg8").published
    assert (published["crd"].accuracy, published["kd standardized"].accuracy) == (73.94, 74.36)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "method,accuracy,source\nkd,1,x\n",
            "figures.csv: found the columns method, accuracy, source, expected curve too",
        ),
        ("method,accuracy,source,curve\nkd,x,y,\n", "figures.csv, line 2.accuracy: found 'x', expected a number"),
        (
            "method,accuracy,source,curve\nkd,101,y,\n",
            "figures.csv, line 2.accuracy: found 101.0, expected a value <= 100",
        ),
        ("method,accuracy,source,curve\nkd,nan,y,\n", "figures.csv, line 2.accuracy: found 'nan', expected a number"),
        ("method,accuracy,source,curve\nkd,1,,\n", "figures.csv, line 2: found no source, expected one"),
        ("method,accuracy,source,curve\nkd,1\n", "figures.csv, line 2: found no source, expected one"),
        ("method,accuracy,source,curve\nkd,1,y,\nkd,2,y,\n", "figures.csv, line 3: 'kd' is listed twice"),
        (
            "method,accuracy,source,curve\nkd,1,y,c.csv\n",
            "c.csv: found the columns epoch, accuracy, expected test_accuracy too",
        ),
        (
            "method,accuracy,source,curve\nkd,1,y,d.csv\n",
            "d.csv: not there; expected a CSV file with the columns epoch, test",
        ),
        ("method,accuracy,source,curve\nkd,1,y,e.csv\n", "e.csv, line 2.test_accuracy: found 'x', expected a number"),
        ("method,accuracy,source,curve\nkd,1,y,f.csv\n", "f.csv, line 2.test_accuracy: found 'nan', expected a number"),
        ("method,accuracy,source,curve\nkd,1,y,g.csv\n", "g.csv: found no epoch, expected a line each"),
    ],
)
def test_wrong_published_figures_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "figures.csv").write_text(text)
    (tmp_path / "c.csv").write_text("epoch,accuracy\n1,2\n")
    (tmp_path / "e.csv").write_text("epoch,test_accuracy\n1,x\n")
    (tmp_path / "f.csv").write_text("epoch,test_accuracy\n1,nan\n")
    (tmp_path / "g.csv").write_text("epoch,test_accuracy\n")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(UserError) as caught:
        config.load(tmp_path, ["suites.digits.published=figures.csv"])
    assert f"suites.digits.published: {message}" in str(caught.value)


# --- annotations ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Example:
    weight: Annotated[float, "> 0", "<= 1"]
    kinds: tuple[Literal["a", "b"], ...]
    layers: list[Literal["stage1", "stage2"]]
    text: str = "x"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"weight": 0, "kinds": [], "layers": []}, "k.weight: found 0.0, expected a value > 0; correct"),
        ({"weight": 2, "kinds": [], "layers": []}, "k.weight: found 2.0, expected a value <= 1; correct"),
        ({"weight": True, "kinds": [], "layers": []}, "k.weight: found True, expected a number"),
        ({"weight": 1, "kinds": ["a", "c"], "layers": []}, r"k.kinds\[1\]: found 'c', expected a value in a b"),
        (
            {"weight": 1, "kinds": [], "layers": ["stage3"]},
            r"k.layers\[0\]: found 'stage3', expected a value in stage1 stage2",
        ),
        ({"weight": 1, "kinds": [], "layers": [], "text": True}, "k.text: found True, expected text"),
        ({"weight": 1, "kinds": [], "layers": [], "text": [1]}, "k.text: found a list, expected text"),
        ({"weight": 1, "kinds": []}, "k.layers: missing"),
        ([], "k: found a list, expected a block of parameters"),
    ],
)
def test_annotations_are_what_is_demanded(block: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(Example, block, "k")


def test_what_is_as_annotated_is_taken_as_it_is() -> None:
    made = check(Example, {"weight": 1, "kinds": ["b"], "layers": ["stage2"], "text": 7}, "k")
    assert made == Example(1.0, ("b",), ["stage2"], "7")
    assert isinstance(made.weight, float)


def test_a_range_that_nobody_can_read_is_an_error_of_ours() -> None:
    wrong = dataclasses.make_dataclass("Wrong", [("x", Annotated[int, "about 3"])])
    with pytest.raises(KeyError):
        check(wrong, {"x": 3}, "k")
