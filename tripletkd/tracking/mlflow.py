"""The mirror of run folders, exports, tables and other stages' files in MLflow; also a command: `make relog`.

    python -m tripletkd.tracking.mlflow [folder ...]

What lies in the folders is the truth: a store that is lost, or was out of reach, is filled again from them. What all
seeds of a method share is a parent run, each seed a run in it with every term by epoch. Mirroring again adds what the
store lacks and leaves the rest.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from tripletkd.provenance import fingerprint, sha256
from tripletkd.tracking.store import (
    METRICS_A_CALL,
    NOTE_TAG,
    RECORD_TAG,
    NewRun,
    Store,
    as_metrics,
    flat,
    log_tags,
    open_store,
)
from tripletkd.training.run_record import HISTORY, RECORD, Record, read_history, read_log, read_records, seed_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

FOLDERS = ("runs", "exports", "results")  # in which the project has what is mirrored
TABLE = "table.json"  # of a suite's results
JOB_TAG = "tripletkd.job"  # what all seeds of a cell have in common, as a hash
OF_SEEDS = ("environment.", "log.", "failed.", "mlflow.source.")  # a parent's tags that its seeds decide

Log = Mapping[str, object]  # what differs from one computation of the same thing to the next: time, commit, machine


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedRun:
    """A seed's folder as it is to be mirrored.

    Attributes:
        folder: The folder, with weights.safetensors, history.csv and record.json.
        record: What record.json says.
        log: When and where it was trained; empty if that is not known.
        history: The rows of history.csv.
    """

    folder: Path
    record: Record
    log: Log
    history: Sequence[Mapping[str, float]]

    @classmethod
    def read(cls, run: Path, record: Record) -> SeedRun:
        """Read what there is of the seed in a run folder besides its record."""
        folder = seed_folder(run, record.seed)
        path = _log_path(run, record)
        log = read_log(path, folder / RECORD) if path else {}
        return cls(folder, record, log, read_history(folder / HISTORY))

    @property
    def tags(self) -> dict[str, str]:
        """What tells where the seed's numbers come from."""
        record = self.record
        environment = {f"environment.{key}": text for key, text in flat(record.environment) if text != "None"}
        return _job_tags(record) | environment | log_tags(self.log)

    @property
    def finals(self) -> dict[str, float]:
        """The last epoch's metrics; none if the seed failed."""
        return _metrics(self.record, self.history[-1]) if self.history and not self.record.failed else {}

    def mirror(self, parent: str) -> NewRun:
        """Return the run that mirrors this seed within a parent run."""
        record = self.record
        tags = self.tags | {"seed": str(record.seed)} | ({"failed": record.failed} if record.failed else {})
        return NewRun(
            identity=sha256(self.folder / RECORD),
            name=f"{run_name(record, self.log)}/seed-{record.seed}",
            tags=tags,
            log=self.log,
            parent=parent,
            status="FAILED" if record.failed else "FINISHED",
        )


def log_run(root: Path, folder: Path) -> bool:
    """Mirror a run folder, each job in it as a parent run with a child run a seed.

    Args:
        root: The project's folder; see open_store.
        folder: runs/<suite>/<split>/<name>, which holds a folder a seed.

    Returns:
        Whether the store lacked anything of it.

    Raises:
        UserError: If the folder holds no records, or a record carries a name that leads elsewhere.
    """
    jobs: dict[str, list[SeedRun]] = {}
    for record in read_records(folder):
        jobs.setdefault(_job_identity(record), []).append(SeedRun.read(folder, record))
    added = False
    for identity, seeds in jobs.items():
        with open_store(root, seeds[0].record.suite) as store:
            added |= _log_job(store, identity, seeds)
    return added


def _log_job(store: Store, identity: str, seeds: Sequence[SeedRun]) -> bool:
    """Add what the store lacks of a job's seeds; returns whether it lacked anything."""
    state = fingerprint(sorted(sha256(seed.folder / RECORD) for seed in seeds))
    parent = store.unite(JOB_TAG, identity) or _create_parent(store, identity, seeds[0])
    missing = [seed for seed in seeds if not store.find(seed.mirror(parent.info.run_id))]
    if not missing and parent.data.tags[RECORD_TAG] == state and parent.info.status == "FINISHED":
        return False
    for seed in missing:
        _log_seed(store, seed, parent.info.run_id)
    parent = store.unite(JOB_TAG, identity) or parent  # another machine may have created one too
    _summarise(store, parent.info.run_id, seeds, state)
    return True


