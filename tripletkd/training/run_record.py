"""The run record: a folder a seed that holds all there is to know of it, from which MLflow can be refilled.

runs/<suite>/<split>/<name>/seed-<N>/
    weights.safetensors  the last epoch's weights; not there where the seed failed
    history.csv          a row an epoch: terms, learning rate, accuracies
    record.json          parameters, hashes of data, teacher and weights, fingerprint, environment; no time, no path
logs/<suite>/<split>/<name>/seed-<N>.json
                         times, machine, commit: what differs from run to run, and so is no output of a stage
"""

from __future__ import annotations  # the types of torch are not imported: MLflow's process does not need it

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletkd.errors import UserError
from tripletkd.files import whole, write_csv, write_json
from tripletkd.provenance import sha256

if TYPE_CHECKING:
    from torch import nn

    from tripletkd.training.job import Job
    from tripletkd.training.loop import TrainResult

WEIGHTS, HISTORY, RECORD = "weights.safetensors", "history.csv", "record.json"
NAME = re.compile(r"\w[\w.-]*")  # what a suite, a method, an ablation or a variant may be called


@dataclass(frozen=True)
class Record:
    """Holds what record.json says of one trained seed."""

    suite: str
    split: str  # on which it is measured, and which it has not seen
    name: str  # of the run in that suite and split: the method, "teacher", or "ablations/<ablation>/<variant>"
    method: str  # or "teacher"
    network: str
    image_shape: tuple[int, int, int]
    classes: int
    seed: int
    params: dict[str, Any]  # the blocks of params.yaml that made it
    data_sha256: str
    teacher_sha256: str | None
    code: str  # sha256 of what computed the weights
    fingerprint: str  # of all that the weights should depend on, the code among it
    environment: dict[str, Any]
    trained_with: list[int]  # the seeds in each of its kernels, on which last bits depend: itself alone if not fused
    failed: str | None = None  # why it has no weights
    weights_sha256: str | None = None
    history_sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would be read or written outside the folders that a record belongs to."""
        names = [self.suite, *self.name.split("/")]
        if self.split not in ("test", "validation") or not all(NAME.fullmatch(name) for name in names):
            raise ValueError(f"{self.suite!r}, {self.split!r}, {self.name!r} name no run")


@dataclass(frozen=True)
class TrainedRun:
    """Holds the seeds of a run as they were trained."""

    records: Sequence[Record]
    networks: Mapping[int, nn.Module]  # of the seeds that did not fail
    history: list[dict[str, float]]  # of all seeds, epoch by epoch

    @property
    def failed(self) -> dict[str, str]:
        """List the seeds without weights, and why."""
        return {str(record.seed): record.failed for record in self.records if record.failed is not None}


def seed_folder(folder: Path, seed: int) -> Path:
    """Name the place of a seed in the folder of its run."""
    return folder / f"seed-{seed}"


def write_seeds(folder: Path, job: Job, shape: tuple[int, int, int], classes: int, result: TrainResult) -> list[Record]:
    """Write the seeds that were trained together, each in the place of an earlier one of the same number.

    Args:
        folder: of the run.
        job: what was trained.
        shape: of an image, [H, W, C].
        classes: their number.
        result: what came of it; the first of its environments is where training began.
    """
    seeds, environment, written = [*result.networks, *result.failed], _joined(result.environments), []
    for seed in seeds:
        record = Record(
            suite=job.key.suite,
            split=job.key.split,
            name=job.key.name,
            method="teacher" if job.key.name == "teacher" else job.method,
            network=job.network,
            image_shape=shape,
            classes=classes,
            seed=seed,
            params=job.described_params(),
            data_sha256=job.conditions.data_sha256,
            teacher_sha256=job.conditions.teacher_sha256,
            code=job.conditions.code,
            fingerprint=job.fingerprint(seed),
            environment=environment,
            trained_with=sorted(seeds) if environment.get("fused_seeds") else [seed],
            failed=result.failed.get(seed),
        )
        history = [row for row in result.history if row["seed"] == seed]
        written.append(_write_seed(folder, record, result.networks.get(seed), history))
    return written


def _joined(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe the machines of one run as one: where they differ, "the first, then the second"."""
    names = dict.fromkeys(name for environment in environments for name in environment)
    values = {name: list(dict.fromkeys(e.get(name) for e in environments)) for name in names}
    return {name: v[0] if len(v) == 1 else ", then ".join(map(str, v)) for name, v in values.items()}


