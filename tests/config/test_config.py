"""params.yaml and the command line: what is read, what it comes to, and how a person is told what is wrong."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, committed

from tripletkd import methods, models
from tripletkd.config.load import _refuse_files, load
from tripletkd.config.schema import DataSettings, EquivalentCode, SuiteConfig
from tripletkd.errors import UserError
from tripletkd.files import read_yaml
from tripletkd.training.optim import SGD, AdamW, Cosine, MultiStep, Recipe

TEXT = (ROOT / "params.yaml").read_text()
SUITE, RECIPE = "suites.digits", "suites.digits.recipe"
CODE = f"run.equivalent_code=[{{code: {64 * 'e'}, suite: digits, methods: [teacher, kd], shown: docs/own}}]"


def digits(*words: str) -> SuiteConfig:
    return load(ROOT, words).for_suite("digits")


def message(folder: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is wrong is named: the key, what was found, what was expected ----------------------------------------------

WRONG = {
    # names of keys
    "run.foo=1": "run.foo: unknown key; expected one of suites, methods",
    "foo=1": "foo: unknown key; expected one of suite, method, ablation, split, run",
    "suites.digit.holdout=3": "suites.digit: unknown key; expected one of digits, digits_resnet",
    f"{SUITE}.holdout.x=1": f"{SUITE}.holdout.x: unknown key; expected one of none: it is a single value",
    f"{SUITE}.student.recpe.epochs=1": f"{SUITE}.student.recpe: unknown key; expected one of network, weights, recipe",
    f"{SUITE}.student.recipe.optimizr.lr=1": f"{SUITE}.student.recipe.optimizr: unknown key",
    f"{RECIPE}.schedule.gamma=1": f"{RECIPE}.schedule.gamma: unknown key; expected one of name, decay_epochs",
    f"{RECIPE}.optimizer.name=adamw": f"{RECIPE}.optimizer.momentum: unknown key; expected one of name, lr",
    f"{SUITE}.teacher.weights.sha=1": "weights.sha: unknown key; expected one of source, sha256",
    "methods.triplet.margn=1": "methods.triplet.margn: unknown key; expected one of ce, triplet, margin, standardize",
    # weights
    f"{SUITE}.teacher.weights=a.pth": f"{SUITE}.teacher.weights: found 'a.pth', expected a block of parameters",
    f"{SUITE}.teacher.weights={{source: a.pth}}": f"{SUITE}.teacher.weights.sha256: missing; expected one of them",
    f"{SUITE}.teacher.weights={{source: a, sha256: x}}": f"{SUITE}.teacher.weights.sha256: found 'x', expected text of",
    f"{SUITE}.teacher.weights={{source: a, sha256: '{64 * '0'}', git_blob: '{40 * '0'}'}}": "found beside git_blob",
    f"{SUITE}.teacher.weights={{source: a, tag: V1, sha256: '{64 * '0'}'}}": "weights.tag: found with 'a'; expected",
    f"{SUITE}.teacher.weights={{source: timm/resnet18, sha256: '{64 * '0'}'}}": "weights.source: found 'timm/resnet18'",
    f"{SUITE}.teacher.recipe=null": f"{SUITE}.teacher.recipe: found no value; expected {SUITE}.teacher.weig",
    f"{SUITE}.student.recipe=null": f"{SUITE}.student.recipe: found no value, expected one",
    "triplet.margin=1": "claims; did you mean methods.triplet.margin?",
    "suite.digits.seeds=[1]": "did you mean suites.digits.seeds?",
    "run/device=cpu": "run/device: unknown key",
    "run.device@run=cpu": "run.device@run: unknown key",
    "~run.nope": "run.nope: unknown key",
    "~run.device": "run.device: missing; every key of the block must be given",
    f"~{RECIPE}.optimizer.name": f"{RECIPE}.optimizer.name: missing; every key",
    # types, ranges, choices
    f"{SUITE}.seeds=[1.5]": f"{SUITE}.seeds[0]: found 1.5, expected a whole number",
    f"{SUITE}.seeds=[true]": f"{SUITE}.seeds[0]: found True, expected a whole number",
    f"{SUITE}.seeds=[null]": f"{SUITE}.seeds[0]: found no value, expected one",
    f"{SUITE}.seeds=1": f"{SUITE}.seeds: found 1, expected a list",
    f"{SUITE}.seeds=[]": f"{SUITE}.seeds: found [], expected a list of at least 1",
    f"{SUITE}.seeds=[1,2,1]": f"{SUITE}.seeds: found [1, 2, 1], expected each once",
    f"{SUITE}.seeds=20-11": f"{SUITE}.seeds: found '20-11', expected a list, or a range such as 11-20",
    f"{SUITE}.seeds={[*range(1, 302)]}".replace(
        " ", ""
    ): f"{SUITE}.seeds: found [1, 2, 3, 4, 5, 6, ...], expected a list",
    f"{SUITE}.seeds=1-301": f"{SUITE}.seeds: found '1-301', expected a list, or a range such as 11-20 of at most 300",
    f"{SUITE}.seeds=0-5": f"{SUITE}.teacher.seed: found 0, which is in {SUITE}.seeds",
    f"{SUITE}.about=[1]": f"{SUITE}.about: found [1], expected text",
    f"{SUITE}=3": f"{SUITE}: found 3, expected a block of parameters",
    "suites=3": "suites: found 3, expected a block of parameters",
    f"{SUITE}.inputs.mean=[{'[' * 9}1{']' * 9}]": f"{SUITE}.inputs.mean[0]: found [[[[[[[...]]]]]]], expected a number",
    "claims={method: kd}": "claims: found a block, expected a list",
    "run.deterministic=maybe": "run.deterministic: found 'maybe', expected true or false",
    "run.device=gpu": "run.device: found 'gpu', expected 'auto', 'cpu' or 'cuda'",
    f"{RECIPE}.optimizer.name=lion": f"{RECIPE}.optimizer.name: found 'lion', expected one of 'sgd', 'adamw'",
    f"{RECIPE}.optimizer.lr=0": f"{RECIPE}.optimizer.lr: found 0, expected a value > 0",
    f"{SUITE}.student.recipe={{optimizer: {{lr: 0}}}}": f"{SUITE}.student.recipe.optimizer.lr: found 0, expected",
    f"{SUITE}.student.recipe=[1]": f"{SUITE}.student.recipe: found [1], expected a block of parameters",
    f"{SUITE}.teacher_floor=101": f"{SUITE}.teacher_floor: found 101, expected a value <= 100",
    f"{SUITE}.holdout=99999999999999999999": f"{SUITE}.holdout: found 99999999999999999999, expected a finite number",
    "methods.triplet.margin=x": "methods.triplet.margin: found 'x', expected a number",
    "methods.triplet.margin=null": "methods.triplet.margin: found no value, expected one",
    "methods.triplet.margin=nan": "methods.triplet.margin: found nan, expected a finite number",
    "methods.triplet.margin=1e31": "methods.triplet.margin: found 1e+31, expected a finite number of at most 1e+30",
    "methods.at.layers=[stage1,stage1]": "methods.at.layers: found ['stage1', 'stage1'], expected each once",
    "methods.at.layers=[embedding]": "methods.at.layers[0]: found 'embedding', expected 'stage1', 'stage2' or 'stage3'",
    "methods.crd.suites.digits.negatives=0": "methods.crd.suites.digits.negatives: found 0, expected a value >= 1",
    # what does not go together
    f"{RECIPE}.schedule.decay_epochs=[9,4]": f"{RECIPE}.schedule.decay_epochs: found [9, 4], expected epochs from 1 to",
    f"{RECIPE}.schedule.warmup_epochs=28": f"{RECIPE}.schedule.warmup_epochs: found 28",
    f"{SUITE}.teacher.recipe={{epochs: 9}}": f"{SUITE}.teacher.recipe.schedule.decay_epochs: found [22]",
    f"{SUITE}.evaluate_every=29": f"{SUITE}.evaluate_every: found 29, expected at most 28, the teacher's",
    f"{SUITE}.student.network=resnet9": f"{SUITE}.student.network: found 'resnet9', expected one of paper_teacher",
    f"{SUITE}.published=nope.csv": f"{SUITE}.published: nope.csv: expected a file in tripletkd/published, on which",
    f"{SUITE}.published=tripletkd/published/nope.csv": "published/nope.csv: not there; expected a CSV file",
    # names of suites, methods, ablations
    "run.suites=[digits,nope]": "run.suites: 'nope' is not there; expected one of digits, ",
    "run.methods=[tripet]": "run.methods: 'tripet' is not there; expected one of scratch, ",
    "run.export=[teacher,nope]": "run.export: 'nope' is not there; expected one of teacher, ",
    "run.splits=[validation]": "run.split: 'test' is not there; expected one of validation",
    "run.splits=[test]": "run.ablation_split: 'validation' is not there; expected one of test",
    "run.ablations=[nope]": "run.ablations: 'nope' is not there; expected one of margin, lambda",
    "suite=digit": "suite: 'digit' is not there; expected one of digits, digits_resnet, cifar10, ",
    "method=teacher": "method: 'teacher' is not there",
    "claims.0.over=[triplet]": "claims[0].over: 'triplet' is not there; expected one of scratch, ",
    CODE.replace("digits", "nope"): "run.equivalent_code[0].suite: 'nope' is not there",
    CODE.replace("kd", "nope"): "run.equivalent_code[0].methods: 'nope' is not there; expected one of teacher, ",
    CODE.replace(64 * "e", "b4b4"): "run.equivalent_code[0].code: found 'b4b4', expected text of the pattern",
    "+methods={foo: {ce: 1}}": "methods.foo: unknown method; expected one of at, cc",
    "+methods={teacher: {ce: 1}}": "methods.teacher: found 'teacher' as a name, expected another",
    "methods.crd.suites={nope: {}}": "methods.crd.suites: 'nope' is not there",
    "~methods.triplet_family": "methods.triplet_family: missing; the ablations vary it",
    # ablations
    "ablations.margin=[{margin: 1}]": "ablations.margin: found [{'margin': 1}], expected a list of at least 2",
    "ablations.margin=[{margin: 1}, {marge: 2}]": "ablations.margin[1].marge: unknown key; expected one of ce, kl",
    "ablations.margin=[{margin: 1}, {recipe: 2}]": "ablations.margin[1].recipe: found 2, expected a block",
    "ablations.margin=[{margin: 1}, {recipe: {epochs: 9}}]": "ablations.margin[1].recipe.schedule.decay_epochs: found",
    "ablations.margin=[{margin: 1}, {margin: 1}]": "ablations.margin: 'margin 1' is listed twice",
    # the override itself
    "=3": "'=3': unknown key; expected one of suite, ",
    "run.device=é": "'run.device=é' on the command line: cannot be read",
    "run.device=${oc.env:HOME}": "run.device: found '${oc.env:HOME}', expected the value itself",
    "run.device=cpu,cuda": "run.device: found several values, expected one; `dvc exp run --queue -S 'run.device=c",
}


def test_a_layer_that_a_network_does_not_return_is_named() -> None:
    words = message(ROOT, "run.methods=[fitnet]", f"{SUITE}.student.network=torchvision/shufflenet_v2_x0_5")
    expected = f"methods.fitnet.layers[0]: found 'stage2', but {SUITE}.student.network torchvision/shufflenet_v2_x0_5"
    assert words.startswith(f"{expected} returns embedding; choose one of these")


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_on_the_command_line_is_named(override: str) -> None:
    assert WRONG[override] in message(ROOT, override)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("device: auto", "device: [", ": cannot be read: expected ',' or ']'"),
        ("run:", "<<<<<<< HEAD\nrun:", "params.yaml, line LINE: a conflict mark of git; resolve the merge first"),
        ("run:", "run: !!python/object:os.system", "params.yaml, line LINE: cannot be read: "),
        ("mean: [0.307]", "mean: &a [*a]", "suites.digits.inputs.mean[0]: found an alias, expected the"),
        ("mean: [0.307]", "mean: " + 5000 * "[", "params.yaml: cannot be read: "),
        ("mean: [0.307]", f"mean: {250 * '['}{250 * ']'}", "params.yaml: cannot be read: recursion limit"),
        ("  split: test", "  split: test\n  split: validation", 'cannot be read: found duplicate key "split"'),
        ("holdout: 30", "holdout: 1:10", "suites.digits.holdout: found '1:10', expected a whole number"),
        ("deterministic: true", "deterministic: yes", "run.deterministic: found 'yes', expected true or false"),
        ("about: The field", "about: 2020 # ", "suites.cifar100_resnet32x4_resnet8x4.about: found 2020, expected text"),
        ("run:\n", "defaults: [params]\nrun:\n", "defaults: unknown key"),
        ("  digits:\n", "  ../../elsewhere:\n", "found '../../elsewhere' as a name, expected letters, digits"),
        ("  digits:\n", "  17:\n", "suites: found 17 as a name, expected text; put it in quotes"),
        (TEXT, "# nothing\n", "params.yaml: found nothing, expected keys with values"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(old: str, new: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(TEXT.replace(old, new, 1))
    line = TEXT[: TEXT.index(old)].count("\n") + 1
    assert expected.replace("LINE", str(line)) in message(tmp_path)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    assert "params.yaml: not there; run the command from the project's root" in message(tmp_path)
    (tmp_path / "params.yaml").write_bytes(b"run: \xff")
    assert "params.yaml: cannot be read: " in message(tmp_path)


def test_two_pairs_that_make_one_name_of_a_stage_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """distill@digits-b-kd would be method b-kd of suite digits, and method kd of suite digits-b."""
    (tmp_path / "b-kd.py").write_text((ROOT / "tripletkd/methods/kd.py").read_text())
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    text = TEXT.replace("  digits_resnet:\n", "  digits-b:\n").replace("digits_resnet: {negatives: 294}", "")
    (tmp_path / "params.yaml").write_text(text.replace("  kd: {", "  b-kd: {ce: 1, kl: 1, temperature: 1}\n  kd: {"))
    words = ["run.suites=[digits,digits-b]", "run.methods=[kd,b-kd]"]
    assert "run.methods: 'b-kd' of suite 'digits' and 'kd' of suite 'digits-b' make one name" in message(
        tmp_path, *words
    )
    assert load(tmp_path, [words[0], "run.methods=[b-kd]"]).run.methods == ["b-kd"]


# --- one reading, DVC's ----------------------------------------------------------------------------------------------


def test_the_stages_read_what_dvc_reads(tmp_path: Path) -> None:
    """Hydra's own reader, of YAML 1.1, has 9 for 011 and a text for 1e-2."""
    from dvc.utils.serialize import load_yaml

    text = TEXT.replace("seeds: 11-20", "seeds: [011, 0o14, 1_3]", 1).replace("lr: 0.01", "lr: 1e-2", 1)
    (tmp_path / "params.yaml").write_text(text)
    assert load_yaml(str(tmp_path / "params.yaml")) == read_yaml(tmp_path / "params.yaml")
    suite = load(tmp_path).for_suite("digits")
    assert suite.seeds == [11, 12, 13] and suite.student.recipe.optimizer.lr == 0.01


