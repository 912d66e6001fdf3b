"""The file of measurements: what is written is read again, and what is not measurements is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from measurements import HASH, MEASURED, VARIANTS, measured, of_seed

from tripletkd.errors import UserError
from tripletkd.evaluation import measurement

KD = MEASURED["kd"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    measurement.write(tmp_path / "kd.json", KD)
    return tmp_path / "kd.json"


def test_what_is_written_is_read_again(path: Path) -> None:
    assert "class_names" not in path.read_text() and "test_top5_accuracy" not in path.read_text()  # they do not apply
    top5 = replace(MEASURED["teacher"], seeds=(of_seed(1, 90.0, test_top5_accuracy=1.0),))
    for name, each in (("kd", KD), ("teacher", top5), ("kd", measured({}, failed={1: "loss is nan"}))):
        measurement.write(path, each)
        assert measurement.read(path, "cifar10", name) == each
    for suite, name in (("digits", "kd"), ("cifar10", "triplet")):
        with pytest.raises(UserError, match=r"kd.json: measurements of cifar10/kd; run its stage again"):
            measurement.read(path, suite, name)


def test_an_ablation_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "margin.json"
    measurement.write_ablation(path, VARIANTS)
    assert measurement.read_ablation(path, "cifar10", "margin") == VARIANTS
    with pytest.raises(UserError, match=r"margin.json: measurements of cifar10/ablations/margin/0; run its stage"):
        measurement.read_ablation(path, "cifar10", "longer")


def test_where_nothing_was_measured_the_stage_is_named(tmp_path: Path) -> None:
    for read, name, stage in (
        (measurement.read, "kd", "evaluate"),
        (measurement.read, "teacher", "train_teacher"),
        (measurement.read_ablation, "margin", "ablate"),
    ):
        with pytest.raises(UserError, match=rf"there.json: .*`dvc repro` with digits in run.suites, or stages.{stage}"):
            read(tmp_path / "there.json", "digits", name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": 99}, "test_correct is not of 99 images"),
        ({"seeds": [asdict(of_seed(3, 80.0, test_accuracy=0.81))]}, "test_accuracy 0.81, test_correct has 800"),
        ({"weights_sha256": {"1": HASH, "2": HASH}}, "two have the same weights"),
        ({"seeds": [asdict(of_seed(3, 0.0, test_correct="f" * 250))]}, "test_accuracy 0.0, test_correct has 1000"),
        (
            {"test_images": 999, "seeds": [asdict(of_seed(3, 0.0, test_correct=249 * "0" + "1"))]},
            "is not of 999 images",
        ),
        ({"seeds": [asdict(of_seed(3, 80.0, train_accuracy=float("nan")))]}, "train_accuracy nan"),
        ({"seeds": []}, "measurements of no seed"),
        ({"seeds": [{"seed": 1}]}, "seeds.0.train_accuracy"),
    ],
)
def test_what_is_not_measurements_says_where(changes: dict[str, Any], message: str, path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=f"(?s)kd.json: .*{message}.*stages.evaluate"):
        measurement.read(path, "cifar10", "kd")


@pytest.mark.parametrize("content", [b"", b"[3]", b"\xff" * 1000, b'{"seeds": [['])
def test_a_damaged_file_is_named(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    for read in (measurement.read, measurement.read_ablation):
        with pytest.raises(UserError, match=r"kd\.json"):
            read(path, "cifar10", "kd")
