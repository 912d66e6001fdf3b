"""What the tabulate stage refuses, and what it leaves out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from measurements import HISTORY, MAPPED, measured

from stages import tabulate
from tripletkd.config.load import load
from tripletkd.config.schema import ABLATED
from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.evaluation.measurement import VariantMeasurement
from tripletkd.files import write_csv
from tripletkd.pipeline.jobs import Runs
from tripletkd.pipeline.stage import Stage
from tripletkd.provenance import sha256
from tripletkd.reporting import folder
from tripletkd.training.job import Job

METHODS = ("scratch", "kd", "triplet")
WORDS = ["suite=digits", f"run.methods=[{','.join(METHODS)}]", "run.ablations=[margin]", "suites.digits.seeds=[1,2,3]"]
WORDS += ["suites.digits.published=tripletkd/published/cifar10.csv"]
MEASURED_AT = Path("results/digits/measured")


def stage_of(split: str, *words: str) -> Stage:
    return Stage("tabulate", load(ROOT, [*WORDS, f"split={split}", *words]))


def of_job(job: Job, **changes: Any) -> measurement.Measurement:
    """What the stages would have measured of a job."""
    accuracies = {seed: 80.0 + 0.1 * seed for seed in job.seeds}
    return measured(accuracies, identity=job.identity, code={job.code: tuple(job.seeds)}, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with measurements of the digits suite, on either split, as params.yaml describes them."""
    place = tmp_path_factory.mktemp("measured")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, place)
    shutil.copytree(ROOT / "tripletkd/published", place / "tripletkd/published")
    for split in ("test", "validation"):
        stage, at = stage_of(split), place / MEASURED_AT / split
        runs = Runs(stage, "d" * 64, "a" * 64)
        measurement.write(at / "teacher.json", of_job(runs.teacher(), class_names=("0", "1")))
        write_csv(at / "history.csv", HISTORY)
        write_csv(at / "map.csv", [{"label": 1, **dict.fromkeys(MAPPED, 0.5)}])
        files = {"history_sha256": sha256(at / "history.csv"), "map_sha256": sha256(at / "map.csv")}
        for name in METHODS:
            shutil.copy(at / "history.csv", at / f"{name}.csv")
            shutil.copy(at / "map.csv", at / f"{name}_map.csv")
            measurement.write(at / f"{name}.json", of_job(runs.student(name), **files))
        variants = []
        for each in stage.suite.ablations["margin"]:
            configured, job = each.params == stage.suite.methods[ABLATED], runs.variant("margin", each)
            variants.append(VariantMeasurement(each.label, each.changed, configured, of_job(job)))
        measurement.write_ablation(at / "ablations/margin.json", variants)
    return place


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def alter(path: Path, *keys: Any, value: Any) -> None:
    content = json.loads(path.read_text())
    block = content
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_runs_as_params_yaml_says_make_a_table_without_seeds_that_failed(project: Path) -> None:
    path = project / MEASURED_AT / "test/kd.json"
    content = json.loads(path.read_text())
    seeds, weights = content["seeds"][:2], {"1": "a" * 64, "2": "a" * 64}
    path.write_text(json.dumps(content | {"seeds": seeds, "weights_sha256": weights, "failed": {"3": "ce is nan"}}))
    results, everything = tabulate.gather(stage_of("test"))
    assert list(results.measured) == ["teacher", *METHODS] and [line.reference for line in results.ablations["margin"]]
    runs = len(results.measured) + len(results.ablations["margin"])
    assert len(everything) == runs + 1  # the teacher of the ablation's split
    assert tabulate.without_failed([*HISTORY, {**HISTORY[0], "seed": 3}], results.measured["kd"]) == HISTORY
    assert tabulate.gather(stage_of("test", "run.methods=[kd]", "run.ablations=[]"))[0].rows[-1].method == "kd"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        ("kd.json", ("identity", "recipe", "optimizer", "lr"), 0.5, "made with recipe.optimizer.lr 0.5, .* has 0.01"),
        ("kd.json", ("identity", "teacher_sha256"), "b" * 64, "made with teacher_sha256 bbb"),
        ("kd.json", ("seeds", 0, "seed"), 9, r"made with seeds \[2, 3, 9\], params.yaml .* has \[1, 2, 3\]"),
        ("kd.json", ("code",), {"c" * 64: [1, 2, 3]}, "computed by code of sha256 ccc.*run.equivalent_code"),
        ("teacher.json", ("identity", "recipe", "epochs"), 12, "made with recipe.epochs 12, .*its teacher.* has 28"),
        ("ablations/margin.json", (0, "measurement", "identity", "params", "margin"), 7, "made with params.margin 7"),
        ("ablations/margin.json", (0, "configured"), True, "variants .*'margin 1', True"),
        ("ablations/margin.json", (0, "label"), "margin 3", "variants .*'margin 3'"),
    ],
)
def test_a_table_of_unlike_runs_is_refused(
    file: str, keys: tuple[Any, ...], value: Any, message: str, project: Path
) -> None:
    """What is edited into a file is what a run under other parameters leaves there."""
    split = "validation" if file.startswith("ablations") else "test"
    alter(project / MEASURED_AT / split / file, *keys, value=value)
    with pytest.raises(UserError, match=f"{MEASURED_AT}/{split}/{file}: {message}"):
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
def test_a_table_under_other_parameters_is_refused_but_for_equivalent_code(project: Path) -> None:
    """None of the files was changed: params.yaml was."""
    with pytest.raises(UserError, match=r"scratch.json: made with recipe.batch_size 50, params.yaml .* has 60"):
        tabulate.gather(stage_of("test", "+suites.digits.student.recipe={batch_size: 60}"))
    alter(project / MEASURED_AT / "test/kd.json", "code", value={"c" * 64: [1, 2, 3]})
    said = f"run.equivalent_code=[{{code: {'c' * 64}, suite: digits, methods: [kd], shown: by hand}}]"
    assert "kd" in tabulate.gather(stage_of("test", said))[0].measured


@pytest.mark.fault
def test_published_figures_are_of_the_whole_test_split(project: Path) -> None:
    results, _ = tabulate.gather(stage_of("test"))
    assert results.published.keys() == {"teacher", "triplet"} and results.published_curves.keys() == {"triplet"}
    some, _ = tabulate.gather(stage_of("test", "suites.digits.data.per_class=5"))
    assert not any((some.published, some.published_curves))
    results, _ = tabulate.gather(stage_of("validation"))
    folder.write(project / "made", results)
    for name in ("table.md", "table.csv", "report.html", "figures/curves.svg"):
        text = (project / "made" / name).read_text()
        assert "prediction interval" not in text and "80.91" not in text and "83.75" not in text, name
