"""The mirror in MLflow beside stages at work, in a store of the project's own, asked through MLflow's client."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from shrunk import ENVIRONMENT, LOGGED, change, clone, command
from slurm import free_ports, wait_for

from tripletkd.provenance import sha256
from tripletkd.tracking.__main__ import main
from tripletkd.tracking.store import RECORD_TAG, RUN_TAG, Entry, address, first_line, open_store
from tripletkd.training.run_record import write_log

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint")  # MLflow's, about itself, on import

DISTILL = (sys.executable, "-m", "stages.distill", "suite=digits", "method=triplet", "split=test")
CELL, SEEDS = "digits/triplet", ["digits/triplet/seed-1", "digits/triplet/seed-2"]
FINISHED = dict.fromkeys([CELL, *SEEDS], "FINISHED")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher, of which nothing is logged, and an empty store: its tables take seconds to create."""
    folder = clone(tmp_path_factory.mktemp("project"))
    shutil.rmtree(folder / "store")
    change(folder, "suites", "digits", "student", "recipe", value={"epochs": 40})
    change(folder, "run", "checkpoint_minutes", value=0.02)
    for stage in ("fetch", "train_teacher"):
        command(folder, sys.executable, "-m", f"stages.{stage}", "suite=digits")
    with open_store(folder, "another", "a", "b"):
        pass
    return folder


@pytest.fixture(scope="module")
def distilled(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with two students too."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("distilled") / "project")
    command(folder, *DISTILL)
    assert not runs(folder)
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "project")


