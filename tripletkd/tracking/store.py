"""The MLflow store: where it is, how it is opened, and how a run that it lacks is added to it once.

`python -m tripletkd.tracking.store` prints its address, with a server's address the pages that are worth opening there.
"""

from __future__ import annotations  # MLflow is imported where it is used: that takes seconds

import getpass
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from tripletkd.errors import UserError
from tripletkd.provenance import fingerprint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run

RECORD_TAG = "tripletkd.record"  # which record, file or state of a folder a run mirrors
NOTE_TAG = "mlflow.note.content"  # what the store's pages show as the description
PARENT_TAG = "mlflow.parentRunId"
VIEW = "accuracy"  # a view of an experiment's runs that its pages offer: a row a method, by accuracy
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # its pages are those of training
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        {
            "searchFilter": "tags.split = 'test' and tags.seeds LIKE '%'",  # a method's run names its seeds
            "orderByKey": "metrics.`test_accuracy`",
            "orderByAsc": False,
            "selectedColumns": ["metrics.`test_accuracy`", "metrics.`train_accuracy`", "tags.`seeds`"],
        }
    ),
}
STARTED_TAG = "log.started"
METRICS_A_CALL, TAGS_A_CALL = 1000, 100  # the store's limits
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

        For a server it keeps apart the processes of one user on one machine. Of what others log at the same time the
        store keeps one; see Store.adding.
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
        alike = self._alike(run)
        whole = [found for found in alike if found.info.status == run.status]
        for found in alike:
            if found not in whole:
                self._delete(found)
        return whole[0] if whole else None

    @contextmanager
    def adding(self, run: NewRun) -> Iterator[str]:
        """Create a run for the block to fill, and end it; gives its id.

        No server can be asked to create a run only if it is not there. So others may add the same at the same time from
        other machines: whoever ends last sees all, and of those that are whole the one with the first id stays. A run
        that another process has taken for a dead one's, and deleted to log it itself, is left to that process.
        """
        from mlflow.exceptions import MlflowException

        begin, end = run.span
        tags = {**run.tags, **log_tags(run.log), RECORD_TAG: run.identity}
        if run.parent:
            tags[PARENT_TAG] = run.parent
        run_id = self.client.create_run(self.experiment, begin, tags, run.name).info.run_id
        try:
            yield run_id
            self.client.set_terminated(run_id, run.status, end)
        except MlflowException:
            own = self.client.get_run(run_id)
            if own.info.lifecycle_stage == "active":
                raise
            self._delete(own)  # the models that it has got since
        for other in [found for found in self._alike(run) if found.info.status == run.status][1:]:
            self._delete(other)

    def unite(self, tag: str, value: str) -> Run | None:
        """Return the parent run that has the tag, with all seeds of others that have it; None where there is none.

        Machines that log a job at the same time may each have created a parent. The one with the first id stays; one
        that is deleted already may have got a seed since.
        """
        from mlflow.entities import ViewType
        from mlflow.exceptions import MlflowException

        parents = self._search(f"tags.`{tag}` = '{value}'", ViewType.ALL)
        first = next((parent for parent in parents if parent.info.lifecycle_stage == "active"), None)
        if first is None:
            return None
        for other in [parent for parent in parents if parent is not first]:
            for child in self._search(f"tags.`{PARENT_TAG}` = '{other.info.run_id}'"):
                with suppress(MlflowException):  # another machine was faster, and has deleted it as one of two
                    self.client.set_tag(child.info.run_id, PARENT_TAG, first.info.run_id)
            self._delete(other)
        return first

    def _alike(self, run: NewRun) -> list[Run]:
        """List what mirrors the same, whole or not, by id."""
        found, started = self._search(f"tags.`{RECORD_TAG}` = '{run.identity}'"), run.log.get("started")
        return [each for each in found if len({started, each.data.tags.get(STARTED_TAG)} - {None}) <= 1]

    def _search(self, query: str, *view: int) -> list[Run]:
        """List the experiment's runs that a query finds, by id."""
        return sorted(self.client.search_runs([self.experiment], query, *view), key=lambda run: run.info.run_id)

    def _delete(self, run: Run) -> None:
        """Delete a run and the models that were logged in it, as far as another machine has not done it.

        A model names its run from the start, a run its models only when they are whole.
        """
        from mlflow.exceptions import MlflowException

        self.client.delete_run(run.info.run_id)
        query = f"source_run_id = '{run.info.run_id}'"
        for model in self.client.search_logged_models([self.experiment], query):
            with suppress(MlflowException):
                self.client.delete_logged_model(model.model_id)

    def log(self, run_id: str, params: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Log parameters, nested blocks under dotted names, and metrics without epochs."""
        self.client.log_batch(run_id, metrics=as_metrics(metrics), params=_as_params(params))

    def retag(self, run_id: str, tags: Mapping[str, str], prefixes: tuple[str, ...]) -> None:
        """Set a run's tags, and delete those others that begin in one of these ways.

        Tags that travel together are set again by the server if another machine sets them at that moment.
        """
        from mlflow.entities import RunTag
        from mlflow.exceptions import MlflowException

        for key in self.client.get_run(run_id).data.tags:
            if key.startswith(prefixes) and key not in tags:
                with suppress(MlflowException):  # another machine was faster
                    self.client.delete_tag(run_id, key)
        new = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(new), TAGS_A_CALL):
            self.client.log_batch(run_id, tags=new[start : start + TAGS_A_CALL])

    def log_images(self, run_id: str, suite: str, sha256: str) -> None:
        """Name a suite's images as what a run was trained on, in MLflow's own column."""
        from mlflow.entities import Dataset, DatasetInput
        from mlflow.exceptions import MlflowException

        images = DatasetInput(Dataset(name=suite, digest=sha256[:DIGEST], source_type="local", source=suite))
        try:
            self.client.log_inputs(run_id, [images])
        except MlflowException:  # another machine was faster with the experiment's first; now they are found
            self.client.log_inputs(run_id, [images])


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
        return str(client.create_experiment(name, artifacts and (artifacts / name).as_uri(), EXPERIMENT_TAGS))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # a process on another machine was faster
            return str(found.experiment_id)
        raise


def log_tags(log: Mapping[str, object]) -> dict[str, str]:
    """Return a log's entries as tags; the commit also where MLflow looks for it, with the repository that has it."""
    tags = {f"log.{key}": str(value) for key, value in log.items() if value is not None}
    if "log.commit" in tags:
        tags["mlflow.source.git.commit"] = tags["log.commit"]
        if repository := _repository():
            tags["mlflow.source.git.repoURL"] = repository
    return tags


def _repository() -> str | None:
    """Return the address of the checkout's origin, without the name and the password in it; None without one."""
    with suppress(OSError):
        words = ["git", "remote", "get-url", "origin"]  # git is the one on the PATH
        origin = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()  # nosec B603  # noqa: S603
        return re.sub(r"(?<=://)[^/]*@", "", origin) or None
    return None


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


def pages(root: Path, server: str) -> Iterator[str]:
    """Name the page of every suite's accuracies on a server that shows the store: MLflow's own first page has none."""
    prepare()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    address = Address.find(root)
    try:
        experiments = MlflowClient(tracking_uri=address.uri).search_experiments()
    except MlflowException as error:
        raise UserError(f"{address.uri} does not answer as MLflow does ({shorten(str(error), 200)})") from None
    for experiment in experiments:
        if experiment.name != "Default":
            place = f"{server}/#/experiments/{experiment.experiment_id}/runs"
            yield f"{experiment.name}: {place}?viewStateShareKey={VIEW}&workflowType=machine_learning"


if __name__ == "__main__":
    root = Path(os.environ.get("DVC_ROOT") or ".")
    if sys.argv[1:]:
        try:
            print("\n".join(pages(root, sys.argv[1])) or "nothing is logged yet: make repro, or make relog")
        except UserError as error:
            sys.exit(f"error: {error}")
    else:
        print(Address.find(root).uri)
