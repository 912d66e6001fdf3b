"""Run records: weights as they were trained, hashes that are checked, logs that belong to them."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from tripletkd import models
from tripletkd.errors import UserError
from tripletkd.tracking import run_record as record
from tripletkd.training.loop import Fitted

RECORD = record.Record(
    suite="digits",
    split="test",
    cell="kd",
    method="kd",
    network="paper_student_quarter",
    image_shape=(8, 8, 1),
    classes=10,
    seeds=[1],
    failed={},
    params={},
    data_sha256="d" * 64,
    teacher_sha256=None,
    environment={},
)


def test_weights_keep_their_precision(tmp_path: Path) -> None:
    network = models.build("paper_student_quarter", (8, 8, 1), 10, seed=7).double()
    with torch.no_grad():
        network.get_parameter("fc2.bias").fill_(1 / 3)
    made = record.write(tmp_path / "run", RECORD, Fitted({1: network}, [], {}, seconds=1.0), {})
    [(_, found)] = made.load_networks(tmp_path / "run").items()
    assert found.get_parameter("fc2.bias")[0].item() == 1 / 3
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_a_log_is_of_the_record_beside_it(tmp_path: Path) -> None:
    """DVC brings back an earlier record from its cache, and leaves the log that lies there: it is another run's."""
    fitted = Fitted({1: models.build("paper_student_quarter", (8, 8, 1), 10, seed=7)}, [], {}, seconds=1.0)
    first, second = tmp_path / "first", tmp_path / "second"
    record.write(first, RECORD, fitted, {"commit": "a"})
    record.write(second, dataclasses.replace(RECORD, params={"margin": 10}), fitted, {"commit": "b"})
    assert record.read_log(first, "record.json") == {"commit": "a"}
    shutil.copy(second / "log.json", first / "log.json")
    assert record.read_log(first, "record.json") == {}
    (first / "log.json").unlink()
    assert record.read_log(first, "record.json") == {}


def test_weights_that_were_changed_are_noticed(tmp_path: Path) -> None:
    network = models.build("paper_student_quarter", (8, 8, 1), 10, seed=7)
    made = record.write(tmp_path / "run", RECORD, Fitted({1: network}, [], {}, seconds=1.0), {})
    record.weights_path(tmp_path / "run", 1).write_bytes(b"other")
    with pytest.raises(UserError, match=r"seed-1.safetensors: sha256 is"):
        made.load_networks(tmp_path / "run")