@pytest.fixture
def finished(distilled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(distilled, tmp_path / "project")


@pytest.fixture
def bare(trained: Path, tmp_path: Path) -> Path:
    """A folder with an empty store, and nothing else."""
    shutil.copy(trained / "mlflow.db", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def default_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store is in the project's folder; what MLflow's set-up puts into the environment goes again."""
    before = dict(os.environ)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def relog(folder: Path, code: int | None = None) -> str:
    """Add what its store lacks, in this process: another one would import MLflow for seconds."""
    with chdir(folder), redirect_stdout(StringIO()) as printed, redirect_stderr(printed):
        assert main([]) == code
    return printed.getvalue()


def start(folder: Path, *words: str, **variables: str) -> "subprocess.Popen[str]":
    """What it and all its processes print is to end when it does."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=folder, env=ENVIRONMENT | LOGGED | variables, start_new_session=True, **pipes)


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(address(root))


def runs(root: Path, suite: str = "digits") -> dict[str, Any]:
    """The runs of an experiment by their names, none of which may be there twice."""
    experiment = client(root).get_experiment_by_name(suite)
    found = client(root).search_runs([experiment.experiment_id]) if experiment else []
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found)
    return named


def ids(root: Path) -> dict[str, str]:
    return {name: run.info.run_id for name, run in runs(root).items()}


def statuses(root: Path) -> dict[str, str]:
    return {name: run.info.status for name, run in runs(root).items()}


def curve(root: Path, name: str, metric: str = "loss") -> dict[int, float]:
    """Each epoch once."""
    points = client(root).get_metric_history(ids(root)[name], metric)
    assert len({each.step for each in points}) == len(points)
    return {each.step: each.value for each in points}


@pytest.mark.smoke
@pytest.mark.fault
def test_a_run_is_seen_while_it_trains_and_goes_on_after_a_kill(project: Path) -> None:
    change(project, "suites", "digits", "student", "recipe", "epochs", value=150)
    training = start(project, *DISTILL)
    wait_for(lambda: SEEDS[1] in runs(project) and "test_accuracy" in runs(project)[SEEDS[1]].data.metrics)
    assert set(statuses(project).values()) == {"RUNNING"}
    wait_for(lambda: list(project.glob("checkpoints/**/*.safetensors")))
    training.kill()
    training.communicate()
    before = ids(project)
    wait_for(lambda: set(statuses(project).values()) == {"KILLED"})
    assert "going on after epoch" in command(project, *DISTILL, **LOGGED)
    wait_for(lambda: statuses(project) == FINISHED)
    assert ids(project) == before
    assert all([*curve(project, name)] == list(range(1, 151)) for name in SEEDS)
    assert not list(project.glob("logs/**/*.live.jsonl"))


def logs(*folders: str, there: int = 0) -> str:
    """What `make relog` prints of folders that it logs, and of others that were there."""
    lines = [f"[{number}/{len(folders)}] {folder}: logged\n" for number, folder in enumerate(folders, 1)]
    return "".join([*lines, f"MLflow: {len(folders)} logged, {there} already there; `make ui` shows them\n"])


def test_relog_fills_an_empty_store_once(finished: Path) -> None:
    logged = []
    for said in (logs("runs/digits/test/teacher", "runs/digits/test/triplet"), logs(there=2)):
        assert relog(finished) == said
        logged.append({name: run.to_dictionary() for name, run in runs(finished).items()})
    assert logged[0] == logged[1]
    parent = runs(finished)[CELL]
    for metric in ("loss", "test_accuracy"):
        mean, one, other = (curve(finished, name, metric) for name in (CELL, *SEEDS))
        assert mean == pytest.approx({epoch: (one[epoch] + other[epoch]) / 2 for epoch in one})
    for child in [runs(finished)[name] for name in SEEDS]:
        tags, files = child.data.tags, client(finished).list_artifacts(child.info.run_id)
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["log.trained_with"] == "[1, 2]" and "environment.device" in tags and "log.commit" in tags
        assert {file.path for file in files} == {"weights.safetensors", "history.csv", "record.json"}
        [used] = child.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("digits", tags["data.sha256"][:36])
    note = parent.data.tags["mlflow.note.content"]
    assert "2 of 2 seeds" in note and f"{100 * parent.data.metrics['test_accuracy']:.2f} %" in note
    view = client(finished).get_experiment(parent.info.experiment_id).tags["mlflow.sharedViewState.accuracy"]
    shown = client(finished).search_runs([parent.info.experiment_id], json.loads(view)["searchFilter"])
    assert sorted(run.info.run_name for run in shown) == ["digits/teacher", CELL]  # a row a cell, none a seed


def test_a_seed_trained_again_to_the_same_record_stays_one_run(finished: Path) -> None:
    relog(finished)
    before = ids(finished)
    command(finished, *DISTILL, "--retrain", **LOGGED)
    relog(finished)
    assert ids(finished) == before and {*statuses(finished).values()} == {"FINISHED"}


@pytest.mark.fault
def test_a_run_that_was_begun_is_not_continued_by_one_of_other_numbers(finished: Path) -> None:
    """A training that was killed, and was done again on a processor that rounds otherwise."""
    history = finished / "runs/digits/test/triplet/seed-1/history.csv"
    rows, record = history.read_text(), json.loads(history.with_name("record.json").read_text())
    relog(finished)
    [begun] = [run for name, run in runs(finished).items() if name == SEEDS[0]]
    store = client(finished)
    store.delete_tag(begun.info.run_id, RECORD_TAG)  # it had not ended
    first = [line.split(",") for line in rows.splitlines()]
    at = first[0].index("loss")
    changed = [",".join([*line[:at], f"{float(line[at]) + 1}", *line[at + 1 :]]) for line in first[1:]]
    history.write_text("\n".join([rows.splitlines()[0], *changed]) + "\n")
    history.with_name("record.json").write_text(json.dumps(record | {"history_sha256": sha256(history)}))
    relog(finished)
    found = runs(finished)[SEEDS[0]]
    assert found.info.run_id != begun.info.run_id
    assert curve(finished, SEEDS[0]) == {int(line.split(",")[1]): float(line.split(",")[at]) for line in changed}


@pytest.mark.parametrize("loss", [0.5, float("nan"), float("inf")])
def test_a_training_that_goes_on_from_a_checkpoint_stays_one_run(loss: float, bare: Path) -> None:
    """What the store saw last, the checkpoint that was taken before it did not."""
    seen = []
    for epochs, record in ((7, None), (5, None), (6, None), (9, None), (9, "f" * 64)):
        rows = {epoch: {"loss": loss if epoch > 2 else 0.9} for epoch in range(1, epochs + 1)}
        status = "FINISHED" if record else "RUNNING"
        entry = Entry("digits/triplet/seed-1", "key", "place", record, {}, {"suite": "digits"}, {}, rows, status)
        with open_store(bare, "digits", RUN_TAG, "key") as store:
            store.add(entry)
        seen.append(ids(bare)["digits/triplet/seed-1"])
    assert len({*seen}) == 1 and [*curve(bare, "digits/triplet/seed-1")] == list(range(1, 10))


def test_an_added_seed_joins_the_others_and_the_means_follow(finished: Path) -> None:
    place = finished / "runs/digits/test/triplet/seed-2"
    shutil.move(place, finished / "aside")
    relog(finished)
    assert runs(finished)[CELL].data.tags["seeds"] == "1"
    shutil.move(finished / "aside", place)
    relog(finished)
    found = runs(finished)
    assert found[CELL].data.tags["seeds"] == "1, 2" and [*curve(finished, CELL)] == list(range(1, 41))
    assert {found[name].data.tags["mlflow.parentRunId"] for name in SEEDS} == {found[CELL].info.run_id}


def test_a_failed_seed_is_marked_and_left_out_of_the_means(project: Path) -> None:
    diverges = ("suites.digits.recipe.optimizer.lr=1e30", "suites.digits.teacher.recipe={optimizer: {lr: 0.01}}")
    assert "every seed failed" in command(project, *DISTILL, *diverges, check=False, **LOGGED)
    wait_for(lambda: statuses(project) == dict.fromkeys([CELL, *SEEDS], "FAILED"))
    assert "Seed 1 failed: " in runs(project)[CELL].data.tags["mlflow.note.content"]


@pytest.mark.smoke
@pytest.mark.fault
def test_a_store_that_hangs_holds_up_nothing(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri, started = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}", time.monotonic()
        variables = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
        printed, _ = start(project, *DISTILL, **variables).communicate()
        took = time.monotonic() - started
        wait_for((project / "logs/mlflow.log").exists)
    [line] = (project / "logs/mlflow.log").read_text().splitlines()
    assert "warning: not logged to MLflow (" in line and "make relog" in line and "secret" not in line
    assert "mlflow" not in printed.lower()
    started = time.monotonic()
    command(project, *DISTILL, "--retrain")
    assert took < 2 * (time.monotonic() - started) + 5


@pytest.mark.fault
def test_a_copied_project_writes_nothing_to_where_it_was(finished: Path, tmp_path: Path) -> None:
    relog(finished)
    copy = shutil.copytree(finished, tmp_path / "50% off? #1 %20")
    shutil.rmtree(copy / "mlartifacts")
    shutil.rmtree(finished)
    relog(copy)
    assert not finished.exists()
    assert (copy / "mlartifacts/digits" / ids(copy)[SEEDS[0]] / "artifacts/record.json").is_file()
    number = client(copy).search_experiments(order_by=["experiment_id ASC"])[-1].experiment_id
    assert len(runs(copy)) == len(runs(copy, f"digits of {finished} ({int(number) - 1})")) == 5


@pytest.mark.fault
def test_an_experiment_that_was_deleted_is_restored(finished: Path) -> None:
    relog(finished)
    before = statuses(finished)
    client(finished).delete_experiment(client(finished).get_experiment_by_name("digits").experiment_id)
    relog(finished)
    assert statuses(finished) == before


@pytest.mark.fault
def test_a_damaged_record_is_named_and_the_others_are_logged(finished: Path) -> None:
    record = finished / "runs/digits/test/teacher/seed-0/record.json"
    record.write_text(record.read_text().replace('"digits"', '"../x"', 1))
    printed = relog(finished, 1)
    assert f"error: runs/digits/test/teacher: not logged to MLflow ({record.relative_to(finished)}: " in printed
    assert statuses(finished) == FINISHED


def test_a_table_is_a_run_with_its_verdicts_and_files(bare: Path) -> None:
    results = shutil.copytree(ROOT / "results/digits", bare / "results/digits")
    log = {"started": "2024-05-06T07:08:09Z", "seconds": 2.5, "commit": "c0ffee", "experiment": "wide"}
    write_log(bare / "logs/digits/tabulate.json", results / "table.json", log)
    assert [relog(bare), relog(bare)] == [logs("results/digits"), logs(there=1)]
    found, table = runs(bare)["digits/tabulate [wide]"], json.loads((results / "table.json").read_text())
    [verdict, *_], [row, *_] = table["verdicts"], table["rows"]
    assert found.data.params[f"verdict.{verdict['claim']}"] == verdict["verdict"]
    accuracy = found.data.metrics[f"test_accuracy/{row['method']}"]
    assert 100 * accuracy == pytest.approx(row["test_accuracy_percent"]["mean"])
    assert found.data.tags["log.commit"] == found.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert found.info.end_time - found.info.start_time == 2500
    files = {file.path for file in client(bare).list_artifacts(found.info.run_id)}
    assert files >= {"table.json", "table.md", "table.csv", "report.html", "curves.svg"}
    with (results / "table.md").open("a") as text:  # as where an ablation changed, which table.json does not have
        text.write("one line more\n")
    assert relog(bare) == logs("results/digits")


def test_an_export_is_a_run_with_a_model_that_predicts(
    project: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import numpy as np

    command(project, sys.executable, "-m", "stages.export", "suite=digits", "method=teacher")
    folder = shutil.copytree(project / "exports/digits/teacher", bare / "exports/digits/teacher")
    assert [relog(bare), relog(bare)] == [logs("exports/digits/teacher"), logs(there=1)]
    run, exported = runs(bare)["digits/teacher/export"], json.loads((folder / "export.json").read_text())
    assert run.data.metrics["parameters"] == exported["parameters"]
    assert run.data.tags["onnx.sha256"] == exported["onnx_sha256"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(bare))
    [model] = client(bare).search_logged_models([run.info.experiment_id])
    images = np.array(json.loads((folder / "example.json").read_text())["inputs"] * 2, np.uint8)
    served = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(images)
    assert served["probabilities"].sum(1) == pytest.approx(np.ones(len(images)))
    requirements = Path(mlflow.pyfunc.get_model_dependencies(f"models:/{model.model_id}")).read_text().split()
    assert {*requirements} == {f"{name}=={version(name)}" for name in ("mlflow", "onnx", "onnxruntime")}


def test_a_message_shows_no_password() -> None:
    assert first_line(OSError("postgresql://me:a@b@host/db is away\nmore")) == "postgresql://***@host/db is away"


@pytest.mark.smoke
def test_the_pages_are_named_and_served(finished: Path) -> None:
    relog(finished)
    [port] = free_ports(1)

    def is_served() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    process = start(finished, sys.executable, "-m", "tripletkd.tracking", "ui", str(port))
    try:
        assert process.stdout
        number = client(finished).get_experiment_by_name("digits").experiment_id
        page = f"digits: http://127.0.0.1:{port}/#/experiments/{number}/runs?viewStateShareKey=accuracy"
        assert any(line.startswith(page) for line in process.stdout)
        assert any(line == "MLflow is ready; Ctrl-C ends it\n" for line in process.stdout) and is_served()
        taken = f"error: port {port} is taken, perhaps by MLflow itself; `make ui PORT={port + 1}` takes another"
        assert main(["ui", str(port)]) == taken
    finally:
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        process.communicate()
    assert not is_served()


def test_a_server_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    said = str(main(["ui", "5000"]))
    assert said.startswith("error: http://***@127.0.0.1:9: does not answer as MLflow does (") and "secret" not in said
