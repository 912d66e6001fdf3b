"""What the tabulate stage refuses, and what it leaves out."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from measurements import HISTORY, MAPPED, MEASURED, changed, measured

from stages import tabulate
from stages._command import Stage
from tripletkd.config.load import load
from tripletkd.config.schema import ABLATED, SuiteConfig
from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.evaluation.measurement import Environment, Measurement, VariantMeasurement
from tripletkd.files import write_csv
from tripletkd.provenance import sha256
from tripletkd.reporting import page, tables
from tripletkd.training.optim import Recipe

METHODS = ("scratch", "kd", "triplet")
WORDS = ["suite=digits", f"run.methods=[{','.join(METHODS)}]", "run.ablations=[margin]", "suites.digits.seeds=[1,2,3]"]
WORDS += ["suites.digits.published=tripletkd/published/cifar10.csv"]
MEASURED_AT = Path("results/digits/measured")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with measurements of the digits suite, on either split, as params.yaml describes them."""
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tripletkd/published", tmp_path / "tripletkd/published")
    for split in ("test", "validation"):
        suite, place = stage_of(split).suite, tmp_path / MEASURED_AT / split
        teacher = of_suite(suite, split, "teacher", None, suite.teacher.recipe)
        measurement.write(place / "teacher.json", changed(teacher, class_names=("0", "1")))
        for name in METHODS:
            history, mapped = place / f"{name}.csv", place / f"{name}_map.csv"
            write_csv(history, HISTORY)
            write_csv(mapped, [{"label": 1, **dict.fromkeys(MAPPED, 0.5)}])
            made = of_suite(suite, split, name, suite.methods[name], suite.student.recipe)
            made = changed(made, history_sha256=sha256(history), map_sha256=sha256(mapped))
            measurement.write(place / f"{name}.json", made)
        variants = []
        for variant in suite.ablations["margin"]:
            name = f"ablations/margin/{variant.label.replace(' ', '-')}"
            made = of_suite(suite, split, name, variant.params, variant.recipe)
            is_reference = variant.params == suite.methods[ABLATED]
            variants.append(VariantMeasurement(variant.label, variant.changed, is_reference, made))
        measurement.write_ablation(place / "ablations/margin.json", variants)
    return tmp_path


def stage_of(split: str, *words: str) -> Stage:
    return Stage("tabulate", load(ROOT, [*WORDS, f"split={split}", *words]))


def of_suite(suite: SuiteConfig, split: str, name: str, params: Any, recipe: Recipe) -> Measurement:
    """A run as the stages record it; without a method's parameters, the teacher's."""
    who = suite.student if params else suite.teacher
    kind, _, ablation = name.rpartition("/")[0].partition("/")
    trains, of = ("ablate", {"ablation": ablation}) if kind else ("distill", {"method": name})
    code = stage_of(split).code_of(trains, **of) if params else stage_of(split).code_of("train_teacher")
    blocks: dict[str, Any] = {"recipe": recipe, "inputs": suite.inputs} | ({"method": params} if params else {})
    accuracies = {seed: 80.0 + 0.1 * seed for seed in (suite.seeds if params else [suite.teacher.seed])}
    return measured(
        accuracies,
        suite="digits",
        split=split,
        name=name,
        method=name,
        network=who.network,
        code=(code,),
        params={"evaluate_every": suite.evaluate_every}
        | {block: dataclasses.asdict(values) for block, values in blocks.items()},
        environments=(Environment(tuple(accuracies), {"torch": "2", "precision": suite.precision}),),
    )


