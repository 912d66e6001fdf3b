"""The MLflow store: where it is, how it is opened, and how a run that it lacks is added to it once.

`python -m tripletkd.tracking.store` prints its address.
"""

from __future__ import annotations  # MLflow is imported where it is used: that takes seconds

import getpass
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from tripletkd.errors import UserError
from tripletkd.provenance import fingerprint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run

RECORD_TAG = "tripletkd.record"  # which record, file or state of a folder a run mirrors
NOTE_TAG = "mlflow.note.content"  # what the store's pages show as the description
STARTED_TAG = "log.started"
METRICS_A_CALL = 1000  # the store's limit
DIGEST = 36  # likewise, of the characters of a data set's hash
SECONDS_TO_WAIT = 600  # for other processes that log to the same store


def prepare() -> None:
    """Set MLflow up as this project needs it, and import what takes seconds.

    Unless the environment says otherwise, a server out of reach is given up soon, MLflow itself prints nothing (one
    line of ours says what went wrong), and telemetry is off.
    """
    for name, value in {
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_UV_AUTO_DETECT": "false",  # uv.lock is the project's, not an exported model's
    }.items():
        os.environ.setdefault(name, value)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


@dataclass(frozen=True)
class Address:
    """Where a store is.

    Attributes:
        uri: The address as MLflow takes it.
        database: The file that holds it, if it is in SQLite.
        artifacts: The folder for artifacts; None lets the store choose.
    """

    uri: str
    database: Path | None
    artifacts: Path | None

    @classmethod
    def find(cls, root: Path) -> Address:
        """Return the address that MLFLOW_TRACKING_URI names, else that of mlflow.db in `root`."""
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
            return cls(uri, Path(unquote(found[1])) if found else None, None)
        database = root.resolve() / "mlflow.db"
        # SQLAlchemy decodes the path and ends it at a question mark. The driver's name keeps MLflow from creating a
        # folder by the encoded one.
        return cls(f"sqlite+pysqlite:///{quote(str(database))}", database, root.resolve() / "mlartifacts")

    @property
    def lock(self) -> Path:
        """The file that a process locks while it logs: beside the database, where all who log to it find it.

        For a server it keeps apart the processes of one user on one machine; across machines there is only the search
        before a run is created.
        """
        if self.database:
            return self.database.with_name(f".{self.database.name}.lock")
        return Path(tempfile.gettempdir()) / f"tripletkd-{fingerprint(self.uri, getpass.getuser())[:16]}.lock"


@dataclass(frozen=True)
class NewRun:
    """A run as it is to be in the store.

    Attributes:
        identity: A hash of what the run mirrors.
        name: Its name in lists of runs.
        tags: Its tags, besides that of the identity.
        log: When, how long and from which commit what it mirrors was computed; empty if that is not known.
        parent: The id of the run that it is shown in.
        status: Its status when all is logged.
    """

    identity: str
    name: str
    tags: Mapping[str, str]
    log: Mapping[str, object] = field(default_factory=dict)
    parent: str | None = None
    status: str = "FINISHED"

    @property
    def span(self) -> tuple[int | None, int | None]:
        """Begin and end of the computation in milliseconds since 1970; None, for now, where no log says."""
        started, seconds = self.log.get("started"), self.log.get("seconds")
        if not isinstance(started, str) or not isinstance(seconds, int | float):
            return None, None
        begin = round(1000 * datetime.fromisoformat(started).timestamp())
        return begin, begin + round(1000 * seconds)


class Store:
    """An MLflow client for one experiment, which adds what is missing."""

    def __init__(self, client: MlflowClient, experiment: str) -> None:
        self.client, self.experiment = client, experiment

    def find(self, run: NewRun) -> Run | None:
        """Return the run as the store has it, whole; what a killed process left of it is removed.

        The same record made twice is two runs, told apart by the time of their start where both sides know it.
        """
        query = f"tags.`{RECORD_TAG}` = '{run.identity}'"
        if run.parent:
            query += f" and tags.`mlflow.parentRunId` = '{run.parent}'"
        whole = None
        for found in self.client.search_runs([self.experiment], query):
            times = {run.log.get("started"), found.data.tags.get(STARTED_TAG)} - {None}
            if len(times) > 1:
                continue
            if found.info.status == run.status:
                whole = found
            else:
                self.client.delete_run(found.info.run_id)
        return whole

    @contextmanager
    def adding(self, run: NewRun) -> Iterator[str]:
        """Create a run for the block to fill, and end it; gives its id."""
        begin, end = run.span
        tags = {**run.tags, **log_tags(run.log), RECORD_TAG: run.identity}
        if run.parent:
            tags["mlflow.parentRunId"] = run.parent
        run_id = self.client.create_run(self.experiment, begin, tags, run.name).info.run_id
        yield run_id
        self.client.set_terminated(run_id, run.status, end)

    def log(self, run_id: str, params: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Log parameters, nested blocks under dotted names, and metrics without epochs."""
        self.client.log_batch(run_id, metrics=as_metrics(metrics), params=_as_params(params))

    def log_images(self, run_id: str, suite: str, sha256: str) -> None:
        """Name a suite's images as what a run was trained on, in MLflow's own column."""
        from mlflow.entities import Dataset, DatasetInput

        images = Dataset(name=suite, digest=sha256[:DIGEST], source_type="local", source=suite)
        self.client.log_inputs(run_id, [DatasetInput(images)])


@contextmanager
def open_store(root: Path, experiment: str) -> Iterator[Store]:
    """Open the store for an experiment, which is created if needed; one process at a time, so nothing is logged twice.

    Args:
        root: The project's folder, which holds the store unless MLFLOW_TRACKING_URI names another.
        experiment: The experiment's name, a suite's.

    Raises:
        UserError: If the name could lead out of the store: experiments give folders their names.
        OSError: If the database cannot be written.
    """
    if not re.fullmatch(r"\w[\w.-]*", experiment):
        raise UserError(f"suite: found {experiment!r} as a name, expected letters, digits and _ - . in it")
    prepare()
    from filelock import FileLock
    from mlflow import MlflowClient

    address = Address.find(root)
    with FileLock(address.lock, timeout=SECONDS_TO_WAIT):
        if address.database:
            _check_writable(address.database)
        client = MlflowClient(tracking_uri=address.uri)
        client.search_experiments(max_results=1)  # the first call creates the tables
        yield Store(client, _experiment(client, experiment, address.artifacts))


def _check_writable(database: Path) -> None:
    """Raise OSError if the database cannot be written; MLflow itself would try for two minutes, warning each time."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        raise OSError(f"{database}: {error}") from None


def _experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Return the id of the experiment of that name, which is created if it is not there."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifacts and (artifacts / name).as_uri()))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # a process on another machine was faster
            return str(found.experiment_id)
        raise


def log_tags(log: Mapping[str, object]) -> dict[str, str]:
    """Return a log's entries as tags, the commit also under the name for which MLflow has a column."""
    tags = {f"log.{key}": str(value) for key, value in log.items() if value is not None}
    return tags | ({"mlflow.source.git.commit": tags["log.commit"]} if "log.commit" in tags else {})


def as_metrics(values: Mapping[str, float], step: int = 0) -> list[Metric]:
    """Return values as MLflow's metrics."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, value, now, step) for name, value in values.items()]


def flat(block: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give the values of nested blocks, each under its dotted name: comparable in the store's tables."""
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _as_params(params: Mapping[str, object]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(name, text) for name, text in flat(params)]


if __name__ == "__main__":
    print(Address.find(Path(os.environ.get("DVC_ROOT") or ".")).uri)
