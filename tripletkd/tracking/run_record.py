"""The run record: one folder that holds all there is to know of a cell, from which MLflow can be refilled.

weights/seed-N.safetensors   the last epoch's weights of each seed
history.csv                  a row for each seed and epoch: terms, learning rate, accuracies
record.json                  parameters, seeds, hashes of data, teacher and weights, environment; no time, no path
log.json                     times, machine, commit: what differs from run to run, and so is no output of a stage
"""

from __future__ import annotations  # the types of train and torch are not imported: MLflow's process needs neither

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletkd.errors import UserError
from tripletkd.files import whole, write_csv, write_json
from tripletkd.provenance import sha256

if TYPE_CHECKING:
    from torch import nn

    from tripletkd.training.loop import Fitted


@dataclass(frozen=True)
class Record:
    """record.json as an object."""

    suite: str
    split: str  # on which it is measured, and which it has not seen
    cell: str  # its place in that suite and split: the method, or "ablations/<name>/<variant>"
    method: str  # or "teacher"
    network: str
    image_shape: tuple[int, int, int]
    classes: int
    seeds: list[int]
    failed: dict[str, str]  # seed -> why it has no weights
    params: dict[str, Any]  # the blocks of params.yaml that made it
    data_sha256: str
    teacher_sha256: str | None
    environment: dict[str, Any]
    weights_sha256: dict[str, str] = field(default_factory=dict)  # seed -> of its file

    def load_networks(self, folder: Path) -> dict[int, nn.Module]:
        """Seed -> network with its weights; UserError if a file is missing or not the one that was recorded."""
        from safetensors.torch import load_file

        from tripletkd import models

        networks = {}
        for seed, expected in self.weights_sha256.items():
            path = weights_path(folder, seed)
            if not path.is_file():
                raise UserError(f"{path}: not there, record.json names it; run the stage again")
            if (found := sha256(path)) != expected:
                raise UserError(f"{path}: sha256 is {found}, record.json says {expected}; run the stage again")
            network = models.build(self.network, self.image_shape, self.classes, seed=0)
            network.load_state_dict(load_file(path), assign=True)  # in the precision that it was trained in
            networks[int(seed)] = network
        return networks


def weights_path(folder: Path, seed: int | str) -> Path:
    return folder / "weights" / f"seed-{seed}.safetensors"


def write(folder: Path, record: Record, fitted: Fitted, log: Mapping[str, Any]) -> Record:
    """Write a finished run, in the place of any earlier one; returns the record with the hashes of the weights."""
    from safetensors.torch import save

    from tripletkd import models

    with whole(folder) as beside:
        (beside / "weights").mkdir(parents=True)
        hashes = {}
        for seed, network in fitted.networks.items():
            path = weights_path(beside, seed)
            path.write_bytes(save(models.weights(network)))
            hashes[str(seed)] = sha256(path)
        record = replace(record, weights_sha256=hashes)
        write_csv(beside / "history.csv", fitted.history)
        write_json(beside / "record.json", asdict(record))
        write_log(beside, "record.json", log)
    return record


def read(folder: Path) -> Record:
    """UserError if there is no whole record."""
    path = folder / "record.json"
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"{path}: not there; run the stage that makes it first (`dvc repro`, with its suite in run.suites)"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a run record of this version ({error}); run the stage again") from None


def write_log(folder: Path, about: str, log: Mapping[str, Any]) -> None:
    """log.json, which belongs to the file `about` beside it."""
    write_json(folder / "log.json", {**log, "belongs_to_sha256": sha256(folder / about)})


def read_log(folder: Path, about: str) -> dict[str, Any]:
    """Empty where there is none, or another run's: what DVC restores from its cache comes without its log."""
    path = folder / "log.json"
    log = json.loads(path.read_text()) if path.is_file() else {}
    return log if log.pop("belongs_to_sha256", None) == sha256(folder / about) else {}


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows as they were written: seed and epoch are integers, empty cells (epochs without evaluation) are left out.

    UserError if the file is damaged.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        return [
            {name: int(value) if name in ("seed", "epoch") else float(value) for name, value in row.items() if value}
            for row in rows
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a history ({error}); run the stage that makes it again") from None