def alter(path: Path, *keys: Any, value: Any) -> None:
    content = json.loads(path.read_text())
    block = content
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_runs_as_params_yaml_says_make_a_table(project: Path) -> None:
    results = tabulate.gather(stage_of("test"))
    assert list(results.measured) == ["teacher", *METHODS] and [line.reference for line in results.ablations["margin"]]
    assert tabulate.gather(stage_of("test", "run.methods=[kd]", "run.ablations=[]")).rows[-1].method == "kd"
    path = project / MEASURED_AT / "test/kd.json"
    alter(path, "environments", 0, "torch", value="3")  # is said, and refused by nobody
    assert tabulate.gather(stage_of("test")).measured["kd"].environments[0].values["torch"] == "3"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        ("kd.json", ("params", "recipe", "epochs"), 12, "recipe.epochs 12, params.yaml .* has 28"),
        ("kd.json", ("params", "recipe", "optimizer", "lr"), 0.5, "recipe.optimizer.lr 0.5, params.yaml .* has 0.01"),
        ("kd.json", ("params", "recipe"), {"epochs": 28}, "recipe.batch_size None, params.yaml .* has 50"),
        ("kd.json", ("params", "method", "temperature"), 9, r"method.temperature 9, .*student; methods.kd\) has 4"),
        ("kd.json", ("params", "inputs", "flip"), True, "inputs.flip True, params.yaml .* has False"),
        ("kd.json", ("params", "evaluate_every"), 1, "evaluate_every 1, params.yaml .* has 4"),
        ("kd.json", ("network",), "resnet8", "network resnet8, params.yaml .* has paper_student_quarter"),
        ("kd.json", ("environments", 0, "precision"), "tf32", "precision tf32, params.yaml .* has float32"),
        ("kd.json", ("environments",), [], "precision None, params.yaml .* has float32"),
        ("kd.json", ("split",), "validation", "split validation, params.yaml .* has test"),
        ("kd.json", ("seeds", 0, "seed"), 9, r"seeds \[2, 3, 9\], params.yaml .* has \[1, 2, 3\]"),
        ("teacher.json", ("params", "recipe", "epochs"), 12, "recipe.epochs 12, .*digits, its teacher.* has 28"),
        ("teacher.json", ("seeds", 0, "seed"), 5, r"seeds \[5\], params.yaml .* has \[0\]"),
        ("ablations/margin.json", (0, "params", "method", "margin"), 7, r"method.margin 7, .*ablations.margin.* has 1"),
        ("ablations/margin.json", (1, "params", "recipe", "epochs"), 12, "recipe.epochs 12, params.yaml .* has 28"),
        ("ablations/margin.json", (0, "configured"), True, "reference.margin 1 True, params.yaml .* has False"),
        ("ablations/margin.json", (0, "label"), "margin 3", r"variants \['margin 3', 'margin 2'.* has \['margin 1'"),
    ],
)
def test_a_table_of_unlike_runs_is_refused(
    file: str, keys: tuple[Any, ...], value: Any, message: str, project: Path
) -> None:
    """What is edited into a file is what a run under other parameters leaves there."""
    split = "validation" if file.startswith("ablations") else "test"
    alter(project / MEASURED_AT / split / file, *keys, value=value)
    with pytest.raises(UserError, match=f"{MEASURED_AT}/{split}/{file}: made with {message}"):
        tabulate.gather(stage_of("test"))


@pytest.mark.fault
@pytest.mark.parametrize("file", ["kd.csv", "kd_map.csv"])
def test_a_curve_or_a_map_of_another_run_is_refused(file: str, project: Path) -> None:
    path = project / MEASURED_AT / "test" / file
    path.write_text(path.read_text().replace(",0.", ",1."))
    for _ in range(2):
        with pytest.raises(UserError, match=f"{file}: not the file that kd.json was written with; run evaluate again"):
            tabulate.gather(stage_of("test"))
        path.unlink(missing_ok=True)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("test/teacher.json", ("code", 0)),
        ("test/kd.json", ("code", 0)),
        ("validation/ablations/margin.json", (0, "code", 0)),
    ],
)
def test_a_table_of_other_code_is_refused_or_names_it(file: str, keys: tuple[Any, ...], project: Path) -> None:
    assert "which params.yaml says" not in tables.markdown(tabulate.gather(stage_of("test")))
    code = "c" * 64
    alter(project / MEASURED_AT / file, *keys, value=code)
    with pytest.raises(UserError, match=f"{file}: computed by code of sha256 ccc.*run.equivalent_code"):
        tabulate.gather(stage_of("test"))
    results = tabulate.gather(stage_of("test", f"run.equivalent_code=[{code}]"))
    line = f"code {code}, which params.yaml says computes the same bytes: seeds of {Path(file).stem}"
    for made in (tables.markdown(results), page.html(results, page.pictures(results))):
        assert (line in made) == ("ablations" not in file)  # what is said there is of the table's cells


@pytest.mark.fault
def test_a_table_under_other_parameters_is_refused(project: Path) -> None:
    """None of the files was changed: params.yaml was."""
    with pytest.raises(UserError, match=r"scratch.json: made with recipe.batch_size 50, params.yaml .* has 60"):
        tabulate.gather(stage_of("test", "+suites.digits.student.recipe={batch_size: 60}"))


@pytest.mark.fault
def test_published_figures_are_of_the_whole_test_split(project: Path) -> None:
    results = tabulate.gather(stage_of("test"))
    assert results.published.keys() == {"teacher", "triplet"} and results.published_curves.keys() == {"triplet"}
    some = tabulate.gather(stage_of("test", "suites.digits.data.per_class=5"))
    assert not any((some.published, some.published_curves, *(row.published for row in some.rows)))
    results = tabulate.gather(stage_of("validation"))
    tabulate.write(project / "made", results)
    assert not any((results.published, results.published_curves, *(row.published for row in results.rows)))
    for name in ("table.md", "table.csv", "report.html", "figures/curves.svg"):
        text = (project / "made" / name).read_text()
        assert "prediction interval" not in text and "80.91" not in text and "83.75" not in text
        assert "published" not in text.replace("was not published", ""), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"data_sha256": "e" * 64}, "measured with images of sha256 eee"), ({"teacher_sha256": "b" * 64}, "a teacher of")],
)
def test_a_table_of_strangers_is_refused(changes: dict[str, str], message: str) -> None:
    student = MEASURED["kd"]
    tabulate.refuse_strangers(MEASURED["teacher"], [student])
    with pytest.raises(UserError, match=message):
        tabulate.refuse_strangers(MEASURED["teacher"], [student, changed(student, **changes)])


def test_a_seed_that_failed_is_in_no_curve() -> None:
    assert tabulate.without_failed([*HISTORY, {**HISTORY[0], "seed": 4}], MEASURED["triplet"]) == HISTORY
