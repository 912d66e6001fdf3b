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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from shrunk import ENVIRONMENT, LOGGED, change, clone
from shrunk import command as unlogged
from slurm import free_ports, wait_for

from tripletkd.files import write_json, write_text
from tripletkd.tracking.store import address, first_line, open_store
from tripletkd.training.run_record import write_log

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint")  # MLflow's, about itself, on import

DISTILL = (sys.executable, "-m", "stages.distill", "suite=digits", "method=triplet", "split=test")
RELOG = (sys.executable, "-m", "tripletkd.tracking")
CELL, SEEDS = "digits/triplet", ["digits/triplet/seed-1", "digits/triplet/seed-2"]
FINISHED = dict.fromkeys([CELL, *SEEDS], "FINISHED")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher, of which nothing is logged, and an empty store: its tables take seconds to create."""
    folder = clone(tmp_path_factory.mktemp("project"))
    change(folder, "suites", "digits", "student", "recipe", value={"epochs": 40})
    change(folder, "run", "checkpoint_minutes", value=0.02)
    for stage in ("fetch", "train_teacher"):
        unlogged(folder, sys.executable, "-m", f"stages.{stage}", "suite=digits")
    with open_store(folder, "another", "a", "b"):
        pass
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "project")


@pytest.fixture(autouse=True)
def default_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store is in the project's folder; what MLflow's set-up puts into the environment goes again."""
    before = dict(os.environ)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def command(folder: Path, *words: str, check: bool = True, **variables: str) -> str:
    """Run it there, with what it logs in the project's own store."""
    return unlogged(folder, *words, check=check, **LOGGED | variables)


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(address(root))


def runs(root: Path, suite: str = "digits") -> dict[str, Any]:
    """The runs of an experiment by their names, none of which may be there twice."""
    experiment = client(root).get_experiment_by_name(suite)
    found = client(root).search_runs([experiment.experiment_id]) if experiment else []
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names), names
    return dict(zip(names, found, strict=True))


def statuses(root: Path) -> dict[str, str]:
    return {name: run.info.status for name, run in runs(root).items()}


def epochs(root: Path, name: str, metric: str = "loss") -> list[int]:
    return [each.step for each in client(root).get_metric_history(runs(root)[name].info.run_id, metric)]


