"""The MLflow store: where it is, how it is opened, and how a run that it lacks is added to it once."""

from __future__ import annotations  # MLflow is imported where it is used: that takes seconds

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from filelock import FileLock

from tripletkd.errors import UserError
from tripletkd.files import Json, flat
from tripletkd.training.identity import NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_TAG = "tripletkd.run"  # what a run is of, known from its start
RECORD_TAG = "tripletkd.record"  # which file it mirrors; set last of all
PLACE_TAG = "tripletkd.place"  # which checkout logs it, from which place
NOTE_TAG = "mlflow.note.content"  # what the store's pages show as the description
VIEW = {  # of an experiment's runs: a row a method, by accuracy
    "searchFilter": "tags.split = 'test' and tags.seeds LIKE '%'",  # a method's run names its seeds
    "orderByKey": "metrics.`test_accuracy`",
    "orderByAsc": False,
    "selectedColumns": ["metrics.`test_accuracy`", "metrics.`train_accuracy`", "tags.`seeds`"],
}
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # its pages are those of training
    "mlflow.sharedViewState.accuracy": json.dumps(VIEW),
}
SETTINGS = {  # a server out of reach is given up soon, MLflow prints nothing, telemetry is off
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # uv.lock is the project's, not an exported model's
}
DIGEST = 36  # the store's limit, of the characters of a data set's hash
SECONDS_TO_WAIT = 120  # for another process that logs to the same store


@dataclass(frozen=True)
class Entry:
    """Describes a run as it is to be in the store.

    Attributes:
        name: Its name in lists of runs.
        key: What it is of, known from its start.
        place: A name for the file or folder that it is of.
        record: A hash of what it mirrors; None until that is there.
        log: When and where that was computed, as far as it is known.
        rows: Metrics by epoch.
        status: As MLflow calls it.
        files: Files, and folders whose files are meant.
    """

    name: str
    key: str
    place: str
    record: str | None
    log: Json
    tags: Mapping[str, str]
    params: Mapping[str, object]
    rows: Mapping[int, Mapping[str, float]]
    status: str = "FINISHED"
    files: Sequence[Path] = field(default_factory=list)

    def goes_on(self, run: Run) -> bool:
        """Tell whether this can be what a run in the store has begun to say, by the last metrics that it has.

        What goes on from a checkpoint has not come as far again; what has ended says all that it will.
        """
        last = [each for each in run.data.to_proto().metrics if self.record or each.step in self.rows]
        said = [(each.value, self.rows.get(each.step, {}).get(each.key)) for each in last]
        return all(there == here or (here is not None and not isfinite(here)) for there, here in said)

    def is_of(self, record: str | None, run: Run) -> bool:
        """Tell whether a run in the store is of the same, and of that record."""
        return (run.data.tags.get(RUN_TAG), run.data.tags.get(RECORD_TAG)) == (self.key, record)


def address(root: Path) -> str:
    """Return the address that MLFLOW_TRACKING_URI names, else that of mlflow.db in the project's folder."""
    # SQLAlchemy decodes the path and ends it at a question mark. The driver's name keeps MLflow from creating a folder
    # by the encoded one.
    database = f"sqlite+pysqlite:///{quote(str(root.resolve() / 'mlflow.db'))}"
    return os.environ.get("MLFLOW_TRACKING_URI") or database


def connect(root: Path) -> MlflowClient:
    """Connect with the store."""
    os.environ.update(SETTINGS | os.environ)
    from mlflow import MlflowClient

    return MlflowClient(address(root))


@contextmanager
def open_store(root: Path, suite: str, tag: str, value: str) -> Iterator[Runs]:
    """Open the store for a suite's experiment, which is created if needed; one process of a project at a time.

    Args:
        root: The project's folder, which holds the store unless MLFLOW_TRACKING_URI names another.
        suite: The experiment's name.
        tag: Which runs are wanted: those with this tag,
        value: of this value.

    Raises:
        UserError: If the name could lead out of the store: experiments give folders their names.
    """
    if not NAME.fullmatch(suite):
        raise UserError(
            f"suite: found {suite!r} as a name, expected letters, digits and _ - . in it; run its stage again"
        )
    lock = root / ".locks" / "mlflow-store"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=SECONDS_TO_WAIT):
        client = connect(root)
        yield Runs(client, _experiment(client, suite, root.resolve()), f"tags.`{tag}` = '{value}'")


def _experiment(client: MlflowClient, name: str, root: Path) -> str:
    """Return the id of the experiment of that name, which is created, or restored, if need be.

    The store knows the places of artifacts as absolute paths. Where the project was moved or copied, the experiment
    keeps what it has under another name: what is logged from now on does not go to where the project was.
    """
    found, is_default = client.get_experiment_by_name(name), not os.environ.get("MLFLOW_TRACKING_URI")
    if found and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found and is_default:
        place = Path(unquote(found.artifact_location.removeprefix("file://")))
        if not place.is_relative_to(root):
            client.rename_experiment(found.experiment_id, f"{name} of {place.parent.parent} ({found.experiment_id})")
            found = None
    if found:
        return str(found.experiment_id)
    artifacts = (root / "mlartifacts" / name).as_uri() if is_default else None
    return str(client.create_experiment(name, artifacts, EXPERIMENT_TAGS))