def _create_parent(store: Store, identity: str, first: SeedRun) -> Run:
    """Create a job's parent run, without what its seeds decide, and return it."""
    begin, _ = first.mirror("").span
    tags = _job_tags(first.record) | {JOB_TAG: identity, RECORD_TAG: ""}
    name = run_name(first.record, first.log)
    run = store.client.create_run(store.experiment, begin, tags, name)
    store.log(run.info.run_id, first.record.params, {})
    store.log_images(run.info.run_id, first.record.suite, first.record.data_sha256)
    return run


def _log_seed(store: Store, seed: SeedRun, parent: str) -> None:
    """Add a seed's child run: parameters, the terms by epoch, its files."""
    with store.adding(seed.mirror(parent)) as run_id:
        store.log(run_id, {**seed.record.params, "seed": seed.record.seed}, {})
        store.log_images(run_id, seed.record.suite, seed.record.data_sha256)
        rows = [(int(row["epoch"]), _metrics(seed.record, row)) for row in seed.history]
        metrics = [metric for epoch, values in rows for metric in as_metrics(values, epoch)]
        for start in range(0, len(metrics), METRICS_A_CALL):
            store.client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_CALL])
        store.client.log_artifacts(run_id, str(seed.folder))


def _summarise(store: Store, parent: str, seeds: Sequence[SeedRun], state: str) -> None:
    """Bring what a parent run says of its seeds up to those that are in the folder now."""
    names = ", ".join(str(seed.record.seed) for seed in seeds)
    failed = {f"failed.seed-{seed.record.seed}": seed.record.failed for seed in seeds if seed.record.failed}
    means = _means(seeds)
    tags = _common([seed.tags for seed in seeds]) | failed | {"seeds": names, NOTE_TAG: _note(seeds, means)}
    store.retag(parent, tags, OF_SEEDS)
    store.log(parent, {}, means)
    ends = [end for _, end in (seed.mirror(parent).span for seed in seeds) if end]
    store.client.set_tag(parent, RECORD_TAG, state)  # last: a process killed before it leaves work for the next call
    store.client.set_terminated(parent, "FINISHED", max(ends, default=None))


def _means(seeds: Sequence[SeedRun]) -> dict[str, float]:
    """Return the last epoch's metrics, each averaged over the seeds that came through."""
    finals = [seed.finals for seed in seeds if seed.finals]
    return {key: sum(values[key] for values in finals) / len(finals) for key in (finals[0] if finals else {})}


def _note(seeds: Sequence[SeedRun], means: Mapping[str, float]) -> str:
    """Return what a person should know of a job's runs before opening one."""
    record, count = seeds[0].record, sum(not seed.record.failed for seed in seeds)
    text = f"{record.name} on {record.suite}: {count} of {len(seeds)} seeds, a run each below; here, their means."
    if accuracy := means.get(f"{record.split}_accuracy"):
        text += f" **{100 * accuracy:.2f} %** of the {record.split} images at the last epoch."
    failures = [f"Seed {seed.record.seed} failed: {seed.record.failed}" for seed in seeds if seed.record.failed]
    return "\n\n".join([text, *failures])


def run_name(record: Record, log: Log) -> str:
    """Return a name such as digits/triplet, digits/margin-10 (validation), or digits/triplet [an experiment of DVC's].

    What tells runs apart comes first, for lists of runs cut names short.
    """
    name = f"{record.suite}/{record.name.rpartition('/')[2]}"
    return _with_experiment(name if record.split == "test" else f"{name} ({record.split})", log)


def _with_experiment(name: str, log: Log) -> str:
    return f"{name} [{log['experiment']}]" if log.get("experiment") else name


def _job_identity(record: Record) -> str:
    """Return a hash of what all seeds of a cell have in common."""
    names = [record.suite, record.split, record.name, record.method, record.network]
    numerics = [record.environment.get(name) for name in ("precision", "deterministic")]
    return fingerprint(names, record.params, record.data_sha256, record.teacher_sha256, record.code, numerics)


