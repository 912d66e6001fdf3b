"""A group's tracking server: a real `mlflow server`, to which two checkouts log the same at the same time."""

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

RELOG = (sys.executable, "-m", "tripletkd.tracking")
DISTILL = (sys.executable, "-m", "stages.distill", "suite=digits", "method=triplet", "split=test")
# Cell and seed of every run that there is to be; a parent has no seed.
ONCE = [("teacher", "0"), ("teacher", None), ("triplet", "1"), ("triplet", "2"), ("triplet", None)]


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
    for words in (["fetch"], ["train_teacher"], ["distill", "method=triplet"]):
        command(
            first,
            sys.executable,
            "-m",
            f"stages.{words[0]}",
            "suite=digits",
            *words[1:],
        )
    command(folder, "cp", "-r", "first", "second")
    return [first, folder / "second"]


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    """For a server on which no experiment has the suite's name any more."""
    from mlflow import MlflowClient

    client = MlflowClient(server)
    yield client
    experiment = client.get_experiment_by_name("digits")
    client.rename_experiment(experiment.experiment_id, f"digits-{experiment.experiment_id}")


def relog(checkout: Path, server: str) -> str:
    return command(checkout, *RELOG, MLFLOW_TRACKING_URI=server)


def relog_at_once(checkouts: list[Path], server: str) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(relog, server=server), checkouts))


def runs(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("digits")
    return sorted(client.search_runs([experiment.experiment_id]), key=lambda run: str(cell_and_seed(run)))


def cell_and_seed(run: Any) -> tuple[str, str | None]:
    return run.data.tags["name"], run.data.tags.get("seed")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("repetition", range(3))
def test_what_two_checkouts_log_at_once_is_there_once(
    repetition: int, client: Any, server: str, checkouts: list[Path], tmp_path: Path
) -> None:
    relog_at_once(checkouts, server)
    found = {cell_and_seed(run): run for run in runs(client)}
    assert [cell_and_seed(run) for run in runs(client)] == ONCE
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for cell, seed in [key for key in ONCE if key[1]]:
        run_id = found[cell, seed].info.run_id
        assert found[cell, seed].data.tags["mlflow.parentRunId"] == found[cell, None].info.run_id
        assert [each.step for each in client.get_metric_history(run_id, "loss")] == [1, 2, 3]
        got = contents(Path(client.download_artifacts(run_id, "", str(tmp_path))))
        assert got == contents(checkouts[0] / f"runs/digits/test/{cell}/seed-{seed}")
    before = [run.to_dictionary() for run in runs(client)]
    assert ": logged" not in relog(checkouts[1], server)
    assert [run.to_dictionary() for run in runs(client)] == before


def test_seeds_of_two_checkouts_are_in_one_parent(
    client: Any, server: str, checkouts: list[Path], tmp_path: Path
) -> None:
    """Each has one of two seeds."""
    halves = [tmp_path / "first", tmp_path / "second"]
    for checkout, half, other in zip(checkouts, halves, "21", strict=True):
        command(tmp_path, "cp", "-r", str(checkout), str(half))
        command(half, "rm", "-r", f"runs/digits/test/triplet/seed-{other}")
    relog_at_once(halves, server)
    assert [cell_and_seed(run) for run in runs(client)] == ONCE
    relog(checkouts[0], server)
    found = {cell_and_seed(run): run for run in runs(client)}
    assert sorted(found, key=str) == ONCE and found["triplet", None].data.tags["seeds"] == "1, 2"
    for seed in "12":
        assert found["triplet", seed].data.tags["mlflow.parentRunId"] == found["triplet", None].info.run_id


def test_a_stage_is_seen_on_the_server(client: Any, server: str, checkouts: list[Path], tmp_path: Path) -> None:
    command(tmp_path, "cp", "-r", str(checkouts[0]), str(tmp_path / "project"))
    command(tmp_path / "project", *DISTILL, "--retrain", MLFLOW_TRACKING_URI=server)
    wait_for(lambda: client.get_experiment_by_name("digits") and [cell_and_seed(r) for r in runs(client)] == ONCE[2:])
    wait_for(lambda: {run.info.status for run in runs(client)} == {"FINISHED"})
