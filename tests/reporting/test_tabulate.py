"""What the tabulate stage refuses, and what it leaves out."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from measurements import POINT, history_of, measured

from stages import tabulate
from tripletkd.config.load import load
from tripletkd.config.schema import ABLATED
from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.evaluation.measurement import VariantMeasurement
from tripletkd.files import write_csv, write_json
from tripletkd.pipeline import environments
from tripletkd.pipeline.jobs import Runs
from tripletkd.pipeline.stage import Stage
from tripletkd.provenance import sha256
from tripletkd.reporting import folder
from tripletkd.training.job import Job

METHODS = ("scratch", "kd", "triplet")
WORDS = [
    "suites.digits.holdout=500",
    "suite=digits",
    f"run.methods=[{','.join(METHODS)}]",
    "run.ablations=[margin]",
    "suites.digits.seeds=[1,2,3]",
]
WORDS += ["suites.digits.published=tripletkd/published/cifar10.csv"]
MEASURED_AT = Path("results/digits/measured")


@cache
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
    shutil.copy(ROOT / "dvc.yaml", place)
    shutil.copytree(ROOT / "tripletkd/published", place / "tripletkd/published")
    for split in ("test", "validation"):
        stage, at = stage_of(split), place / MEASURED_AT / split
        runs = Runs(stage, "d" * 64, "a" * 64)
        measurement.write(at / "teacher.json", of_job(runs.teacher(), class_names=("0", "1")))
        for name in METHODS:
            history, mapped = at / f"{name}.csv", at / f"{name}_map.csv"
            write_csv(history, history_of(of_job(runs.student(name))))
            write_csv(mapped, [POINT])
            files = {"history_sha256": sha256(history), "map_sha256": sha256(mapped)}
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
    return tmp_path / MEASURED_AT


def test_runs_as_params_yaml_says_make_a_table_without_seeds_that_failed(project: Path) -> None:
    path = project / "test/kd.json"
    content = json.loads(path.read_text())
    seeds, weights = content["seeds"][:1], {"1": "a" * 64}
    failed = dict.fromkeys("23", "ce is nan")
    path.write_text(json.dumps(content | {"seeds": seeds, "weights_sha256": weights, "failed": failed}))
    results, everything = tabulate.gather(stage_of("test"))
    assert list(results.measured) == ["teacher", *METHODS] and [line.reference for line in results.ablations["margin"]]
    runs = len(results.measured) + len(results.ablations["margin"])
    assert len(everything) == runs + 1  # the teacher of the ablation's split
    of_seeds = {name: {row["seed"] for row in results.histories[name]} for name in ("scratch", "kd")}
    assert of_seeds == {"scratch": {1, 2, 3}, "kd": {1}}
    assert tabulate.gather(stage_of("test", "run.methods=[kd]", "run.ablations=[]"))[0].rows[-1].method == "kd"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        ("test/kd.json", ("identity", "recipe", "optimizer", "lr"), 0.5, "made with recipe.optimizer.lr 0.5, .* 0.01"),
        ("test/kd.json", ("seeds", 0, "seed"), 9, r"made with seeds \[2, 3, 9\], params.yaml .* has \[1, 2, 3\]"),
        ("test/teacher.json", ("code",), {"c" * 64: [1]}, "computed by code of sha256 ccc.*run.equivalent_code"),
        (
            "validation/ablations/margin.json",
            (0, "measurement", "identity", "params", "margin"),
            7,
            "made with params.margin 7",
        ),
        ("validation/ablations/margin.json", (0, "configured"), True, "variants .*'margin 1', True"),
    ],
)
def test_a_table_of_unlike_runs_is_refused(
    file: str, keys: tuple[Any, ...], value: Any, message: str, project: Path
) -> None:
    """What is edited into a file is what a run under other parameters leaves there."""
    block = content = json.loads((project / file).read_text())
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    (project / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{MEASURED_AT}/{file}: {message}"):
        tabulate.gather(stage_of("test"))


@pytest.mark.fault
def test_figures_that_the_history_does_not_have_are_refused(project: Path) -> None:
    path = project / "test/kd.json"
    for name, value in (("best_epoch", 3), ("best_test_accuracy", 0.9), ("train_accuracy", 0.5)):
        content = json.loads(path.read_text())
        content["seeds"][1][name] = value
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"kd.csv: seed 2 has other accuracies there than beside it"):
            tabulate.gather(stage_of("test"))


@pytest.mark.fault
def test_a_curve_or_a_map_of_another_run_is_refused(project: Path) -> None:
    for name in ("kd_map.csv", "kd.csv"):
        path = project / "test" / name
        path.write_text(path.read_text().replace(",0.", ",1."))
        for _ in range(2):
            with pytest.raises(UserError, match=f"{name}: not the file that kd.json was written with; run evaluate"):
                tabulate.gather(stage_of("test"))
            path.unlink(missing_ok=True)


@pytest.mark.fault
def test_a_table_beside_images_that_were_selected_otherwise_is_refused(project: Path) -> None:
    """As of a few of them, whose accuracies would stand beside published ones."""
    description = project.parents[2] / "data/digits/dataset.json"
    description.parent.mkdir(parents=True)
    description.write_text(json.dumps({"source": "digits", "selection": "per_class 20"}))
    with pytest.raises(UserError, match=r"dataset.json: made with per_class 20, params.yaml .* has all images"):
        tabulate.gather(stage_of("test"))


def test_dvc_compares_no_accuracies_of_unlike_splits(project: Path) -> None:
    names = []
    for split in ("test", "validation"):
        folder.write(project.parent / split, tabulate.gather(stage_of(split))[0])
        names.append({*json.loads((project.parent / split / "summary.json").read_text())})
    assert "kd_percent" in names[0] and "kd_validation_percent" in names[1] and not names[0] & names[1]


@pytest.mark.fault
def test_published_figures_are_of_the_whole_test_split(project: Path) -> None:
    results, _ = tabulate.gather(stage_of("test"))
    assert results.published.keys() == {"teacher", "triplet"} and results.published_curves.keys() == {"triplet"}
    for part in (stage_of("test", "suites.digits.data.per_class=5"), stage_of("validation")):
        some, _ = tabulate.gather(part)
        assert not any((some.published, some.published_curves))


def test_seeds_whose_log_is_not_there_are_counted(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of kd only the weights of seed 1 are known from a file of before."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "made"))
    stage = stage_of("test")
    kd = measurement.read(MEASURED_AT / "test/kd.json", "digits", "kd")
    here = {"device": "a processor", "torch": "3"}
    known = {"environment": 0, "weights_sha256": kd.weights_sha256[1]}
    write_json(stage.path("results", "environment.json"), {"environments": [here], "seeds": {"test/kd": {"1": known}}})
    assert environments.refresh(stage, [kd]) == [
        "a processor, PyTorch 3: test/kd 1",
        "2 other seeds: no log says where they were computed",
    ]


def test_the_teacher_of_the_table_s_split_is_one_run_with_that_of_the_ablations(project: Path) -> None:
    for split, teachers in (("test", 2), ("validation", 1)):
        _, found = tabulate.gather(stage_of(split))
        assert [each.identity.name for each in found].count("teacher") == teachers