def _write_seed(
    folder: Path, record: Record, network: nn.Module | None, history: Sequence[Mapping[str, float]]
) -> Record:
    from safetensors.torch import save

    from tripletkd import models

    with whole(seed_folder(folder, record.seed)) as beside:
        beside.mkdir(parents=True)
        if network is not None:
            (beside / WEIGHTS).write_bytes(save(models.weights(network)))
            record = replace(record, weights_sha256=sha256(beside / WEIGHTS))
        write_csv(beside / HISTORY, history)
        record = replace(record, history_sha256=sha256(beside / HISTORY))
        write_json(beside / RECORD, asdict(record))
    return record


def read_record(folder: Path) -> Record:
    """Read the record in a seed's folder.

    Raises:
        UserError: if there is no whole record of this version.
    """
    path = folder / RECORD
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
        if (record.failed is None) == (record.weights_sha256 is None):
            raise ValueError("it has weights, or a reason why it has none: not both, not neither")
        return record
    except FileNotFoundError:
        raise UserError(
            f"{path}: not there; run the stage that makes it first (`dvc repro`, with its suite in run.suites)"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a run record of this version ({error}); run the stage again") from None


def read_records(folder: Path) -> list[Record]:
    """Read the records of all seeds that stand in the folder of a run, in the order of the seeds.

    Raises:
        UserError: if one cannot be read.
    """
    return sorted((read_record(path.parent) for path in folder.glob(f"seed-*/{RECORD}")), key=lambda r: r.seed)


def read_run(folder: Path, seeds: Sequence[int]) -> TrainedRun:
    """Read the records, networks and history of the named seeds of a run.

    Raises:
        UserError: if a file is missing, damaged, or not the one that was recorded.
    """
    records = [read_record(seed_folder(folder, seed)) for seed in seeds]
    for seed, record in zip(seeds, records, strict=True):
        place = seed_folder(folder, seed)
        if record.seed != seed:
            raise UserError(f"{place / RECORD}: of seed {record.seed}; run the stage again")
        _check_sha256(place / HISTORY, record.history_sha256)
    networks = {r.seed: load_network(folder, r) for r in records if r.failed is None}
    rows = [row for r in records for row in read_history(seed_folder(folder, r.seed) / HISTORY)]
    return TrainedRun(records, networks, sorted(rows, key=lambda row: row["epoch"]))


def _check_sha256(path: Path, recorded: str | None) -> None:
    """Raise UserError if a file is not the one that the record beside it names."""
    if not path.is_file():
        raise UserError(f"{path}: not there, {RECORD} names it; run the stage again")
    if (found := sha256(path)) != recorded:
        raise UserError(f"{path}: sha256 is {found}, {RECORD} says {recorded}; run the stage again")


def load_network(folder: Path, record: Record) -> nn.Module:
    """Build the network of a seed with its weights, in the precision that it was trained in.

    Raises:
        UserError: if the file of weights is missing or not the one that was recorded.
    """
    from safetensors.torch import load_file

    from tripletkd import models

    path = seed_folder(folder, record.seed) / WEIGHTS
    _check_sha256(path, record.weights_sha256)
    network = models.build(record.network, record.image_shape, record.classes, seed=0)
    network.load_state_dict(load_file(path), assign=True)
    return network


def read_history(path: Path) -> list[dict[str, float]]:
    """Read rows as they were written: seed and epoch are integers, empty cells (epochs without evaluation) left out.

    Raises:
        UserError: if the file is damaged.
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


def write_log(path: Path, about: Path, log: Mapping[str, Any]) -> None:
    """Write the times and the machine of a run, which belong to the file `about`."""
    write_json(path, {**log, "belongs_to_sha256": sha256(about)})


def read_log(path: Path, about: Path) -> dict[str, Any]:
    """Read the log that belongs to the file `about`; empty where there is none, or only another run's."""
    log = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return log if log.pop("belongs_to_sha256", None) == sha256(about) else {}
