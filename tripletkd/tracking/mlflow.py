"""Run records -> MLflow. The record is the truth: a store that is lost, or was out of reach, is refilled from records.

A parent run a stage, tagged with the suite and the method; in it a child run a seed with every term by epoch. Logging a
record twice leaves one run: the parent carries the record's fingerprint.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import Any

from tripletkd.provenance import fingerprint
from tripletkd.tracking import run_record as records

RECORD_TAG = "tripletkd.record"
NOTE_TAG = "mlflow.note.content"  # what the store's pages show as the description
METRICS_A_CALL = 1000  # the store's limit
SECONDS_TO_LOG = 600


def _prepare() -> None:
    """Import what takes seconds.

    Unless the environment says otherwise, a server out of reach is given up soon, MLflow prints nothing itself (a line
    of ours says what went wrong), and telemetry is off.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


@contextmanager
def store(root: Path) -> Iterator[Any]:
    """An MLflow client: MLFLOW_TRACKING_URI, else sqlite in `root`. One process at a time: nothing is logged twice."""
    from filelock import FileLock
    from mlflow import MlflowClient

    with FileLock(root / ".mlflow.lock", timeout=SECONDS_TO_LOG):
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            yield MlflowClient(tracking_uri=uri)
            return
        _check_writable(root / "mlflow.db")
        client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
        client.search_experiments(max_results=1)  # the first call creates the tables
        yield client


def _check_writable(path: Path) -> None:
    """MLflow itself would try for two minutes, with a warning each time."""
    import sqlite3

    try:
        with closing(sqlite3.connect(path)) as database:
            database.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from None


class Logger:
    """MLflow in a process of its own: imported while the stage computes, and unable to fail, slow or hang it.

    Enter it early, then call `record`, `files` or `model` once. If logging fails, one line says so: results do not
    depend on it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        code = Path(__file__).parents[2]
        # In a session of its own: Ctrl-C is for the stage.
        self.process = subprocess.Popen(  # nosec B603  # this interpreter, with words that stand here
            [sys.executable, "-m", "tripletkd.tracking.mlflow"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))},
        )

    def __enter__(self) -> "Logger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to log after an error."""
        with self.process:
            self.process.kill()

    def record(self, *folders: Path) -> None:
        """As log_record, for each."""
        self._send("log_records", [str(folder) for folder in folders])

    def files(
        self,
        suite: str,
        stage: str,
        metrics: Mapping[str, float],
        params: Mapping[str, Any],
        files: list[Path],
        description: str = "",
    ) -> None:
        """As log_files."""
        self._send("log_files", suite, stage, metrics, params, [str(file) for file in files], description)

    def model(self, folder: Path) -> None:
        """As log_model."""
        self._send("log_model", str(folder))

    def _send(self, *call: Any) -> None:
        try:
            self.process.communicate(json.dumps([str(self.root), *call]), timeout=SECONDS_TO_LOG)
            reason = f"its process ended with {self.process.returncode}" if self.process.returncode else None
        except OSError as error:
            reason = str(error)
        except subprocess.TimeoutExpired:
            self.process.kill()
            reason = f"not done after {SECONDS_TO_LOG} s"
        if reason:
            _warn(reason, list(call))


def _warn(reason: str, call: Sequence[Any]) -> None:
    whole = "the export" if call[:1] == ["log_model"] else "the run record"
    remedy = f"{whole} is whole: `make relog` logs it later"
    if call[:1] == ["log_files"]:
        suite, stage = call[1:3]
        remedy = f"its files are whole: `dvc repro --force --single-item {stage}@{suite}` logs them later"
    print(f"warning: not logged to MLflow ({reason}); {remedy}", file=sys.stderr)


def _serve() -> None:
    """The Logger's other end: import at once, then do the one call that comes, if any, before standard input ends."""
    call: list[Any] = []
    try:
        _prepare()
        if request := sys.stdin.read():
            root, *call = json.loads(request)
            name, *arguments = call
            calls: dict[str, Callable[..., Any]] = {
                "log_records": log_records,
                "log_files": log_files,
                "log_model": log_model,
            }
            calls[name](Path(root), *arguments)
    except Exception as error:  # whatever a store can raise
        _warn(_first_line(error), call)


def _first_line(error: Exception) -> str:
    return shorten((str(error).splitlines() or [type(error).__name__])[0], 200, placeholder=" ...")


def log_records(root: Path, folders: Sequence[str]) -> None:
    for folder in folders:
        log_record(root, folder)