def test_an_override_that_a_suite_s_own_value_hides_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    expected = "found on the command line, but digits has a value of its own for negatives, 294; expected methods.crd.s"
    for override in ("methods.crd.negatives=100", "methods.crd={negatives: 100}"):
        assert expected in message(tmp_path, "suite=digits", override)


@dataclasses.dataclass(frozen=True)
class Named:
    prior: str


def test_a_parameter_is_no_file(tmp_path: Path) -> None:
    """Its content would be in no hash."""
    file = tmp_path / "prior.txt"
    file.write_text("1")
    with pytest.raises(UserError, match=r"found the path of a file, .*prior\.txt, whose content no hash covers"):
        _refuse_files("methods.own", Named(str(file)))
    _refuse_files("methods.own", Named("prior.txt"))


def test_images_are_those_of_the_archive_that_is_named() -> None:
    archives = [DataSettings(source="archive", path="a/b.zip", sha256=digit * 64) for digit in "01"]
    assert [each.origin for each in archives] == [f"archive b.zip, sha256 {digit * 64}" for digit in "01"]


def test_the_split_is_that_of_run_unless_it_is_given(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert load(tmp_path, ["run.split=validation"]).split == "validation"
    assert load(tmp_path, ["run.split=validation", "split=test"]).split == "test"


@pytest.mark.parametrize("override", ["methods.triplet.margin=7", "run.ablation_split=test", f"{SUITE}.seeds=1-5"])
def test_what_dvc_exp_run_sets_changes_one_line(override: str, tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides  # what it calls

    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_overrides(tmp_path / "params.yaml", [override])
    after = (tmp_path / "params.yaml").read_text().splitlines()
    assert sum(old != new for old, new in zip(TEXT.splitlines(), after, strict=True)) == 1


# --- what params.yaml and the examples have --------------------------------------------------------------------------


def test_every_method_and_network_of_params_exists_and_the_other_way_round() -> None:
    settings = load(ROOT, ["method=teacher"], allow_teacher=True)
    assert sorted(settings.methods) == methods.names()
    for suite in settings.suites.values():
        size = 8 if suite.data.source == "digits" else 32
        for block in (suite.teacher, suite.student):
            assert models.build(block.network, (size, size, len(suite.inputs.mean) if size == 32 else 1), 10, seed=1)


def test_every_example_suite_is_valid(tmp_path: Path) -> None:
    """docs/suites.yaml pasted into params.yaml, as its head says."""
    import yaml

    params, examples = (read_yaml(ROOT / name) for name in ("params.yaml", "docs/suites.yaml"))
    assert not params["suites"].keys() & examples["suites"].keys()
    params["suites"] |= examples["suites"]
    for name, block in examples["methods"].items():
        params["methods"][name] |= block
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "tripletkd").symlink_to(ROOT / "tripletkd")  # with the published figures
    settings = load(tmp_path, [f"run.suites=[{','.join(examples['suites'])}]", "run.ablations=[margin]"])
    suites = {name: settings.for_suite(name) for name in settings.suites}
    assert sum(len(suites[name].published) for name in examples["suites"]) == 4 * 15 + 1 + 4
    nckd = [getattr(suites[name].methods["dkd"], "nckd") for name in ("digits", "cifar100_vgg13_vgg8")]  # noqa: B009
    assert nckd == [8.0, 6.0]


def test_the_paper_stands_in_params(tmp_path: Path) -> None:
    """The method's and the protocol's numbers, from the authors' published run."""
    (tmp_path / "params.yaml").write_text(committed("params.yaml"))
    (tmp_path / "tripletkd").symlink_to(ROOT / "tripletkd")
    suite = load(tmp_path).for_suite("cifar10")
    triplet = {"ce": 1.0, "triplet": 2.0, "margin": 5.0, "standardize": False}
    assert dataclasses.asdict(suite.methods["triplet"]) == triplet
    sgd = SGD(lr=0.01, momentum=0.9, weight_decay=0.007)
    schedule = MultiStep(decay_epochs=(100, 200, 300, 400), decay_factor=0.1)
    assert suite.student.recipe == Recipe(epochs=500, batch_size=100, optimizer=sgd, schedule=schedule)
    published = suite.published
    assert (published["teacher"].accuracy, published["triplet"].accuracy) == (83.75, 80.91)
    assert published["triplet"].curve == "tripletkd/published/oki2020_cifar10_triplet.csv"


# --- what a suite comes to -------------------------------------------------------------------------------------------


def test_equivalent_code_is_of_some_runs() -> None:
    assert load(ROOT, [CODE]).run.equivalent_code == [EquivalentCode(64 * "e", "digits", ["teacher", "kd"], "docs/own")]


def test_overrides_reach_one_suite() -> None:
    settings = load(ROOT, ["suite=cifar10", "method=triplet", "methods.triplet.margin=10", "suites.cifar10.seeds=3-4"])
    suite = settings.for_suite("cifar10")
    assert dataclasses.asdict(suite.methods["triplet"])["margin"] == 10.0
    assert (settings.suite, settings.method, suite.seeds) == ("cifar10", "triplet", [3, 4])
    assert settings.suites["digits"].seeds == [*range(11, 21)]


def test_a_recipe_is_written_once_and_changed_where_it_differs() -> None:
    resnets, sgd = load(ROOT).for_suite("digits_resnet"), SGD(lr=0.05, momentum=0.9, weight_decay=0.0005)
    assert resnets.teacher.recipe == Recipe(30, 50, sgd, MultiStep(decay_epochs=(20, 26), decay_factor=0.1))
    assert resnets.student.recipe == Recipe(20, 50, sgd, MultiStep(decay_epochs=(14, 18), decay_factor=0.1))


def test_the_command_line_changes_blocks_and_one_of_another_name_starts_anew() -> None:
    for word in ("recipe.optimizer={lr: 0.5}", "student.recipe.optimizer={lr: 0.5}", "student.recipe.optimizer.lr=0.5"):
        assert digits(f"{SUITE}.{word}").student.recipe.optimizer == SGD(lr=0.5, momentum=0.9, weight_decay=0.0005)
    changes = "{optimizer: {name: adamw, lr: 0.001, weight_decay: 0}, schedule: {name: cosine, warmup_epochs: 2}}"
    suite = digits(f"+{SUITE}.student.recipe={changes}", "run.ablations=[margin]")
    assert suite.student.recipe == Recipe(28, 50, AdamW(lr=0.001, weight_decay=0), Cosine(warmup_epochs=2))
    assert suite.teacher.recipe and isinstance(suite.teacher.recipe.optimizer, SGD)


def test_an_ablation_varies_parameters_and_the_recipe_by_its_leaves() -> None:
    adamw = "{optimizer: {name: adamw, lr: 0.1, weight_decay: 0}}"
    variants = f"[{{margin: 1, outputs: unit}}, {{outputs: unit, recipe: {adamw}}}]"
    found = digits("run.ablations=[longer,margin]", f"ablations.margin={variants}").ablations
    longer = ["triplet 0", "triplet 0, epochs 112, decay_epochs [88]", "triplet 2"]
    assert [variant.label for variant in found["longer"]][:3] == longer
    assert found["longer"][1].recipe.schedule == MultiStep(decay_epochs=(88,), decay_factor=0.1)
    assert [variant.label for variant in found["margin"]] == ["margin 1", "optimizer adamw, lr 0.1, weight_decay 0"]
    assert found["margin"][1].recipe.optimizer == AdamW(lr=0.1, weight_decay=0)
    found = digits("run.ablations=[margin]", "ablations.margin=[{margin: 1}, {margin: 1, outputs: unit}]").ablations
    assert [variant.label for variant in found["margin"]] == ["margin 1", "margin 1, outputs unit"]  # 5 is configured


def test_an_ablation_must_fit_the_suites_that_run_it() -> None:
    """`longer` names decay_epochs, which a cosine has not."""
    cosine, problem = [f"{SUITE}.recipe.schedule={{name: cosine}}"], "ablations.longer[1].recipe.schedule.decay_epochs"
    assert list(digits(*cosine, "run.ablations=[margin]").ablations) == ["margin"]
    elsewhere = load(ROOT, [*cosine, "suite=digits", "run.suites=[digits_resnet]", "run.ablations=[longer]"])
    with pytest.raises(UserError, match="unknown key"):
        elsewhere.for_suite("digits").ablations["longer"]
    for words in (["run.ablations=[longer]"], ["run.ablations=[margin]", "suite=digits", "ablation=longer"]):
        assert f"{problem}: unknown key" in message(ROOT, *cosine, *words)


def test_a_method_that_has_a_file_and_no_block_is_told_what_it_lacks() -> None:
    for words in (["~methods.dkd", "method=dkd"], ["~methods.kl"]):  # which is claimed to be beaten
        expected = "missing in params.yaml; its file is there, expected a block of parameters"
        assert message(ROOT, *words) == f"{words[0].removeprefix('~')}: {expected}"


# --- published figures -----------------------------------------------------------------------------------------------

CURVES = {"c": "epoch,accuracy\n1,2\n", "e": "epoch,test_accuracy\n1,x\n", "f": "epoch,test_accuracy\n1,nan\n"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("kd,x,y,", "figures.csv, line 2.accuracy: found 'x', expected "),
        ("kd,101,y,", "figures.csv, line 2.accuracy: found '101', expected a value <= 100"),
        ("kd,nan,y,", "figures.csv, line 2.accuracy: found 'nan', expected "),
        ("kd,11,,", "figures.csv, line 2.source: found '', expected some text"),
        ("kd,11", "figures.csv, line 2.source: found no value, expected one"),
        ("kd,11,y,\nkd,12,y,", "figures.csv, line 3.method: found 'kd', expected a name that no other line has"),
        ("kd,0.7954,y,", "figures.csv, line 2.accuracy: found 0.7954, expected percent, such as 79.54"),
        ("teacher,83,y,\nkd,0.7954,y,", "figures.csv, line 3.accuracy: found 0.7954, expected percent"),
        ("kd,79,y,tripletkd/published/h.csv", "h.csv: the largest test_accuracy: found 0.8, expected percent"),
        ("kd,11,y,tripletkd/published/c.csv", "c.csv: found the columns epoch, accuracy, expected test_accuracy too"),
        (
            "kd,11,y,tripletkd/published/d.csv",
            "d.csv: not there; expected a CSV file with the columns epoch, test_accuracy",
        ),
        ("kd,11,y,tripletkd/published/e.csv", "e.csv, line 2.test_accuracy: found 'x', expected "),
        ("kd,11,y,tripletkd/published/f.csv", "f.csv, line 2.test_accuracy: found 'nan', expected "),
        ("kd,11,y,tripletkd/published/g.csv", "g.csv: found no epoch, expected a line each"),
    ],
)
def test_wrong_published_figures_are_named(rows: str, expected: str, tmp_path: Path) -> None:
    folder = tmp_path / "tripletkd/published"
    folder.mkdir(parents=True)
    (folder / "figures.csv").write_text(f"method,accuracy,source,curve\n{rows}\n")
    for name, text in (CURVES | {"g": "epoch,test_accuracy\n", "h": "epoch,test_accuracy\n1,0.5\n2,0.8\n"}).items():
        (folder / f"{name}.csv").write_text(text)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    words = message(tmp_path, "suites.digits.published=tripletkd/published/figures.csv")
    assert f"suites.digits.published: tripletkd/published/{expected}" in words


# --- a stage's own command line --------------------------------------------------------------------------------------


def fetch(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "nowhere://"}
    program = [sys.executable, "-m", "stages.fetch", *words]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_stage_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = fetch(tmp_path, "suite=digits", f"{SUITE}.holdout=none")
    assert (done.returncode, done.stdout) == (1, "") and not (tmp_path / "data").exists()
    assert done.stderr.startswith(f"error: {SUITE}.holdout: found 'none', expected a whole number")
    assert len(done.stderr.splitlines()) == 1


def test_a_suite_is_fetched_though_an_ablation_of_others_does_not_fit_it(tmp_path: Path) -> None:
    done = fetch(tmp_path, "suite=digits", "run.suites=[digits_resnet]", f"{RECIPE}.schedule={{name: cosine}}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/digits/dataset.json").exists()
