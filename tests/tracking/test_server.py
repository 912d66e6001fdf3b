"""A group's tracking server: a real `mlflow server`, to which two checkouts log the same at the same time."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from shrunk import BIN, ENVIRONMENT, GIT, change, clone, command
from slurm import free_ports, wait_for

pytestmark = [pytest.mark.smoke, pytest.mark.filterwarnings("ignore:.*Any type hint")]

RELOG = ("python", "-m", "tripletkd.tracking.mlflow", "runs", "exports")
# Stage and seed of every run that there is to be; a parent has no seed.
ONCE = [
    ("distill", "1"), ("distill", "2"), ("distill", None), ("export", None), ("train_teacher", "0"),
    ("train_teacher", None),
]  # fmt: skip


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
    """Two that hold the same runs and the same export, none of which is logged."""
    folder = tmp_path_factory.mktemp("checkouts")
    first = clone(folder / "first")
    change(first, "run", "ablations", value=[])
    change(first, "run", "splits", value=["test"])
    change(first, "run", "export", value=["triplet"])
    command(first, *GIT, "commit", "-qam", "one method, and its export")
    command(first, "git", "remote", "add", "origin", "https://me:secret@host/group/tripletkd.git")
    command(first, "dvc", "repro", "export", MLFLOW_TRACKING_URI="nowhere://")
    command(folder, "cp", "-r", "first", "second")
    return [first, folder / "second"]


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """For a server on which no experiment has the suite's name any more."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)  # by which models' files are found
    client = MlflowClient(server)
    yield client
    experiment = client.get_experiment_by_name("digits")
    client.rename_experiment(experiment.experiment_id, f"digits-{experiment.experiment_id}")


def relog(checkout: Path, server: str) -> str:
    """As from a machine of its own: locks are in the folder for temporary files."""
    (checkout.parent / f"{checkout.name}-tmp").mkdir(exist_ok=True)
    return command(checkout, *RELOG, MLFLOW_TRACKING_URI=server, TMPDIR=f"{checkout}-tmp")


def relog_at_once(checkouts: list[Path], server: str) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(partial(relog, server=server), checkouts))


def runs(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("digits")
    return sorted(client.search_runs([experiment.experiment_id]), key=lambda run: str(stage_and_seed(run)))


def stage_and_seed(run: Any) -> tuple[str, str | None]:
    return run.data.tags["stage"], run.data.tags.get("seed")


def assert_everything_is_there_once(client: Any, checkout: Path, to: Path) -> None:
    """Nothing twice; every file as it is in the checkout, fetched from the server."""
    from mlflow.artifacts import download_artifacts

    found = {stage_and_seed(run): run for run in runs(client)}
    assert [stage_and_seed(run) for run in runs(client)] == ONCE
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for stage, folder, seeds in (("train_teacher", "teacher", "0"), ("distill", "triplet", "12")):
        parent = found[stage, None]
        assert parent.data.tags["seeds"] == ", ".join(seeds)
        for seed in seeds:
            child = found[stage, seed]
            assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert contents(Path(client.download_artifacts(child.info.run_id, "", str(to / f"{folder}-{seed}")))) == (
                contents(checkout / f"runs/digits/test/{folder}/seed-{seed}")
            )
    [model] = client.search_logged_models([client.get_experiment_by_name("digits").experiment_id])
    [logged] = found["export", None].outputs.model_outputs
    assert logged.model_id == model.model_id
    got = contents(Path(download_artifacts(f"models:/{model.model_id}", dst_path=str(to))))
    assert got["model.onnx"] == (checkout / "exports/digits/triplet/model.onnx").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("repetition", range(3))
def test_what_two_checkouts_log_at_once_is_there_once(
    repetition: int, client: Any, server: str, checkouts: list[Path], tmp_path: Path
) -> None:
    relog_at_once(checkouts, server)
    assert_everything_is_there_once(client, checkouts[0], tmp_path)
    before = [run.to_dictionary() for run in runs(client)]
    for checkout in checkouts:
        assert ": logged" not in command(checkout, *RELOG, MLFLOW_TRACKING_URI=server)
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
    assert [stage_and_seed(run) for run in runs(client)] == ONCE
    relog_at_once(checkouts[:1], server)
    assert_everything_is_there_once(client, checkouts[0], tmp_path)


def test_mlflow_s_own_columns_are_filled(client: Any, server: str, checkouts: list[Path]) -> None:
    relog_at_once(checkouts[:1], server)
    commit = command(checkouts[0], "git", "rev-parse", "HEAD").strip()
    for run in runs(client):
        [used] = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("digits", run.data.tags["data.sha256"][:36])
        assert {key: text for key, text in run.data.tags.items() if key.startswith("mlflow.source.")} == {
            "mlflow.source.name": f"stages.{run.data.tags['stage']}",
            "mlflow.source.git.commit": commit,
            "mlflow.source.git.repoURL": "https://host/group/tripletkd.git",  # without name and password
        }
    experiment = client.get_experiment_by_name("digits")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"  # the view for model training