def _job_tags(record: Record) -> dict[str, str]:
    """Return what all seeds of a cell have in common, but for the parameters."""
    stage = "train_teacher" if record.method == "teacher" else "ablate" if "/" in record.name else "distill"
    return {
        "suite": record.suite,
        "split": record.split,
        "name": record.name,
        "method": record.method,
        "network": record.network,
        "stage": stage,
        "mlflow.source.name": f"stages.{stage}",
        "data.sha256": record.data_sha256,
        **({"teacher.sha256": record.teacher_sha256} if record.teacher_sha256 else {}),
    }


def _metrics(record: Record, row: Mapping[str, float]) -> dict[str, float]:
    """Return a row of history.csv as metrics; what it calls test is the split that the run is measured on."""
    return {
        f"{record.split}_{name.removeprefix('test_')}" if name.startswith("test_") else name: value
        for name, value in row.items()
        if name not in ("seed", "epoch")
    }


def _common(blocks: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the entries that are equal in all blocks."""
    return {key: text for key, text in blocks[0].items() if all(block.get(key) == text for block in blocks)}


def _log_path(run: Path, record: Record) -> Path | None:
    """Return where the log of a seed is: runs/<suite>/<split>/<name>/seed-N has it in logs/, at the same place below.

    None if the folder is not where its record says: then it was copied, and no log came along.
    """
    run, parts = run.resolve(), (record.suite, record.split, *record.name.split("/"))
    if run.parts[-len(parts) :] != parts:
        return None
    top = run.parents[len(parts)]
    return top.joinpath("logs", *parts, f"seed-{record.seed}.json")


# --- exports and other files ------------------------------------------------------------------------------------------


def log_export(root: Path, folder: Path) -> bool:
    """Mirror an export as a run with its figures and an MLflow model of flavour onnx.

    Args:
        root: The project's folder; see open_store.
        folder: exports/<suite>/<method>.

    Returns:
        Whether the store lacked it.
    """
    exported = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    log = read_log(folder / "log.json", folder / "export.json")
    tags = {
        "suite": exported["suite"],
        "method": exported["method"],
        "stage": "export",
        "mlflow.source.name": "stages.export",
        "data.sha256": exported["data_sha256"],
        "weights.sha256": exported["weights_sha256"],
    }
    name = _with_experiment(f"{exported['suite']}/{exported['method']}/export", log)
    run = NewRun(fingerprint(exported), name, tags, log)
    params = {key: exported[key] for key in ("network", "seed", "opset", "versions")}
    figures = {key: value for key, value in {**exported, **log}.items() if isinstance(value, int | float)}
    with open_store(root, exported["suite"]) as store:
        if store.find(run):
            return False
        with store.adding(run) as run_id:
            store.log(run_id, params, {key: value for key, value in figures.items() if key not in params})
            store.log_images(run_id, exported["suite"], exported["data_sha256"])
            for file in ("MODEL_CARD.md", "export.json"):
                store.client.log_artifact(run_id, str(folder / file))
            _log_model(store, run_id, folder, exported)
    return True


def _log_model(store: Store, run_id: str, folder: Path, exported: Mapping[str, Any]) -> None:
    """Log the model with signature and input example. The requirements are given: finding them takes a minute."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    examples = np.array(json.loads((folder / "example.json").read_text())["inputs"], dtype=np.uint8)
    images = TensorSpec(np.dtype(np.uint8), (-1, *examples.shape[1:]))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(exported["classes"])), "probabilities")
    mlflow.set_tracking_uri(store.client.tracking_uri)
    with mlflow.start_run(run_id):
        mlflow.onnx.log_model(
            onnx.load(folder / "model.onnx"),
            name=f"{exported['suite']}-{exported['method']}".replace(".", "-"),  # MLflow allows no dots
            signature=ModelSignature(Schema([images]), Schema([probabilities])),
            input_example=examples,
            pip_requirements=[f"{package}=={exported['versions'][package]}" for package in ("onnx", "onnxruntime")],
            metadata={key: exported[key] for key in ("suite", "method", "seed", "classes", "onnx_sha256")},
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )


@dataclass(frozen=True)
class StageFiles:
    """What a stage that trains nothing wants to show in MLflow.

    Attributes:
        suite: The suite, whose name the experiment has.
        stage: The stage's name.
        metrics: Its figures.
        params: What they depend on.
        files: Files to look at.
        log: When and from which commit it ran, as Stage.log says.
        description: The run's description in Markdown, and the experiment's unless DVC runs an experiment of its own.
    """

    suite: str
    stage: str
    metrics: Mapping[str, float]
    params: Mapping[str, object]
    files: Sequence[str]
    log: Log
    description: str = ""