def log_record(root: Path, folder: str | Path) -> bool:
    """A run record as a parent run and a child run a seed; False if the store has it already."""
    folder = Path(folder)
    record, log = records.read(folder), records.read_log(folder, "record.json")
    identity = fingerprint(asdict(record))
    with store(root) as client:
        experiment = _experiment(client, root, record.suite)
        if _already_there(client, experiment, identity, log):
            return False
        tags = {
            "suite": record.suite,
            "split": record.split,
            "cell": record.cell,
            "method": record.method,
            "stage": "train_teacher" if record.method == "teacher" else "distill",
            "data.sha256": record.data_sha256,
            **({"teacher.sha256": record.teacher_sha256} if record.teacher_sha256 else {}),
            **{f"environment.{key}": str(value) for key, value in record.environment.items() if value is not None},
            **{f"log.{key}": str(value) for key, value in log.items() if value is not None},
            **{f"failed.seed-{seed}": why for seed, why in record.failed.items()},
        }
        name = run_name(record)
        begin, end = span = _span(log)
        parent = client.create_run(experiment, begin, tags | {RECORD_TAG: identity}, name).info.run_id
        history = records.read_history(folder / "history.csv")
        finals = [
            _log_seed(client, experiment, parent, folder, record, seed, history, tags, span) for seed in record.seeds
        ]
        means = {
            k: sum(f[k] for f in finals if f) / len([f for f in finals if f])
            for k in next((f for f in finals if f), {})
        }
        client.log_batch(parent, metrics=_metrics(means, 0), params=_params(record.params | {"seeds": record.seeds}))
        client.set_tag(parent, NOTE_TAG, _note(record, means))
        for file in ("history.csv", "record.json"):
            client.log_artifact(parent, str(folder / file))
        client.set_terminated(parent, end_time=end)
    return True


