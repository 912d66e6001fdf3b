"""The training runs in MLflow: a parent for each cell (a method, the teacher, a variant), in it a run for each seed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tripletkd.files import Json
from tripletkd.provenance import fingerprint, sha256
from tripletkd.tracking import live
from tripletkd.tracking.store import (
    NOTE_TAG,
    PLACE_TAG,
    RECORD_TAG,
    RUN_TAG,
    Entry,
    Runs,
    experiment_suffix,
    open_store,
    place,
    stage_tags,
)
from tripletkd.training.identity import RunIdentity, as_block
from tripletkd.training.run_record import HISTORY, RECORD, read_history, read_log, read_records, seed_folder

CELL_TAG = "tripletkd.cell"  # what all seeds of a cell have in common, as a hash
PARENT_TAG = "mlflow.parentRunId"
PARENT = "parent"  # in the place of what a run is of
OF_A_SEED = ("seed", "failed")  # tags that the run of a cell does not have


def read_seeds(runs: Path, logs: Path) -> dict[Path, Entry]:
    """Describe the seeds of a run: the trained ones under their folders, the others under their live files."""
    seeds = {}
    for record in read_records(runs):
        folder = seed_folder(runs, record.seed)
        log, rows = read_log(logs / f"{folder.name}.json", folder / RECORD), read_history(folder / HISTORY)
        entry = _entry(as_block(record), log, rows, logs)
        status, content = "FAILED" if record.failed else "FINISHED", sha256(folder / RECORD)
        seeds[folder] = replace(entry, status=status, record=content, files=[folder])
    for path in sorted(logs.glob(f"seed-*{live.SUFFIX}")):
        with suppress(FileNotFoundError):  # the seed is done now
            status, (about, rows) = "RUNNING" if live.is_held(path) else "KILLED", live.read(path)
            seeds[path] = replace(_entry(about, about["log"], rows, logs), status=status)
    return seeds


def _entry(about: Json, log: Json, history: Sequence[Json], logs: Path) -> Entry:
    """Describe the run of a seed: digits/triplet/seed-1, digits/margin-10 (validation)/seed-1.

    Args:
        about: identity, seed, code and versions, as a record and a live file have them.
        log: When and where it was trained, as far as that is known.
        history: The rows; what they call test is the split that the run is measured on.
        logs: The folder of the logs of its run.
    """
    identity, seed = RunIdentity(**about["identity"]), about["seed"]
    stage = "train_teacher" if identity.is_teacher else "ablate" if "/" in identity.name else "distill"
    said = {key: getattr(identity, key) for key in ("suite", "split", "name", "method", "network")}
    said |= {"data.sha256": identity.data_sha256, "teacher.sha256": identity.teacher_sha256}
    said |= {key: about.get(key) for key in ("code", "versions", *OF_A_SEED)}
    if identity.initial_sha256:
        said["initial.sha256"] = identity.initial_sha256
    said[CELL_TAG] = fingerprint(as_block(identity), about["code"])
    names = ("recipe", "inputs", "precision", "deterministic", "evaluate_every")
    params = {"method": identity.params, "seed": seed, **{name: getattr(identity, name) for name in names}}
    split = "" if identity.split == "test" else f" ({identity.split})"
    name = f"{identity.suite}/{identity.name.rpartition('/')[2]}{split}{experiment_suffix(log)}/seed-{seed}"
    key = fingerprint(as_block(identity), about["code"], about["versions"], seed)
    rows = {
        row["epoch"]: {re.sub("^test_", f"{identity.split}_", n): row[n] for n in row if n not in ("seed", "epoch")}
        for row in history
    }
    return Entry(name, key, place(logs / f"seed-{seed}"), None, log, stage_tags(stage, log, said), params, rows)


def mirror_seeds(root: Path, runs: Path, logs: Path) -> bool:
    """Add what the store lacks of a run.

    Args:
        root: The project's folder; see open_store.
        runs: The folder of the run, with a folder for each seed.
        logs: The folder of the logs of its seeds.

    Returns:
        Whether the store lacked anything.
    """
    cells, lacked, found = defaultdict[str, list[Entry]](list), False, read_seeds(runs, logs)
    for seed in found.values():
        cells[seed.tags[CELL_TAG]].append(seed)
    for cell, seeds in cells.items():
        with open_store(root, seeds[0].tags["suite"], CELL_TAG, cell) as store:
            for seed in seeds:
                lacked |= store.add(seed)
            lacked |= _add_parent(store, seeds, place(logs))
    for path, seed in found.items():
        if seed.status == "KILLED" and not live.is_held(path):
            path.unlink(missing_ok=True)
    return lacked


def _add_parent(store: Runs, seeds: Sequence[Entry], of: str) -> bool:
    """Add the run of a cell with the status of its seeds and, once none is in training, their means by epoch."""
    finished = [seed for seed in seeds if seed.record]
    status = min((seed.status for seed in seeds), key=["RUNNING", "FINISHED", "FAILED", "KILLED"].index)
    common = dict(set.intersection(*(set(seed.tags.items()) for seed in finished or seeds)))
    tags = {key: text for key, text in common.items() if key not in OF_A_SEED}
    params = {key: value for key, value in seeds[0].params.items() if key not in OF_A_SEED}
    entry = Entry(seeds[0].name.rpartition("/")[0], PARENT, of, None, {}, tags, params, {}, status)
    if finished and status != "RUNNING":
        rows = [seed.rows for seed in finished if seed.status != "FAILED"]
        epochs = sorted(set[int]().union(*rows).intersection(*rows))
        means = {e: {key: sum(row[e][key] for row in rows) / len(rows) for key in rows[0][e]} for e in epochs}
        last = means[epochs[-1]].get(f"{tags['split']}_accuracy") if means else None
        tags |= {"seeds": ", ".join(seed.tags["seed"] for seed in finished), NOTE_TAG: _note(finished, last)}
        state = fingerprint(sorted(str(seed.record) for seed in finished))
        entry = replace(entry, rows=means, log=finished[-1].log, record=state)
    if entry.record:
        best = min(_means(store, entry), default=None)
        if best and best[:2] <= (False, -len(finished)):  # another checkout's run has as many seeds
            entry = replace(entry, record=best[-1])
    lacked = store.add(entry)
    if entry.record:  # machines that log different seeds at the same time keep the same run
        current, *others = [run_id for *_, run_id, _ in sorted(_means(store, entry))]
        for run in [run for run in store.found if run.info.run_id in others]:
            store.delete(run)
    else:
        current = next(run for run in store.found if entry.is_of(None, run)).info.run_id
    for run in store.found:
        if run.data.tags.get(RUN_TAG) != PARENT and run.data.tags.get(PARENT_TAG) != current:
            store.client.set_tag(run.info.run_id, PARENT_TAG, current)
    return lacked


def _means(store: Runs, entry: Entry) -> Iterator[tuple[bool, int, str, str]]:
    """Give the runs of a cell that have means: whether it is out of date, minus its seeds, its id, its record."""
    for run in store.found:
        tags = run.data.tags
        if tags.get(RUN_TAG) == PARENT and RECORD_TAG in tags:
            is_stale = tags.get(PLACE_TAG) == entry.place and not entry.is_of(entry.record, run)
            yield is_stale, -len(tags["seeds"].split(", ")), run.info.run_id, tags[RECORD_TAG]


def _note(seeds: Sequence[Entry], accuracy: float | None) -> str:
    """Return what a person should know of a cell's runs before opening one."""
    tags, count = seeds[0].tags, sum(seed.status != "FAILED" for seed in seeds)
    text = f"{tags['name']} on {tags['suite']}: {count} of {len(seeds)} seeds, a run each below; here, their means."
    if accuracy:
        text += f" **{100 * accuracy:.2f} %** of the {tags['split']} images at the last epoch."
    failures = [f"Seed {seed.tags['seed']} failed: {seed.tags['failed']}" for seed in seeds if "failed" in seed.tags]
    return "\n\n".join([text, *failures])