def log_files(root: Path, made: StageFiles) -> bool:
    """Mirror a stage that trains nothing as a run with its figures and files.

    Args:
        root: The project's folder; see open_store.
        made: What to show.

    Returns:
        Whether the store lacked it.
    """
    tags = {"suite": made.suite, "stage": made.stage, "mlflow.source.name": f"stages.{made.stage}"}
    note = {NOTE_TAG: made.description} if made.description else {}
    hashes = [sha256(Path(file)) for file in made.files]
    identity = fingerprint(tags, note, dict(made.metrics), dict(made.params), hashes)
    run = NewRun(identity, _with_experiment(f"{made.suite}/{made.stage}", made.log), tags | note, made.log)
    with open_store(root, made.suite) as store:
        if note and not made.log.get("experiment"):
            store.client.set_experiment_tag(store.experiment, NOTE_TAG, made.description)
        if store.find(run):
            return False
        with store.adding(run) as run_id:
            store.log(run_id, made.params, made.metrics)
            for file in made.files:
                store.client.log_artifact(run_id, file)
    return True


def log_results(root: Path, folder: Path) -> bool:
    """Mirror a suite's table: its accuracies, what the methods were trained with, the files that people look at.

    The verdicts are the run's description.

    Args:
        root: The project's folder; see open_store.
        folder: results/<suite>.

    Returns:
        Whether the store lacked it.
    """
    table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    suite, accuracy = table["suite"], f"{table['split']}_accuracy"
    files = [
        *(folder / name for name in ("report.html", "table.md", "table.csv", TABLE)),
        *(folder / "figures").iterdir(),
    ]
    made = StageFiles(
        suite=suite,
        stage="tabulate",
        metrics={f"{accuracy}/{row['method']}": row["test"]["mean"] / 100 for row in table["rows"]},  # as runs have it
        params={"split": table["split"], "methods": table["methods"]},
        files=sorted(map(str, files)),
        log=read_log(folder.resolve().parents[1] / "logs" / suite / "tabulate.json", folder / TABLE),
        description="\n\n".join([*table["in_short"], f"{table['about']}."]),  # folded, its first line is seen
    )
    return log_files(root, made)


# --- all that lies in folders -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of mirroring a folder: whether the store lacked anything of it, or why it could not be done."""

    folder: Path
    added: bool = False
    error: str | None = None


def relog(root: Path, folders: Iterable[Path]) -> Iterator[Outcome]:
    """Mirror each run, export and table in these folders and below; a fault at one does not stop the others.

    Args:
        root: The project's folder; see open_store.
        folders: Where to look.

    Yields:
        What came of each folder that holds a run, an export or a table.
    """
    for kind, folder in _mirrored(folders):
        try:
            yield Outcome(folder, kind(root, folder))
        except Exception as error:  # whatever a store can raise
            yield Outcome(folder, error=first_line(error))


def _mirrored(folders: Iterable[Path]) -> Iterator[tuple[Callable[[Path, Path], bool], Path]]:
    """Give each folder with the function that mirrors it; not what a stage is just writing."""
    folders = list(folders)
    for file, up, kind in ((RECORD, 1, log_run), ("export.json", 0, log_export), (TABLE, 0, log_results)):
        found = [path for folder in folders for path in sorted(folder.rglob(file))]
        whole = [path for path in found if not any(part.endswith(".partial") for part in path.parts)]
        for folder in dict.fromkeys(path.parents[up] for path in whole):
            yield kind, folder


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return shorten((str(error).splitlines() or [type(error).__name__])[0], 200, placeholder=" ...")


def main(folders: Sequence[str]) -> None:
    """Mirror what these folders hold and say so, a line each; exits with 1 if anything could not be done."""
    failed = False
    for outcome in relog(Path(os.environ.get("DVC_ROOT") or ".").resolve(), map(Path, folders)):
        if outcome.error:
            failed = True
            print(f"error: {outcome.folder}: not logged to MLflow ({outcome.error})", file=sys.stderr)
        else:
            print(f"{outcome.folder}: {'logged' if outcome.added else 'already there'}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:] or FOLDERS)
