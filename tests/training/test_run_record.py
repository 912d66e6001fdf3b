"""Run records: a folder a seed, weights as they were trained, hashes that are checked, logs that belong to them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import SHORT, Small

from tripletkd import models
from tripletkd.errors import UserError
from tripletkd.training import run_record
from tripletkd.training.loop import TrainResult
from tripletkd.training.run_record import Record

NETWORK = "paper_student_quarter"


def written(folder: Path, method: str = "kd") -> list[Record]:
    """Seed 1 came through, seed 2 failed."""
    network = models.build(NETWORK, (8, 8, 1), 10, seed=7).double()
    with torch.no_grad():
        network.get_parameter("fc2.bias").fill_(1 / 3)
    rows = [{"seed": seed, "epoch": 1, "loss": 2.5} for seed in (1, 2)]
    result = TrainResult({1: network}, rows, {2: "ce is nan at epoch 2, step 1"}, seconds=1.0)
    job = Small(method, recipe=replace(SHORT, epochs=1)).job([1, 2])
    return run_record.write_seeds(folder, job, (8, 8, 1), 10, result)


def test_a_run_is_read_as_it_was_written_a_seed_at_a_time(tmp_path: Path) -> None:
    records = written(tmp_path)
    read = run_record.read_records(tmp_path)
    assert read == records
    run = run_record.read_run(tmp_path, [2, 1])
    assert [record.seed for record in run.records] == [2, 1]
    assert run.failed == {2: "ce is nan at epoch 2, step 1"}
    assert run.history == [{"seed": seed, "epoch": 1, "loss": 2.5} for seed in (2, 1)]
    assert run.networks[1].get_parameter("fc2.bias")[0].item() == 1 / 3  # in its precision
    assert all(parameter.requires_grad for parameter in run.networks[1].parameters())


def test_a_log_is_of_the_record_it_was_written_for(tmp_path: Path) -> None:
    """DVC brings back an earlier record from its cache, and leaves the log that lies there: it is another run's."""
    for method in ("kd", "triplet"):
        written(tmp_path / method, method)
        run_record.write_log(tmp_path / f"{method}.json", tmp_path / method / "seed-1/record.json", {"commit": method})
    about = tmp_path / "kd/seed-1/record.json"
    assert run_record.read_log(tmp_path / "kd.json", about) == {"commit": "kd"}
    assert run_record.read_log(tmp_path / "triplet.json", about) == {}
    assert run_record.read_log(tmp_path / "nowhere.json", about) == {}


@pytest.mark.fault
def test_what_is_not_what_was_recorded_is_named(tmp_path: Path) -> None:
    written(tmp_path / "other")
    about = tmp_path / "other/seed-1/record.json"
    about.write_text(about.read_text().replace(NETWORK, "mine"))
    with pytest.raises(UserError, match=r"weights.safetensors: of mine, and there is no such network here"):
        run_record.read_run(tmp_path / "other", [1])
    written(tmp_path)
    shutil.copytree(tmp_path / "seed-1", tmp_path / "seed-3")
    with pytest.raises(UserError, match=r"seed-3/record.json: of seed 1"):
        run_record.read_run(tmp_path, [1, 3])
    for name in ("weights.safetensors", "history.csv"):
        path, content = tmp_path / "seed-1" / name, (tmp_path / "seed-1" / name).read_bytes()
        path.write_bytes(content[:-1] + b"0")
        with pytest.raises(UserError, match=rf"seed-1/{name}: sha256 is"):
            run_record.read_run(tmp_path, [1])
        path.unlink()
        with pytest.raises(UserError, match=rf"seed-1/{name}: not there"):
            run_record.read_run(tmp_path, [1])
        path.write_bytes(content)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"failed": "loss is nan"}, "it has weights, or a reason why it has none"),
        ({"weights_sha256": None}, "it has weights, or a reason why it has none"),
        ({"identity": {"suite": "../x"}}, "name no run"),  # a place outside
        ({"identity": {"name": "ablations/../../x"}}, "name no run"),
        ({"identity": {"name": ""}}, "name no run"),
    ],
)
def test_a_record_that_cannot_be_true_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "seed-1/record.json"
    record = json.loads(path.read_text())
    record["identity"] |= changes.pop("identity", {})
    path.write_text(json.dumps(record | changes))
    with pytest.raises(UserError, match=message):
        run_record.read_record(path.parent)


@pytest.mark.fault
def test_a_record_with_its_weights_or_its_history_against_it_is_refused(tmp_path: Path) -> None:
    """Thirty million classes are compared with the weights before a network of them is built."""
    written(tmp_path)
    for seed, found, altered, message in (
        (1, '"classes": 10', '"classes": 30000000', "fc2.* is not of the network that record.json says"),
        (1, '"epochs": 1', '"epochs": 9', "history.csv: does not end at epoch 9, record.json says whole"),
        (2, "at epoch 2", "at epoch 9", "history.csv: does not end at epoch 8, record.json says failed"),
    ):
        path = tmp_path / f"seed-{seed}/record.json"
        before = path.read_text()
        assert found in before
        path.write_text(before.replace(found, altered))
        with pytest.raises(UserError, match=message):
            run_record.read_run(tmp_path, [seed])
        path.write_text(before)