def begin(folder: Path, *more: str, **variables: str) -> "subprocess.Popen[str]":
    """Start a training; what it and all its processes print is to end when it does."""
    return subprocess.Popen(
        [*DISTILL, *more],
        cwd=folder,
        env=ENVIRONMENT | LOGGED | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.fault
def test_a_run_is_seen_while_it_trains_and_goes_on_after_a_kill(project: Path) -> None:
    change(project, "suites", "digits", "student", "recipe", "epochs", value=150)
    training = begin(project)
    wait_for(lambda: SEEDS[1] in runs(project) and "test_accuracy" in runs(project)[SEEDS[1]].data.metrics)
    assert set(statuses(project).values()) == {"RUNNING"}
    wait_for(lambda: list(project.glob("checkpoints/**/*.safetensors")))
    training.kill()
    training.communicate()
    ids = {name: run.info.run_id for name, run in runs(project).items()}
    wait_for(lambda: set(statuses(project).values()) == {"KILLED"})
    assert not list(project.glob("logs/**/*.live.jsonl"))
    assert "going on after epoch" in command(project, *DISTILL)
    wait_for(lambda: statuses(project) == FINISHED)
    assert {name: run.info.run_id for name, run in runs(project).items()} == ids
    for name in SEEDS:
        assert epochs(project, name) == list(range(1, 151))
    assert not list(project.glob("logs/**/*.live.jsonl"))


@pytest.fixture
def finished(project: Path) -> Path:
    unlogged(project, *DISTILL)
    assert not runs(project)
    return project


def test_relog_fills_an_empty_store_once(finished: Path) -> None:
    folder = "runs/digits/test"
    printed = command(finished, *RELOG).splitlines()
    assert printed == [f"[1/2] {folder}/teacher: logged", f"[2/2] {folder}/triplet: logged"]
    before = {name: run.to_dictionary() for name, run in runs(finished).items()}
    printed = command(finished, *RELOG).splitlines()
    assert printed == [f"[1/2] {folder}/teacher: already there", f"[2/2] {folder}/triplet: already there"]
    assert {name: run.to_dictionary() for name, run in runs(finished).items()} == before
    parent, children = runs(finished)[CELL], [runs(finished)[name] for name in SEEDS]
    for metric in ("loss", "test_accuracy"):
        curves = [client(finished).get_metric_history(r.info.run_id, metric) for r in (parent, *children)]
        mean, one, other = ({each.step: each.value for each in curve} for curve in curves)
        assert mean == pytest.approx({epoch: (one[epoch] + other[epoch]) / 2 for epoch in one})
    for child in children:
        tags, files = child.data.tags, client(finished).list_artifacts(child.info.run_id)
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["log.trained_with"] == "[1, 2]" and "environment.device" in tags and "log.commit" in tags
        assert {file.path for file in files} == {"weights.safetensors", "history.csv", "record.json"}
        [used] = child.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("digits", tags["data.sha256"][:36])
    note = parent.data.tags["mlflow.note.content"]
    assert "2 of 2 seeds" in note and f"{100 * parent.data.metrics['test_accuracy']:.2f} %" in note
    view = client(finished).get_experiment_by_name("digits").tags["mlflow.sharedViewState.accuracy"]
    experiment = client(finished).get_experiment_by_name("digits").experiment_id
    shown = client(finished).search_runs([experiment], json.loads(view)["searchFilter"])
    assert sorted(run.info.run_name for run in shown) == ["digits/teacher", CELL]  # a row a cell, none a seed


def test_a_seed_trained_again_to_the_same_record_stays_one_run(finished: Path) -> None:
    command(finished, *RELOG)
    before = {name: run.info.run_id for name, run in runs(finished).items()}
    command(finished, *DISTILL, "--retrain")
    wait_for(lambda: not list(finished.glob("logs/**/*.live.jsonl")))
    command(finished, *RELOG)
    assert {name: run.info.run_id for name, run in runs(finished).items()} == before
    assert "RUNNING" not in statuses(finished).values()


def test_an_added_seed_joins_the_others_and_the_means_follow(finished: Path) -> None:
    shutil.move(finished / "runs/digits/test/triplet/seed-2", finished / "aside")
    command(finished, *RELOG)
    assert runs(finished)[CELL].data.tags["seeds"] == "1"
    shutil.move(finished / "aside", finished / "runs/digits/test/triplet/seed-2")
    command(finished, *RELOG)
    found = runs(finished)
    assert found[CELL].data.tags["seeds"] == "1, 2" and epochs(finished, CELL) == list(range(1, 41))
    assert {found[name].data.tags["mlflow.parentRunId"] for name in SEEDS} == {found[CELL].info.run_id}


def test_a_failed_seed_is_marked_and_left_out_of_the_means(project: Path) -> None:
    printed = command(
        project,
        *DISTILL,
        "suites.digits.recipe.optimizer.lr=1e30",
        "suites.digits.teacher.recipe={optimizer: {lr: 0.01}}",
        check=False,
    )
    assert "every seed failed" in printed
    wait_for(lambda: statuses(project).get(CELL) == "FAILED")
    assert statuses(project) == dict.fromkeys([CELL, *SEEDS], "FAILED")
    assert "Seed 1 failed: " in runs(project)[CELL].data.tags["mlflow.note.content"]


@pytest.mark.fault
def test_a_store_that_hangs_holds_up_nothing(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        variables = {
            "MLFLOW_TRACKING_URI": f"http://me:secret@127.0.0.1:{server.getsockname()[1]}",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
        }
        started = time.monotonic()
        printed, _ = begin(project, **variables).communicate()
        took = time.monotonic() - started
        wait_for((project / "logs/mlflow.log").exists)
    [line] = (project / "logs/mlflow.log").read_text().splitlines()
    assert "warning: not logged to MLflow (" in line and "make relog" in line and "secret" not in line
    assert "mlflow" not in printed.lower()
    started = time.monotonic()
    unlogged(project, *DISTILL, "--retrain")
    assert took < 2 * (time.monotonic() - started) + 5


@pytest.mark.fault
def test_a_copied_project_writes_nothing_to_where_it_was(finished: Path, tmp_path: Path) -> None:
    command(finished, *RELOG)
    copy = shutil.copytree(finished, tmp_path / "50% off? #1 %20")
    shutil.rmtree(copy / "mlartifacts")
    shutil.rmtree(finished)
    command(copy, *RELOG)
    assert not finished.exists()
    run_id = runs(copy)[SEEDS[0]].info.run_id
    assert (copy / "mlartifacts/digits" / run_id / "artifacts/record.json").is_file()
    assert list(runs(copy, f"digits of {finished} (3)")) == list(runs(copy)) or len(runs(copy)) == 5


@pytest.mark.fault
def test_an_experiment_that_was_deleted_is_restored(finished: Path) -> None:
    command(finished, *RELOG)
    before = statuses(finished)
    client(finished).delete_experiment(client(finished).get_experiment_by_name("digits").experiment_id)
    command(finished, *RELOG)
    assert statuses(finished) == before


@pytest.mark.fault
def test_two_processes_that_fill_a_new_store_leave_each_run_once(finished: Path, tmp_path: Path) -> None:
    clones = [shutil.copytree(finished, tmp_path / name) for name in ("one", "other")]
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    shutil.copy(finished / "mlflow.db", tmp_path)
    words = {"env": ENVIRONMENT | variables, "text": True, "stdout": subprocess.PIPE}
    for process in [subprocess.Popen(RELOG, cwd=folder, **words) for folder in clones]:  # type: ignore[call-overload]
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
    os.environ["MLFLOW_TRACKING_URI"] = variables["MLFLOW_TRACKING_URI"]
    assert len(runs(finished)) == 5


@pytest.mark.fault
def test_a_damaged_record_is_named_and_the_others_are_logged(finished: Path) -> None:
    record = finished / "runs/digits/test/teacher/seed-0/record.json"
    record.write_text(record.read_text().replace('"digits"', '"../x"', 1))
    printed = command(finished, *RELOG, check=False)
    assert f"error: runs/digits/test/teacher: not logged to MLflow ({record.relative_to(finished)}: " in printed
    assert statuses(finished) == FINISHED


# --- tables and exports -----------------------------------------------------------------------------------------------


def test_a_table_is_a_run_with_its_verdicts_and_files(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "mlflow.db", tmp_path)
    results = tmp_path / "results/digits"
    for name in ("table.md", "table.csv", "report.html", "figures/curves.svg"):
        write_text(results / name, "text")
    rows, verdict = (
        [{"method": "kd", "test_accuracy_percent": {"mean": 93.0}}],
        {"claim": "kd over scratch", "verdict": "reproduced"},
    )
    table = {"suite": "digits", "about": "Small", "split": "test", "methods": {"kd": {"temperature": 4}}, "rows": rows}
    write_json(results / "table.json", {**table, "verdicts": [{**verdict, "corrected_p": 0.01}], "in_short": ["Yes."]})
    log = {"started": "2024-05-06T07:08:09Z", "seconds": 2.5, "commit": "c0ffee", "experiment": "wide"}
    write_log(tmp_path / "logs/digits/tabulate.json", results / "table.json", log)
    for said in ("logged", "already there"):
        assert command(tmp_path, *RELOG, PYTHONPATH=str(trained)) == f"[1/1] results/digits: {said}\n"
    found = runs(tmp_path)["digits/tabulate [wide]"]
    assert found.data.metrics == {"test_accuracy/kd": 0.93, "corrected_p/kd over scratch": 0.01}
    params = {"split": "test", "methods.kd.temperature": "4", "verdict.kd over scratch": "reproduced"}
    assert found.data.params == params and found.info.end_time - found.info.start_time == 2500
    assert found.data.tags["log.commit"] == found.data.tags["mlflow.source.git.commit"] == "c0ffee"
    files = {file.path for file in client(tmp_path).list_artifacts(found.info.run_id)}
    assert files == {"table.json", "table.md", "table.csv", "report.html", "curves.svg"}


def test_an_export_is_a_run_with_a_model_that_predicts(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import numpy as np

    folder = tmp_path / "exports/digits/kd"
    write_model(folder)
    versions = {name: version(name) for name in ("onnx", "onnxruntime")}
    hashes = {f"{name}_sha256": name[0] * 64 for name in ("data", "weights", "onnx")}
    said = {"suite": "digits", "method": "kd", "network": "tiny", "seed": 1, "opset": 18, "parameters": 8}
    write_json(folder / "export.json", {**said, **hashes, "versions": versions, "classes": ["a", "b"]})
    write_json(folder / "example.json", {"inputs": np.zeros((2, 2, 2, 1), int).tolist()})
    write_text(folder / "MODEL_CARD.md", "A card.")
    write_log(folder / "log.json", folder / "export.json", {"latency_ms": 0.5})
    shutil.copy(trained / "mlflow.db", tmp_path)
    for said_of_it in ("logged", "already there"):
        printed = command(tmp_path, *RELOG, PYTHONPATH=str(trained))
        assert printed == f"[1/1] exports/digits/kd: {said_of_it}\n"
    run = runs(tmp_path)["digits/kd/export"]
    assert run.data.metrics == {"parameters": 8, "latency_ms": 0.5} and run.data.tags["onnx.sha256"] == "o" * 64
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(tmp_path))
    [model] = client(tmp_path).search_logged_models([run.info.experiment_id])
    served = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    assert served.predict(np.zeros((3, 2, 2, 1), np.uint8))["probabilities"] == pytest.approx(np.full((3, 2), 0.5))
    requirements = mlflow.pyfunc.get_model_dependencies(f"models:/{model.model_id}")
    assert set(Path(requirements).read_text().split()) == {
        f"{name}=={text}" for name, text in {**versions, "mlflow": version("mlflow")}.items()
    }


def write_model(folder: Path) -> None:
    """Two classes that are equally likely, whatever the image of two by two pixels."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 2, 2, 1])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])
    weights = numpy_helper.from_array(np.ones((4, 2), np.float32), "weights")
    graph = helper.make_graph(nodes, "tiny", [images], [probabilities], [weights])
    folder.mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")


def test_a_message_shows_no_password() -> None:
    assert first_line(OSError("postgresql://me:a@b@host/db is away\nmore")) == "postgresql://***@host/db is away"


# --- the pages --------------------------------------------------------------------------------------------------------


def test_the_pages_are_named_when_they_answer(finished: Path) -> None:
    command(finished, *RELOG)
    [port] = free_ports(1)
    words = [*RELOG, "ui", str(port)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, cwd=finished, env=ENVIRONMENT | LOGGED, start_new_session=True, **pipes)
    try:
        assert process.stdout
        number = client(finished).get_experiment_by_name("digits").experiment_id
        page = f"digits: http://127.0.0.1:{port}/#/experiments/{number}/runs?viewStateShareKey=accuracy"
        assert any(line.startswith(page) for line in process.stdout)
        with socket.create_connection(("127.0.0.1", port)):
            printed = command(finished, *words, check=False)
        assert (
            printed
            == f"error: port {port} is taken, perhaps by MLflow itself; `make ui PORT={port + 1}` takes another\n"
        )
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


def test_a_server_out_of_reach_is_named(project: Path) -> None:
    printed = command(project, *RELOG, "ui", "5000", check=False, MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:9")
    assert (
        printed.startswith("error: http://***@127.0.0.1:9: does not answer as MLflow does (")
        and "secret" not in printed
    )
