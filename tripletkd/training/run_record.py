"""The run record: a folder for each seed that holds all there is to know of it, from which MLflow can be refilled.

runs/<suite>/<split>/<name>/seed-<N>/
    weights.safetensors  the last epoch's weights; not there where the seed failed
    history.csv          a row for each epoch: terms, learning rate, accuracies
    record.json          identity of the run, hashes of weights, history and code; no time, no path, no machine
logs/<suite>/<split>/<name>/seed-<N>.json
                         when and where it was trained: what differs from run to run, and so is no output of a stage
"""

from __future__ import annotations  # the types of torch are not imported: the mirror in MLflow does not need it

import csv
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from tripletkd.errors import UserError
from tripletkd.files import Json, read_json, whole, write_csv, write_json
from tripletkd.provenance import sha256
from tripletkd.training.identity import RunIdentity, as_block

if TYPE_CHECKING:
    from torch import nn

    from tripletkd.training.job import Job
    from tripletkd.training.loop import TrainResult

WEIGHTS, HISTORY, RECORD = "weights.safetensors", "history.csv", "record.json"
SMALL = 2**19  # numbers of an image, and classes, for which a network is built before its weights are compared


@dataclass(frozen=True)
class Record:
    """Holds what record.json says of one trained seed."""

    identity: RunIdentity
    seed: int
    code: str  # sha256 of what the code means that computed the weights, see code_hash.py
    versions: dict[str, str]  # of the packages that computed them
    image_shape: tuple[int, int, int]
    classes: int
    failed: str | None = None  # why it has no weights
    weights_sha256: str | None = None
    history_sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse a record that contradicts itself."""
        if (self.failed is None) == (self.weights_sha256 is None):
            raise ValueError("it has weights, or a reason why it has none: not both, not neither")


@dataclass(frozen=True)
class TrainedRun:
    """Holds the seeds of a run as they were trained."""

    records: Sequence[Record]
    networks: Mapping[int, nn.Module]  # of the seeds that did not fail
    history: list[dict[str, float]]  # of all seeds, epoch by epoch

    @property
    def failed(self) -> dict[int, str]:
        """List the seeds without weights, and why."""
        return {record.seed: record.failed for record in self.records if record.failed is not None}


def seed_folder(folder: Path, seed: int) -> Path:
    """Name the place of a seed in the folder of its run."""
    return folder / f"seed-{seed}"


def write_seeds(folder: Path, job: Job, shape: tuple[int, int, int], classes: int, result: TrainResult) -> list[Record]:
    """Write the seeds that were trained together, each in the place of an earlier one of the same number.

    Args:
        folder: Of the run.
        job: What was trained.
        shape: Of an image, [H, W, C].
        classes: Their number.
        result: What came of it.
    """
    written = []
    for seed in [*result.networks, *result.failed]:
        history = [row for row in result.history if row["seed"] == seed]
        network, failed = result.networks.get(seed), result.failed.get(seed)
        with whole(seed_folder(folder, seed)) as beside:
            beside.mkdir(parents=True)
            write_csv(beside / HISTORY, history)
            record = Record(
                identity=job.identity,
                seed=seed,
                code=job.code,
                versions=job.versions,
                image_shape=shape,
                classes=classes,
                failed=failed,
                weights_sha256=None if network is None else _write_weights(beside / WEIGHTS, network),
                history_sha256=sha256(beside / HISTORY),
            )
            write_json(beside / RECORD, as_block(record))
        written.append(record)
    return written


def _write_weights(path: Path, network: nn.Module) -> str:
    """Write the weights of a network; returns their hash."""
    from safetensors.torch import save

    from tripletkd import models

    path.write_bytes(save(models.weights(network)))
    return sha256(path)


def read_record(folder: Path) -> Record:
    """Read the record in a seed's folder.

    Raises:
        UserError: If there is no whole record of this version.
    """
    return read_json(folder / RECORD, Record, "run the stage that makes it (`dvc repro`, with its suite in run.suites)")


def read_records(folder: Path) -> list[Record]:
    """Read the records of all seeds in the folder of a run, in the order of the seeds.

    Raises:
        UserError: If one cannot be read.
    """
    return sorted((read_record(path.parent) for path in folder.glob(f"seed-*/{RECORD}")), key=lambda r: r.seed)


def read_run(folder: Path, seeds: Sequence[int]) -> TrainedRun:
    """Read the records, networks and history of the named seeds of a run.

    Raises:
        UserError: If a file is missing, damaged, or not the one that was recorded.
    """
    records = [read_record(seed_folder(folder, seed)) for seed in seeds]
    for seed, record in zip(seeds, records, strict=True):
        place = seed_folder(folder, seed)
        if record.seed != seed:
            raise UserError(f"{place / RECORD}: of seed {record.seed}; run the stage again")
        _check_sha256(place / HISTORY, record.history_sha256)
    networks = {r.seed: load_network(folder, r) for r in records if r.failed is None}
    rows = []
    for record in records:
        history = read_history(path := seed_folder(folder, record.seed) / HISTORY)
        _check_end(path, history, record)
        rows += history
    return TrainedRun(records, networks, sorted(rows, key=lambda row: row["epoch"]))


def _check_end(path: Path, history: Sequence[Mapping[str, float]], record: Record) -> None:
    """Raise UserError if a history does not end where its record says that the seed ended, or failed."""
    first, last = min(1, epochs := int(record.identity.recipe.get("epochs", 0))), epochs  # 0: not trained here
    if failed := re.search(r"(at|after) epoch (\d+)", record.failed or ""):
        last = int(failed[2]) - (failed[1] == "at")
    if [row["epoch"] for row in history] != list(range(first, last + 1)):
        reason = f"failed: {record.failed}" if record.failed else "whole"
        raise UserError(f"{path}: does not end at epoch {last}, {RECORD} says {reason}; run the stage again")


def _check_sha256(path: Path, recorded: str | None) -> None:
    """Raise UserError if a file is not the one that the record beside it names."""
    if not path.is_file():
        raise UserError(f"{path}: not there, {RECORD} names it; run the stage again")
    if (found := sha256(path)) != recorded:
        raise UserError(f"{path}: sha256 is {found}, {RECORD} says {recorded}; run the stage again")


def load_network(folder: Path, record: Record) -> nn.Module:
    """Build the network of a seed with its weights, in the precision that it was trained in.

    Raises:
        UserError: If the file of weights is missing or not the one that was recorded.
    """
    import torch
    from safetensors.torch import load_file

    from tripletkd import models

    path = seed_folder(folder, record.seed) / WEIGHTS
    _check_sha256(path, record.weights_sha256)
    try:
        models.definition(record.identity.network)
    except KeyError:
        raise UserError(f"{path}: of {record.identity.network}, and there is no such network here") from None
    found, make = load_file(path), partial(models.build, record.identity.network, record.image_shape, record.classes)
    is_small = prod(record.image_shape) <= SMALL and record.classes <= SMALL
    with nullcontext() if is_small else torch.device("meta"):  # which takes no memory, but a second of imports
        network = make(seed=0)
    expected = network.state_dict()
    shapes, expected_shapes = ({name: t.shape for name, t in of.items()} for of in (found, expected))
    if other := [name for name in shapes | expected_shapes if shapes.get(name) != expected_shapes.get(name)]:
        raise UserError(f"{path}: {other[0]} is not of the network that {RECORD} says; run the stage again")
    network = network if is_small else make(seed=0)
    network.load_state_dict(found, assign=True)
    return network


def read_history(path: Path) -> list[dict[str, float]]:
    """Read rows as they were written: seed and epoch are integers, empty cells (epochs without evaluation) left out.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        return [
            {name: int(value) if name in ("seed", "epoch") else float(value) for name, value in row.items() if value}
            for row in rows
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a history ({error}); run the stage that makes it again") from None


def write_log(path: Path, about: Path, log: Mapping[str, object]) -> None:
    """Write when and where the file `about` was made, for the file of this content only."""
    write_json(path, {**log, "belongs_to_sha256": sha256(about)})


def read_log(path: Path, about: Path) -> Json:
    """Read the log that belongs to the file `about`; empty where there is none, or only another run's."""
    log = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return log if log.pop("belongs_to_sha256", None) == sha256(about) else {}