def _span(log: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """When the stage began and ended, in milliseconds since 1970; None, for now, where no log says."""
    if not log:
        return None, None
    begin = round(1000 * datetime.fromisoformat(log["started"]).timestamp())
    return begin, begin + round(1000 * log["seconds"])


def _note(record: records.Record, means: Mapping[str, float]) -> str:
    """What a person should know of a run before opening it."""
    came = len(record.weights_sha256)
    text = f"{record.cell} on {record.suite}: {came} of {len(record.seeds)} seeds, a run each below; here, their means."
    if "test_accuracy" in means:
        text += f" **{100 * means['test_accuracy']:.2f} %** of the {record.split} images at the last epoch."
    return text + "".join(f"\n\nSeed {seed} failed: {why}" for seed, why in record.failed.items())


def run_name(record: records.Record) -> str:
    """digits/triplet, or digits/margin-10 (validation): what tells runs apart first, lists of runs cut names short."""
    name = f"{record.suite}/{record.cell.rpartition('/')[2]}"
    return name if record.split == "test" else f"{name} ({record.split})"


def _already_there(client: Any, experiment: str, identity: str, log: Mapping[str, Any]) -> bool:
    """Whether the store has that run, whole; what a call that did not end has left of it is removed.

    The same record made twice is two runs, told apart by the time of their start where a log has it.
    """
    started = f" and tags.`log.started` = '{log['started']}'" if log else ""
    found = client.search_runs([experiment], f"tags.`{RECORD_TAG}` = '{identity}'{started}")
    if any(run.info.status == "FINISHED" for run in found):
        return True
    for run in found:
        for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"):
            client.delete_run(child.info.run_id)
        client.delete_run(run.info.run_id)
    return False


def _experiment(client: Any, root: Path, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    try:
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else (root / "mlartifacts" / name).as_uri()
        return client.create_experiment(name, artifact_location=local)
    except MlflowException:  # another process was faster
        return client.get_experiment_by_name(name).experiment_id


def _log_seed(
    client: Any,
    experiment: str,
    parent: str,
    folder: Path,
    record: records.Record,
    seed: int,
    history: list[dict[str, float]],
    tags: dict[str, str],
    span: tuple[int | None, int | None],
) -> dict[str, float]:
    """A child run; returns the last epoch's metrics."""
    begin, end = span
    name = f"{run_name(record)}/seed-{seed}"
    of_seed = tags | {"mlflow.parentRunId": parent, "seed": str(seed)}
    child = client.create_run(experiment, begin, of_seed, name).info.run_id
    client.log_batch(child, params=_params(record.params | {"seed": seed}))
    rows = [row for row in history if row["seed"] == seed]
    metrics = [metric for row in rows for metric in _metrics(row, int(row["epoch"]))]
    for start in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(child, metrics=metrics[start : start + METRICS_A_CALL])
    if str(seed) in record.weights_sha256:
        client.log_artifact(child, str(records.weights_path(folder, seed)))
    client.set_terminated(child, "FAILED" if str(seed) in record.failed else "FINISHED", end)
    return rows[-1] if rows and str(seed) not in record.failed else {}


def _metrics(values: Mapping[str, float], step: int) -> list[Any]:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in values.items() if name != "epoch"]


def _params(params: Mapping[str, Any]) -> list[Any]:
    """Nested blocks as dotted names, one parameter a number: comparable in the store's tables."""
    from mlflow.entities import Param

    def flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from flat(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, str(value)

    return [Param(name, text) for name, text in flat("", params)]


def log_files(
    root: Path,
    suite: str,
    stage: str,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    files: Sequence[str],
    description: str,
) -> None:
    """A run for a stage that trains nothing: its figures, its files; its description is the experiment's too."""
    with store(root) as client:
        tags = {"suite": suite, "stage": stage} | ({NOTE_TAG: description} if description else {})
        experiment = _experiment(client, root, suite)
        if description:
            client.set_experiment_tag(experiment, NOTE_TAG, description)
        run = client.create_run(experiment, run_name=f"{suite}/{stage}", tags=tags).info.run_id
        client.log_batch(run, metrics=_metrics(metrics, 0), params=_params(params))
        for file in files:
            client.log_artifact(run, file)
        client.set_terminated(run)


def log_model(root: Path, folder: str | Path) -> bool:
    """An export as a run with its figures and an MLflow model of flavour onnx; False if the store has it already."""
    import mlflow

    folder = Path(folder)
    exported, log = json.loads((folder / "export.json").read_text()), records.read_log(folder, "export.json")
    identity = fingerprint(exported)
    with store(root) as client:
        experiment = _experiment(client, root, exported["suite"])
        if _already_there(client, experiment, identity, log):
            return False
        tags = {
            "suite": exported["suite"],
            "method": exported["method"],
            "stage": "export",
            "data.sha256": exported["data_sha256"],
            "weights.sha256": exported["weights_sha256"],
            **{f"log.{key}": str(value) for key, value in log.items() if value is not None},
            RECORD_TAG: identity,
        }
        name = f"{exported['suite']}/{exported['method']}/export"
        run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        params = {key: exported.pop(key) for key in ("network", "seed", "opset", "versions")}
        figures = {key: value for key, value in (exported | log).items() if isinstance(value, int | float)}
        client.log_batch(run, metrics=_metrics(figures, 0), params=_params(params))
        for file in ("MODEL_CARD.md", "export.json"):
            client.log_artifact(run, str(folder / file))
        mlflow.set_tracking_uri(client.tracking_uri)
        with mlflow.start_run(run):  # ends it too
            _log_onnx(folder, exported | params)
    return True


def _log_onnx(folder: Path, exported: Mapping[str, Any]) -> None:
    """To the active run, with signature and input example. The requirements are given: finding them takes a minute."""
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # uv.lock is the project's, not the model's
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    examples = np.array(json.loads((folder / "example.json").read_text())["inputs"], dtype=np.uint8)
    images = TensorSpec(np.dtype(np.uint8), (-1, *examples.shape[1:]))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(exported["classes"])), "probabilities")
    mlflow.onnx.log_model(
        onnx.load(folder / "model.onnx"),
        name="model",
        signature=ModelSignature(Schema([images]), Schema([probabilities])),
        input_example=examples,
        pip_requirements=[f"{package}=={exported['versions'][package]}" for package in ("onnx", "onnxruntime")],
        metadata={key: exported[key] for key in ("suite", "method", "seed", "classes", "onnx_sha256")},
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )


def relog(folders: list[str]) -> None:
    """Python -m tripletkd.tracking runs exports: log what in these folders the store does not have."""
    _prepare()
    root, failed = Path(os.environ.get("DVC_ROOT") or ".").resolve(), False
    for file, log in (("record.json", log_record), ("export.json", log_model)):
        for folder in [path.parent for name in folders for path in sorted(Path(name).rglob(file))]:
            try:
                print(f"{folder}: {'logged' if log(root, folder) else 'already there'}")
            except Exception as error:  # whatever a store can raise
                print(f"error: {folder}: not logged to MLflow ({_first_line(error)})", file=sys.stderr)
                failed = True
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    relog(sys.argv[1:]) if len(sys.argv) > 1 else _serve()
