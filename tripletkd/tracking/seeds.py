"""The training runs in MLflow: a parent for each cell (a method, the teacher, a variant), in it a run for each seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletkd.provenance import fingerprint, sha256
from tripletkd.tracking import live
from tripletkd.tracking.store import (
    NOTE_TAG,
    RECORD_TAG,
    RUN_TAG,
    Entry,
    Log,
    Rows,
    Runs,
    experiment_suffix,
    open_store,
    place,
    stage_tags,
)
from tripletkd.training.identity import RunIdentity, as_block
from tripletkd.training.run_record import HISTORY, RECORD, read_history, read_log, read_records, seed_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

CELL_TAG = "tripletkd.cell"  # what all seeds of a cell have in common, as a hash
PARENT_TAG = "mlflow.parentRunId"
PARENT = "parent"  # in the place of what a run is of


@dataclass(frozen=True)
class Seed:
    """A seed as it is on disk: trained, in training, or stopped.

    Attributes:
        about: seed, code and versions, as a record and a live file have them.
        log: When and where it was trained, as far as that is known.
        status: As MLflow calls it.
        live: Its live file, which is there as long as there is no record.
        folder: Of the weights, the history and the record.
        record: The hash of its record; None where there is none.
        failed: Why it has no weights.
    """

    identity: RunIdentity
    about: Mapping[str, Any]
    log: Log
    status: str
    live: Path
    folder: Path
    record: str | None = None
    failed: str | None = None

    @property
    def number(self) -> int:
        """The seed itself."""
        return int(self.about["seed"])

    @property
    def cell(self) -> str:
        """A hash of what all seeds of its cell have in common."""
        return fingerprint(as_block(self.identity), self.about["code"])

    @cached_property
    def rows(self) -> Rows:
        """The metrics of each epoch; what the history calls test is the split that the run is measured on."""
        rows = read_history(self.folder / HISTORY) if self.record else live.read(self.live)[1]
        names = {name: re.sub("^test_", f"{self.identity.split}_", name) for row in rows for name in row}
        return {int(r["epoch"]): {names[n]: r[n] for n in r if n not in ("seed", "epoch")} for r in rows}

    def parent(self) -> Entry:
        """Describe the run of its cell: digits/triplet, digits/margin-10 (validation), digits/triplet [experiment]."""
        identity = self.identity
        stage = "train_teacher" if identity.is_teacher else "ablate" if "/" in identity.name else "distill"
        said = {key: getattr(identity, key) for key in ("suite", "split", "name", "method", "network")}
        said |= {"data.sha256": identity.data_sha256, "teacher.sha256": identity.teacher_sha256, CELL_TAG: self.cell}
        said |= {"initial.sha256": identity.initial_sha256} if identity.initial_sha256 else {}
        said |= {key: self.about[key] for key in ("code", "versions")}
        names = ("recipe", "inputs", "precision", "deterministic", "evaluate_every")
        params = {"method": identity.params, **{name: getattr(identity, name) for name in names}}
        split = "" if identity.split == "test" else f" ({identity.split})"
        name = f"{identity.suite}/{identity.name.rpartition('/')[2]}{split}{experiment_suffix(self.log)}"
        tags = stage_tags(stage, self.log, said)
        return Entry(name, PARENT, place(self.live.parent), None, self.log, tags, params, {}, self.status)

    def entry(self) -> Entry:
        """Describe its run within that of its cell."""
        of = self.parent()
        return replace(
            of,
            name=f"{of.name}/seed-{self.number}",
            key=fingerprint(as_block(self.identity), *(self.about[key] for key in ("code", "versions", "seed"))),
            place=place(self.live),
            record=self.record,
            tags={**of.tags, "seed": str(self.number), **({"failed": self.failed} if self.failed else {})},
            params={**of.params, "seed": self.number},
            rows=self.rows,
            files=[self.folder] if self.record else [],
        )


def read_seeds(runs: Path, logs: Path) -> list[Seed]:
    """Read the seeds of a run: those that have records, and those that are in training or were stopped."""
    seeds = []
    for record in read_records(runs) if runs.is_dir() else []:
        folder, path = seed_folder(runs, record.seed), logs / f"seed-{record.seed}{live.SUFFIX}"
        log, status = read_log(logs / f"seed-{record.seed}.json", folder / RECORD), "FINISHED"
        found = Seed(record.identity, vars(record), log, status, path, folder, sha256(folder / RECORD), record.failed)
        seeds.append(replace(found, status="FAILED") if record.failed else found)
    for path in sorted(logs.glob(f"seed-*{live.SUFFIX}")):
        with suppress(FileNotFoundError):  # the seed is done now
            status, (about, _) = "RUNNING" if live.is_alive(path) else "KILLED", live.read(path)
            seeds.append(Seed(RunIdentity(**about["identity"]), about, about["log"], status, path, runs))
    return seeds


def mirror_seeds(root: Path, runs: Path, logs: Path) -> bool:
    """Add what the store lacks of a run.

    Args:
        root: The project's folder; see open_store.
        runs: The folder of the run, with a folder for each seed.
        logs: The folder of the logs of its seeds.

    Returns:
        Whether the store lacked anything.
    """
    cells, lacked = dict[str, list[Seed]](), False
    for seed in read_seeds(runs, logs):
        cells.setdefault(seed.cell, []).append(seed)
    for cell, seeds in cells.items():
        with open_store(root, seeds[0].identity.suite, CELL_TAG, cell) as store:
            for seed in seeds:
                lacked |= store.add(seed.entry())
            lacked |= _add_parent(store, seeds)
        for seed in seeds:
            if seed.status == "KILLED" and not live.is_alive(seed.live):
                seed.live.unlink(missing_ok=True)
    return lacked


def _add_parent(store: Runs, seeds: Sequence[Seed]) -> bool:
    """Add the run of a cell with the status of its seeds and, once none is in training, their means by epoch."""
    finished = [seed for seed in seeds if seed.record]
    status = min((seed.status for seed in seeds), key=["RUNNING", "FINISHED", "FAILED", "KILLED"].index)
    entry = replace(seeds[0].parent(), status=status, log={})
    if finished and status != "RUNNING":
        rows = [seed.rows for seed in finished if not seed.failed]
        epochs = sorted(set[int]().union(*rows).intersection(*rows))
        means = {e: {key: sum(row[e][key] for row in rows) / len(rows) for key in rows[0][e]} for e in epochs}
        common = dict(set.intersection(*(set(seed.parent().tags.items()) for seed in finished)))
        said = {"seeds": ", ".join(str(seed.number) for seed in finished), NOTE_TAG: _note(finished, means)}
        state, tags = fingerprint(sorted(str(seed.record) for seed in finished)), {**common, **said}
        entry = replace(entry, rows=means, tags=tags, log=finished[-1].log, record=state)
    lacked = store.add(entry)
    parents, children = [run for run in store.found if is_parent(run)], [r for r in store.found if not is_parent(r)]
    current = next(run for run in parents if entry.is_of(entry.record, run))
    for other in parents if entry.record else []:
        if other is not current and RECORD_TAG in other.data.tags:  # it has the means of other seeds
            store.delete(other)
    for child in children:
        if child.data.tags.get(PARENT_TAG) != current.info.run_id:
            store.client.set_tag(child.info.run_id, PARENT_TAG, current.info.run_id)
    return lacked


def is_parent(run: Run) -> bool:
    """Tell whether a run is that of a cell."""
    return bool(run.data.tags.get(RUN_TAG) == PARENT)


def _note(seeds: Sequence[Seed], means: Rows) -> str:
    """Return what a person should know of a cell's runs before opening one."""
    identity, count = seeds[0].identity, sum(not seed.failed for seed in seeds)
    text = f"{identity.name} on {identity.suite}: {count} of {len(seeds)} seeds, a run each below; here, their means."
    if accuracy := means[max(means)].get(f"{identity.split}_accuracy") if means else None:
        text += f" **{100 * accuracy:.2f} %** of the {identity.split} images at the last epoch."
    failures = [f"Seed {seed.number} failed: {seed.failed}" for seed in seeds if seed.failed]
    return "\n\n".join([text, *failures])
