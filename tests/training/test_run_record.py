"""Run records: a folder a seed, weights as they were trained, hashes that are checked, logs that belong to them."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from small_run import Small

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
    return run_record.write_seeds(folder, Small(method).job([1, 2]), (8, 8, 1), 10, result)


def test_a_run_is_read_as_it_was_written_a_seed_at_a_time(tmp_path: Path) -> None:
    records = written(tmp_path)
    read = run_record.read_records(tmp_path)
    assert [json.dumps(asdict(record)) for record in read] == [json.dumps(asdict(record)) for record in records]
    run = run_record.read_run(tmp_path, [2, 1])
    assert [record.seed for record in run.records] == [2, 1]
    assert run.failed == {2: "ce is nan at epoch 2, step 1"}
    assert run.history == [{"seed": seed, "epoch": 1, "loss": 2.5} for seed in (2, 1)]
    assert run.networks[1].get_parameter("fc2.bias")[0].item() == 1 / 3  # in its precision
    assert all(parameter.requires_grad for parameter in run.networks[1].parameters())


def test_a_log_is_of_the_record_it_was_written_for(tmp_path: Path) -> None:
    """DVC brings back an earlier record from its cache, and leaves the log that lies there: it is another run's."""
    log = tmp_path / "log.json"
    for method in ("kd", "triplet"):
        written(tmp_path / method, method)
        run_record.write_log(tmp_path / f"{method}.json", tmp_path / method / "seed-1/record.json", {"commit": method})
    about = tmp_path / "kd/seed-1/record.json"
    assert run_record.read_log(tmp_path / "kd.json", about) == {"commit": "kd"}
    shutil.copy(tmp_path / "triplet.json", log)
    assert run_record.read_log(log, about) == {}
    log.unlink()
    assert run_record.read_log(log, about) == {}


def test_weights_that_were_changed_are_noticed(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "seed-1/weights.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"weights.safetensors: sha256 is"):
        run_record.read_run(tmp_path, [1])
    (tmp_path / "seed-1/weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights.safetensors: not there"):
        run_record.read_run(tmp_path, [1])


@pytest.mark.fault
def test_a_history_that_was_changed_is_noticed(tmp_path: Path) -> None:
    written(tmp_path)
    history = tmp_path / "seed-1/history.csv"
    history.write_text(history.read_text().replace("2.5", "1.5"))
    with pytest.raises(UserError, match=r"seed-1/history.csv: sha256 is"):
        run_record.read_run(tmp_path, [1])


@pytest.mark.fault
def test_a_record_in_another_seeds_folder_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    shutil.copytree(tmp_path / "seed-1", tmp_path / "seed-3")
    with pytest.raises(UserError, match=r"seed-3/record.json: of seed 1; run the stage again"):
        run_record.read_run(tmp_path, [1, 3])


@pytest.mark.fault
@pytest.mark.parametrize("changes", [{"failed": "loss is nan"}, {"weights_sha256": None}])
def test_a_record_has_weights_or_a_reason_why_not(changes: dict[str, str | None], tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "seed-1/record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match="it has weights, or a reason why it has none"):
        run_record.read_run(tmp_path, [1])


@pytest.mark.parametrize(
    "changes", [{"suite": "../x"}, {"suite": "/x"}, {"name": "ablations/../../x"}, {"split": "../test"}, {"name": ""}]
)
def test_a_record_names_no_place_outside_its_folders(changes: dict[str, str], tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "seed-1/record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"identity": record["identity"] | changes}))
    with pytest.raises(UserError, match=r"record.json: not what this version writes .*name no run"):
        run_record.read_record(path.parent)
