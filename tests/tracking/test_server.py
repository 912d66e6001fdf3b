"""A group's tracking server: a real `mlflow server`, to which two checkouts log the same at the same time."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from shrunk import BIN, ENVIRONMENT, clone, command
from slurm import free_ports, wait_for

pytestmark = [pytest.mark.smoke, pytest.mark.filterwarnings("ignore:.*Any type hint")]

STAGE = (sys.executable, "-m")
# Cell and seed of every run that there is to be.
TRIPLET = {("triplet", "1"), ("triplet", "2"), ("triplet", "")}
ALL = {("teacher", "0"), ("teacher", "")} | TRIPLET


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that keeps runs in SQLite and hands out artifacts."""
    folder, [port] = tmp_path_factory.mktemp("server"), free_ports(1)
    places = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts"]
    variables = ENVIRONMENT | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        words = [str(BIN / "mlflow"), "server", "--host=127.0.0.1", f"--port={port}", "--workers=2", *places]
        process = subprocess.Popen(words, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: "startup complete" in (folder / "log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two that hold the same runs, none of which is logged."""
    folder = tmp_path_factory.mktemp("checkouts")
    first = clone(folder / "first")
    for stage, *more in (["fetch"], ["train_teacher"], ["distill", "method=triplet"]):
        command(first, *STAGE, f"stages.{stage}", "suite=digits", *more)
    return [first, shutil.copytree(first, folder / "second")]


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    """For a server on which no experiment has the suite's name any more."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    yield client
    experiment = client.get_experiment_by_name("digits")
    client.rename_experiment(experiment.experiment_id, f"digits-{experiment.experiment_id}")


def relog_at_once(checkouts: list[Path], server: str) -> str:
    relog = partial(command, MLFLOW_TRACKING_URI=server)
    with ThreadPoolExecutor() as pool:
        return "".join(pool.map(lambda folder: relog(folder, *STAGE, "tripletkd.tracking"), checkouts))


def every_run(client: Any) -> list[tuple[str, str, Any]]:
    """With cell and seed; a parent has no seed."""
    experiment = client.get_experiment_by_name("digits")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return [(run.data.tags["name"], run.data.tags.get("seed", ""), run) for run in found]


def runs(client: Any) -> dict[tuple[str, str], Any]:
    """By cell and seed, of which none may be there twice."""
    found = every_run(client)
    named = {(name, seed): run for name, seed, run in found}
    assert len(named) == len(found)
    return named


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_two_checkouts_log_at_once_is_there_once(
    client: Any, server: str, checkouts: list[Path], tmp_path: Path
) -> None:
    relog_at_once(checkouts, server)
    found = runs(client)
    assert {*found} == ALL and {run.info.status for run in found.values()} == {"FINISHED"}
    for cell, seed in [key for key in found if key[1]]:
        run_id = found[cell, seed].info.run_id
        assert found[cell, seed].data.tags["mlflow.parentRunId"] == found[cell, ""].info.run_id
        assert [each.step for each in client.get_metric_history(run_id, "loss")] == [1, 2, 3]
        got = contents(Path(client.download_artifacts(run_id, "", str(tmp_path))))
        assert got == contents(checkouts[0] / f"runs/digits/test/{cell}/seed-{seed}")
    assert ": logged" not in relog_at_once(checkouts[1:], server)
    assert [run.to_dictionary() for run in runs(client).values()] == [run.to_dictionary() for run in found.values()]


def test_seeds_of_two_checkouts_are_in_one_parent(
    client: Any, server: str, checkouts: list[Path], tmp_path: Path
) -> None:
    """Each has one of two seeds."""
    halves = [shutil.copytree(checkout, tmp_path / checkout.name) for checkout in checkouts]
    for half, other in zip(halves, "21", strict=True):
        shutil.rmtree(half / f"runs/digits/test/triplet/seed-{other}")
    relog_at_once(halves, server)
    assert {*runs(client)} == ALL
    assert ": logged" not in relog_at_once(halves, server)
    relog_at_once(checkouts[:1], server)
    found = runs(client)
    assert {*found} == ALL and found["triplet", ""].data.tags["seeds"] == "1, 2"
    for seed in "12":
        assert found["triplet", seed].data.tags["mlflow.parentRunId"] == found["triplet", ""].info.run_id


def test_a_stage_is_seen_on_the_server(client: Any, server: str, checkouts: list[Path], tmp_path: Path) -> None:
    project, stage = shutil.copytree(checkouts[0], tmp_path / "project"), (*STAGE, "stages.distill", "suite=digits")
    command(project, *stage, "method=triplet", "--retrain", MLFLOW_TRACKING_URI=server)
    expected = sorted((*cell, "FINISHED") for cell in TRIPLET)
    # On the way there, a seed may be twice: its live file is read beside its record, and the next look mends that
    wait_for(lambda: sorted((cell, seed, run.info.status) for cell, seed, run in every_run(client)) == expected)