class Runs:
    """The runs of an experiment that have something in common, by id; adds what is missing."""

    def __init__(self, client: MlflowClient, experiment: str, query: str) -> None:
        self.client, self.experiment, self.query = client, experiment, query
        self.look()

    def look(self) -> None:
        """Ask the store what is there."""
        self.found = sorted(self.client.search_runs([self.experiment], self.query), key=lambda run: run.info.run_id)

    def add(self, entry: Entry, finish: Callable[[Run], None] | None = None) -> bool:
        """Add what the store lacks of a run. A run that this checkout began earlier is continued.

        A server cannot be asked to create a run only if it is not there, so several machines may log the same at once,
        each in a run of its own. After writing, each of them searches again, and deletes all but the run with the
        lowest id.

        Args:
            entry: The run.
            finish: What else to do before the run is whole.

        Returns:
            Whether the store lacked anything.
        """
        begun = [run for run in self.found if entry.is_of(None, run) and run.data.tags.get(PLACE_TAG) == entry.place]
        lacked = not entry.record or not any(entry.is_of(entry.record, run) for run in self.found)
        # A training that was killed can have been done again by another machine, to other numbers
        continued = next(filter(entry.goes_on, begun), None) if lacked else None
        if lacked:
            self._write(continued or self._create(entry), entry, finish)
        if entry.record:
            self.look()
            others = [run for run in begun if run is not continued]
            for run in [run for run in self.found if entry.is_of(entry.record, run)][1:] + others:
                self.delete(run)
        return lacked

    def _create(self, entry: Entry) -> Run:
        tags = {RUN_TAG: entry.key, PLACE_TAG: entry.place, **entry.tags}
        self.found.append(self.client.create_run(self.experiment, span(entry.log)[0], tags, entry.name))
        return self.found[-1]

    def _write(self, run: Run, entry: Entry, finish: Callable[[Run], None] | None) -> None:
        """Log what a run lacks. The tag of the record is set last: without it, the next call finishes the run."""
        from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag

        run_id, images = run.info.run_id, entry.tags.get("data.sha256")
        if entry.record or not run.data.params:
            params = [Param(key, str(value)) for key, value in flat(entry.params)]
            self.client.log_batch(run_id, params=params, tags=[RunTag(*pair) for pair in entry.tags.items()])
            if images:  # in MLflow's own column
                data = Dataset(entry.tags["suite"], images[:DIGEST], source_type="local", source=entry.tags["suite"])
                self.client.log_inputs(run_id, [DatasetInput(data)])
        known, now = max((metric.step for metric in run.data.to_proto().metrics), default=-1), int(1000 * time.time())
        new = [(epoch, row) for epoch, row in entry.rows.items() if epoch > known]  # none can be logged over
        self.client.log_batch(run_id, [Metric(name, row[name], now, epoch) for epoch, row in new for name in row])
        for path in entry.files:
            (self.client.log_artifacts if path.is_dir() else self.client.log_artifact)(run_id, str(path))
        if finish:
            finish(run)
        if entry.status != "RUNNING" and (entry.log or entry.status != run.info.status):
            self.client.set_terminated(run_id, entry.status, span(entry.log)[1])
        elif entry.status != run.info.status:
            self.client.update_run(run_id, entry.status)
        if entry.record:
            self.client.set_tag(run_id, RECORD_TAG, entry.record)

    def delete(self, run: Run) -> None:
        """Delete a run and the models that were logged in it."""
        self.found = [other for other in self.found if other.info.run_id != run.info.run_id]
        self.client.delete_run(run.info.run_id)
        for model in self.models(run):
            self.client.delete_logged_model(model)

    def models(self, run: Run) -> list[str]:
        """List the models that were logged in a run."""
        found = self.client.search_logged_models([self.experiment], f"source_run_id = '{run.info.run_id}'")
        return [model.model_id for model in found]


def place(path: Path) -> str:
    """Name a place in this checkout, on whichever machine: in a copy of the checkout it is another one."""
    return f"{path.resolve()} of {Path().stat().st_ino}"


def span(log: Json) -> tuple[int, int]:
    """Return begin and end in milliseconds since 1970; now, where no log says."""
    now = int(1000 * time.time())
    begin = int(1000 * datetime.fromisoformat(log["started"]).timestamp()) if "started" in log else now
    return begin, begin + int(1000 * log["seconds"]) if "seconds" in log else now


def stage_tags(stage: str, log: Json, said: Mapping[str, object]) -> dict[str, str]:
    """Return as tags what a stage made, and what its log says; the commit also where MLflow looks for it."""
    found = {"stage": stage, "mlflow.source.name": f"stages.{stage}", "mlflow.source.git.commit": log.get("commit")}
    found |= {("" if key == "environment" else "log.") + key: value for key, value in log.items()}
    return {key: str(value) for key, value in flat({**found, **said}) if value is not None}


def experiment_suffix(log: Json) -> str:
    """Return what DVC calls the experiment that something was computed in, for the name of a run."""
    return f" [{log['experiment']}]" if log.get("experiment") else ""


def first_line(error: object) -> str:
    """Return the first line of an error's message, or its type where it has none, without passwords."""
    line = (str(error).splitlines() or [""])[0] or type(error).__name__
    return re.sub(r"(?<=://)[^/\s]*@", "***@", line)[:250]
