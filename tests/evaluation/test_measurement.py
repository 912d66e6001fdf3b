"""The file of measurements: what is written is read again, and what is not measurements is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measurements import MEASURED, VARIANTS, changed, of_seed

from tripletkd.errors import UserError
from tripletkd.evaluation import measurement
from tripletkd.evaluation.measurement import Environment, VariantMeasurement

KD = changed(MEASURED["kd"], environments=(*MEASURED["kd"].environments, Environment((6,), {"torch": "3"})))


def altered(path: Path, **changes: Any) -> Path:
    """The file with other values of some keys; those of None are taken away."""
    block = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in block.items() if value is not None}))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    measurement.write(tmp_path / "kd.json", KD)
    return tmp_path / "kd.json"


def test_what_is_written_is_read_again(path: Path, tmp_path: Path) -> None:
    assert measurement.read(path, "cifar10", "kd") == KD
    teacher = changed(MEASURED["teacher"], name="teacher", seeds=(of_seed(1, 90.0, test_top5_accuracy=1.0),))
    measurement.write(tmp_path / "teacher.json", teacher)
    assert measurement.read(tmp_path / "teacher.json", "cifar10", "teacher") == teacher


def test_the_file_has_an_environment_a_block_and_only_figures_that_apply(path: Path) -> None:
    block = json.loads(path.read_text())
    assert block["environments"][1] == {"seeds": [6], "torch": "3"}
    assert "class_names" not in block and block["teacher_sha256"]
    assert "test_top5_accuracy" not in block["seeds"][0] and block["seeds"][0]["violated_triplets"] == 0.1


def test_an_ablation_is_read_again(tmp_path: Path) -> None:
    named = [
        dataclasses.replace(each, measurement=changed(each.measurement, name=f"ablations/margin/{i}"))
        for i, each in enumerate(VARIANTS)
    ]
    measurement.write_ablation(tmp_path / "margin.json", named)
    assert measurement.read_ablation(tmp_path / "margin.json", "cifar10", "margin") == named
    with pytest.raises(UserError, match=r"margin.json: measurements of cifar10/ablations/margin/0; run its stage"):
        measurement.read_ablation(tmp_path / "margin.json", "cifar10", "longer")
    unnamed: list[VariantMeasurement] = VARIANTS
    measurement.write_ablation(tmp_path / "margin.json", unnamed)
    with pytest.raises(UserError, match=r"measurements of cifar10/kd; run its stage again"):
        measurement.read_ablation(tmp_path / "margin.json", "cifar10", "margin")


@pytest.mark.parametrize(
    ("read", "name", "stage"),
    [
        (measurement.read, "kd", "evaluate"),
        (measurement.read, "teacher", "train_teacher"),
        (measurement.read_ablation, "margin", "ablate"),
    ],
)
def test_where_nothing_was_measured_the_stage_is_named(
    read: Callable[[Path, str, str], object], name: str, stage: str, tmp_path: Path
) -> None:
    path = tmp_path / "there.json"
    expected = rf"there.json: not there; run `dvc repro` with digits in run.suites, or stages.{stage}, first"
    with pytest.raises(UserError, match=expected):
        read(path, "digits", name)


def test_measurements_of_another_run_are_refused(path: Path) -> None:
    for suite, name in (("digits", "kd"), ("cifar10", "triplet")):
        with pytest.raises(UserError, match=r"kd.json: measurements of cifar10/kd; run its stage again"):
            measurement.read(path, suite, name)


def test_measurements_of_no_seed_are_refused(path: Path) -> None:
    altered(path, seeds=[])
    with pytest.raises(UserError, match=r"kd.json: measurements of no seed; run its stage again"):
        measurement.read(path, "cifar10", "kd")
    altered(path, failed={"1": "loss is nan"})
    assert measurement.read(path, "cifar10", "kd").failed == {1: "loss is nan"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": 99}, "test_correct is not of 99 images"),
        (
            {"seeds": [dataclasses.asdict(of_seed(3, 80.0, test_accuracy=0.81))]},
            "test_accuracy 0.81, test_correct has 802",
        ),
        ({"parameters": "many"}, "parameters: Input should be a valid integer"),
        ({"name": None}, "name: Field required"),
        ({"environments": [1]}, "not subscriptable"),
        ({"environments": None}, "environments"),
        ({"seeds": [{"seed": 1}]}, "seeds.0.train_accuracy: Field required"),
    ],
)
def test_what_is_not_measurements_says_where(changes: dict[str, Any], message: str, path: Path) -> None:
    altered(path, **changes)
    with pytest.raises(
        UserError, match=rf"kd.json: not measurements \(.*{message}.*run the stage that writes it again"
    ):
        measurement.read(path, "cifar10", "kd")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff" * 1000, b"3", b'{"seeds": [[', b'"text"'])
def test_a_damaged_file_is_named(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"kd.json: not measurements"):
        measurement.read(path, "cifar10", "kd")
    with pytest.raises(UserError, match=r"kd.json: not measurements"):
        measurement.read_ablation(path, "cifar10", "kd")
