"""The mirror in MLflow: run folders made by hand, in a store of the test's own, asked through MLflow's client."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from tripletkd.errors import UserError
from tripletkd.files import write_json, write_text
from tripletkd.provenance import sha256
from tripletkd.tracking import mlflow as mirror
from tripletkd.tracking.logger import Logger
from tripletkd.tracking.store import Address, NewRun, as_metrics, open_store, pages
from tripletkd.training.run_record import write_log

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint")  # MLflow's, about itself, on import

TRIPLET = "runs/digits/test/triplet"
HISTORY = "epoch,lr,triplet,test_accuracy\n1,0.1,2.5,0.5\n2,0.1,{last},{accuracy}\n"
RECORD: dict[str, Any] = {
    "suite": "digits",
    "split": "test",
    "name": "triplet",
    "method": "triplet",
    "network": "paper_student_quarter",
    "image_shape": [8, 8, 1],
    "classes": 10,
    "seed": 1,
    "params": {"method": {"margin": 5.0}, "recipe": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1}}},
    "data_sha256": "d" * 64,
    "teacher_sha256": "e" * 64,
    "fingerprint": "f" * 64,
    "environment": {"device": "a processor", "cuda": None},
    "trained_with": [1, 2],
    "failed": None,
    "weights_sha256": "a" * 64,
    "history_sha256": "b" * 64,
    "code": "c" * 64,
}
LOG = {"started": "2024-05-06T07:08:09Z", "seconds": 2.5, "commit": "c0ffee", "experiment": None}


def write_seed(root: Path, seed: int, log: dict[str, Any] | None = None, **values: Any) -> Path:
    """A seed's folder and its log below `root`; returns the run folder."""
    record = RECORD | {"seed": seed} | values
    run = root / "runs" / record["suite"] / record["split"] / record["name"]
    folder = run / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(bytes([seed]))
    (folder / "history.csv").write_text(HISTORY.format(last=seed, accuracy=0.9 + seed / 100))
    (folder / "record.json").write_text(json.dumps(record))
    path = root / "logs" / run.relative_to(root / "runs") / f"seed-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(LOG | (log or {}) | {"belongs_to_sha256": sha256(folder / "record.json")}))
    return run


@pytest.fixture(autouse=True)
def default_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store is in the project's folder; what MLflow's set-up puts into the environment goes again."""
    before = dict(os.environ)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: its tables take MLflow seconds to create."""
    root = tmp_path_factory.mktemp("store")
    with open_store(root, "another"):
        pass
    return root / "mlflow.db"


@pytest.fixture
def run(tmp_path: Path, new_store: Path) -> Path:
    """A run folder of two seeds, in a project whose store is empty."""
    shutil.copy(new_store, tmp_path)
    write_seed(tmp_path, 1)
    return write_seed(tmp_path, 2)


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(Address.find(root).uri)


def runs(root: Path, suite: str = "digits") -> dict[str, Any]:
    """The runs of an experiment by their names, none of which may be there twice."""
    experiment = client(root).get_experiment_by_name(suite)
    found = client(root).search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names), names
    return dict(zip(names, found, strict=True))


def statuses(root: Path) -> dict[str, str]:
    """Of the runs that are not deleted, read past MLflow."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        query = "SELECT name, status FROM runs WHERE lifecycle_stage = 'active'"
        found = list(database.execute(query))
    assert len(found) == len(dict(found)), found
    return dict(found)


ALL = dict.fromkeys(["digits/triplet", "digits/triplet/seed-1", "digits/triplet/seed-2"], "FINISHED")


# --- what is logged ---------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("changes", [{"environment": {"precision": "bfloat16"}}, {"code": "d" * 64}])
def test_what_computes_otherwise_is_a_job_of_its_own(changes: dict[str, Any], run: Path, tmp_path: Path) -> None:
    """The later one took the earlier one's place, and its figures."""
    mirror.log_run(tmp_path, run)
    before = runs(tmp_path)["digits/triplet"]
    for seed in (1, 2):
        write_seed(tmp_path, seed, **changes)
    mirror.log_run(tmp_path, run)
    experiment = client(tmp_path).get_experiment_by_name("digits")
    found = client(tmp_path).search_runs([experiment.experiment_id], "tags.seeds LIKE '%'")
    assert len(found) == 2 and before.data.tags == next(
        each.data.tags for each in found if each.info.run_id == before.info.run_id
    )


def test_a_job_is_a_parent_run_and_each_seed_a_run_in_it(tmp_path: Path, run: Path) -> None:
    assert mirror.log_run(tmp_path, run)
    found = runs(tmp_path)
    assert statuses(tmp_path) == ALL
    parent, child = found["digits/triplet"], found["digits/triplet/seed-2"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.end_time - parent.info.start_time == 2500 == child.info.end_time - child.info.start_time
    assert child.data.params["method.margin"] == parent.data.params["method.margin"] == "5.0"
    assert child.data.params["recipe.optimizer.lr"] == "0.1"
    assert (child.data.params["seed"], parent.data.tags["seeds"]) == ("2", "1, 2")
    for tag, value in {"stage": "distill", "log.commit": "c0ffee", "environment.device": "a processor"}.items():
        assert parent.data.tags[tag] == child.data.tags[tag] == value
    for logged in (parent, child):
        [used] = logged.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("digits", "d" * 36)
    history = client(tmp_path).get_metric_history(child.info.run_id, "triplet")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.5), (2, 2.0)]
    assert parent.data.metrics == pytest.approx({"lr": 0.1, "triplet": 1.5, "test_accuracy": 0.915})
    note = parent.data.tags["mlflow.note.content"]
    assert "2 of 2 seeds" in note and "**91.50 %** of the test images" in note
    artifacts = {file.path for file in client(tmp_path).list_artifacts(child.info.run_id)}
    assert artifacts == {"weights.safetensors", "history.csv", "record.json"}


def test_logging_again_changes_nothing(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    mirror.main(["runs"])
    before = {name: found.to_dictionary() for name, found in runs(tmp_path).items()}
    mirror.main(["runs"])
    shutil.rmtree(tmp_path / "logs")  # they do not travel with the records
    mirror.main(["runs"])
    assert capsys.readouterr().out.splitlines() == [f"{TRIPLET}: logged", *[f"{TRIPLET}: already there"] * 2]
    assert {name: found.to_dictionary() for name, found in runs(tmp_path).items()} == before


def test_an_added_seed_adds_one_run_and_the_means_follow_the_folder(tmp_path: Path, run: Path) -> None:
    mirror.log_run(tmp_path, run)
    before = runs(tmp_path)
    write_seed(tmp_path, 4, log={"commit": "decaf"}, environment={"device": "another", "cuda": None})
    assert mirror.log_run(tmp_path, run) and not mirror.log_run(tmp_path, run)
    after = runs(tmp_path)
    assert after.keys() - before.keys() == {"digits/triplet/seed-4"}
    assert {name: after[name].info.run_id for name in before} == {name: r.info.run_id for name, r in before.items()}
    parent = after["digits/triplet"]
    assert parent.data.metrics["test_accuracy"] == pytest.approx((0.91 + 0.92 + 0.94) / 3)
    assert parent.data.tags["seeds"] == "1, 2, 4" and "3 of 3 seeds" in parent.data.tags["mlflow.note.content"]
    assert not {"environment.device", "log.commit"} & parent.data.tags.keys()  # its seeds differ in them
    shutil.rmtree(run / "seed-2")
    assert mirror.log_run(tmp_path, run) and not mirror.log_run(tmp_path, run)
    assert runs(tmp_path)["digits/triplet"].data.metrics["test_accuracy"] == pytest.approx((0.91 + 0.94) / 2)


def test_a_seed_trained_again_is_a_run_of_its_own(tmp_path: Path, run: Path) -> None:
    mirror.log_run(tmp_path, run)
    write_seed(tmp_path, 2, log={"started": "2025-01-01T00:00:00Z"})
    assert mirror.log_run(tmp_path, run)
    [experiment] = [e for e in client(tmp_path).search_experiments() if e.name == "digits"]
    names = sorted(found.info.run_name for found in client(tmp_path).search_runs([experiment.experiment_id]))
    assert names == [*sorted(ALL), "digits/triplet/seed-2"]


def test_other_parameters_are_another_job_also_within_a_folder(tmp_path: Path, run: Path) -> None:
    write_seed(tmp_path, 3, params={"method": {"margin": 8.0}}, log={"experiment": "margin-8"})
    assert mirror.log_run(tmp_path, run)
    assert runs(tmp_path).keys() == {*ALL, "digits/triplet [margin-8]", "digits/triplet [margin-8]/seed-3"}


def test_a_failed_seed_is_marked_and_left_out_of_the_means(tmp_path: Path, run: Path) -> None:
    write_seed(tmp_path, 3, failed="ce is nan", weights_sha256=None)
    assert mirror.log_run(tmp_path, run) and not mirror.log_run(tmp_path, run)
    found = runs(tmp_path)
    assert found["digits/triplet/seed-3"].info.status == "FAILED"
    assert found["digits/triplet"].data.metrics["test_accuracy"] == pytest.approx(0.915)
    note = found["digits/triplet"].data.tags["mlflow.note.content"]
    assert "2 of 3 seeds" in note and "Seed 3 failed: ce is nan" in note


def test_what_is_measured_on_held_out_images_says_so(tmp_path: Path) -> None:
    mirror.log_run(tmp_path, write_seed(tmp_path, 1, split="validation", name="ablations/margin/margin-10"))
    parent = runs(tmp_path)["digits/margin-10 (validation)"]
    assert "validation_accuracy" in parent.data.metrics and "test_accuracy" not in parent.data.metrics
    assert "of the validation images" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["stage"] == "ablate"


def test_a_log_of_another_record_is_not_believed(tmp_path: Path, run: Path) -> None:
    (run / "seed-1" / "record.json").write_text(json.dumps(RECORD | {"fingerprint": "0"}))
    mirror.log_run(tmp_path, run)
    assert "log.commit" not in runs(tmp_path)["digits/triplet/seed-1"].data.tags


def test_a_table_is_logged_once_with_its_origin(tmp_path: Path) -> None:
    results = write_table(tmp_path, 93.0, "**kd** wins.", LOG)
    assert mirror.log_results(tmp_path, results) and not mirror.log_results(tmp_path, results)
    found = runs(tmp_path)["digits/tabulate"]
    assert found.data.metrics == {"test_accuracy/kd": 0.93}
    assert found.data.params == {"split": "test", "methods.kd.temperature": "4"}
    assert found.data.tags["log.commit"] == found.data.tags["mlflow.source.git.commit"] == "c0ffee"
    files = {file.path for file in client(tmp_path).list_artifacts(found.info.run_id)}
    assert files == {"table.json", "table.md", "table.csv", "report.html", "curves.svg"}


def test_an_experiment_leaves_the_description_of_what_was_committed(tmp_path: Path) -> None:
    mirror.log_results(tmp_path, write_table(tmp_path, 93.0, "**kd** wins.", LOG))
    mirror.log_results(tmp_path, write_table(tmp_path, 91.0, "**kd** loses.", LOG | {"experiment": "wide"}))
    assert {"digits/tabulate", "digits/tabulate [wide]"} <= runs(tmp_path).keys()
    assert client(tmp_path).get_experiment_by_name("digits").tags["mlflow.note.content"] == "**kd** wins.\n\nSmall."


def test_the_page_of_the_accuracies_is_named(tmp_path: Path, run: Path) -> None:
    mirror.log_run(tmp_path, run)
    experiment = client(tmp_path).get_experiment_by_name("digits")
    [page] = [page for page in pages(tmp_path, "http://host") if page.startswith("digits: ")]
    place = f"http://host/#/experiments/{experiment.experiment_id}/runs"
    assert page == f"digits: {place}?viewStateShareKey=accuracy&workflowType=machine_learning"
    view = json.loads(experiment.tags["mlflow.sharedViewState.accuracy"])
    found = client(tmp_path).search_runs([experiment.experiment_id], view["searchFilter"])
    assert [each.info.run_name for each in found] == ["digits/triplet"]  # a row a method, none a seed


def test_a_server_out_of_reach_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^http://127\.0\.0\.1:9 does not answer as MLflow does"):
        list(pages(tmp_path, "http://host"))


def write_table(folder: Path, accuracy: float, sentence: str, log: dict[str, Any]) -> Path:
    """What tabulate leaves in results/digits and logs/digits."""
    results = folder / "results/digits"
    for name in ("table.md", "table.csv", "report.html", "figures/curves.svg"):
        write_text(results / name, "text")
    rows = [{"method": "kd", "test": {"mean": accuracy}}]
    table = {"suite": "digits", "about": "Small", "split": "test", "methods": {"kd": {"temperature": 4}}, "rows": rows}
    write_json(results / "table.json", table | {"in_short": [sentence]})
    write_log(folder / "logs/digits/tabulate.json", results / "table.json", log)
    return results


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("again", [1, 2])
def test_what_a_killed_process_left_is_replaced(
    seed: int, again: int, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped while it logs a seed's epochs, once or twice in a row: the run it was at never ends."""

    def killed(values: Any, step: int = 0) -> Any:
        if step == 2 and values["triplet"] == float(seed):
            raise KeyboardInterrupt
        return as_metrics(values, step)

    monkeypatch.setattr(mirror, "as_metrics", killed)
    for _ in range(again):
        with pytest.raises(KeyboardInterrupt):
            mirror.log_run(tmp_path, run)
        found = statuses(tmp_path)
        assert found["digits/triplet"] == found[f"digits/triplet/seed-{seed}"] == "RUNNING"
    monkeypatch.setattr(mirror, "as_metrics", as_metrics)
    assert mirror.log_run(tmp_path, run) and not mirror.log_run(tmp_path, run)
    assert statuses(tmp_path) == ALL
    assert runs(tmp_path)["digits/triplet"].data.metrics["test_accuracy"] == pytest.approx(0.915)


def test_a_parent_without_its_means_is_finished(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_summarise", killed)
        with pytest.raises(KeyboardInterrupt):
            mirror.log_run(tmp_path, run)
    assert statuses(tmp_path)["digits/triplet"] == "RUNNING"
    assert mirror.log_run(tmp_path, run) and not mirror.log_run(tmp_path, run)
    assert statuses(tmp_path) == ALL


def relogging(folder: Path, **variables: str) -> "subprocess.Popen[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "tripletkd.tracking.mlflow", "runs"],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.fault
@pytest.mark.parametrize("shared", [False, True], ids=["one project", "two clones"])
def test_two_processes_that_log_one_record_to_a_new_store_leave_one_run(
    shared: bool, tmp_path: Path, run: Path
) -> None:
    (tmp_path / "mlflow.db").unlink()
    variables, folders = {}, [tmp_path, tmp_path]
    if shared:
        clone = tmp_path / "clone"
        shutil.copytree(tmp_path / "runs", clone / "runs")
        shutil.copytree(tmp_path / "logs", clone / "logs")
        variables, folders = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}, [tmp_path, clone]
    processes = [relogging(folder, **variables) for folder in folders]
    answers = [process.communicate() for process in processes]
    assert sorted(out for out, _ in answers) == [f"{TRIPLET}: already there\n", f"{TRIPLET}: logged\n"], answers
    assert statuses(tmp_path) == ALL


@pytest.fixture
def unlocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever logs next locks another file, as on another machine."""
    locks = (tmp_path / f"lock-{number}" for number in count())
    monkeypatch.setattr(Address, "lock", property(lambda _: next(locks)))


@pytest.mark.fault
@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize("moment", ["_create_parent", "_log_seed", "as_metrics", "_summarise"])
def test_another_machine_logs_the_same_at_any_moment(
    moment: str, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins and ends just before this one goes on; the two share no lock."""
    original = getattr(mirror, moment)

    def overtaken(*words: Any) -> Any:
        monkeypatch.setattr(mirror, moment, original)
        assert mirror.log_run(tmp_path, run)
        return original(*words)

    monkeypatch.setattr(mirror, moment, overtaken)
    assert mirror.log_run(tmp_path, run) and not mirror.log_run(tmp_path, run)
    assert statuses(tmp_path) == ALL
    parent = runs(tmp_path)["digits/triplet"]
    for seed in ("1", "2"):
        child = runs(tmp_path)[f"digits/triplet/seed-{seed}"]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics["test_accuracy"] == pytest.approx(0.915)


@pytest.mark.fault
@pytest.mark.usefixtures("unlocked")
def test_another_machine_names_the_images_first(tmp_path: Path, run: Path) -> None:
    """Between MLflow's look for them and its own entry, which the database refuses as the second."""
    from mlflow.store.tracking.dbmodels.models import SqlDataset
    from sqlalchemy import event

    overtaken = []

    def overtake(*_: Any) -> None:
        overtaken.append(mirror.log_run(tmp_path, run))

    event.listen(SqlDataset, "init", overtake, once=True)
    assert mirror.log_run(tmp_path, run) and overtaken == [True]
    assert statuses(tmp_path) == ALL


@pytest.mark.fault
def test_a_store_s_path_may_hold_any_character(tmp_path: Path) -> None:
    project = tmp_path / "50% off? #1 %20"
    project.mkdir()
    run = write_seed(project, 1)
    assert mirror.log_run(project, run) and not mirror.log_run(project, run)
    assert statuses(project).keys() == {"digits/triplet", "digits/triplet/seed-1"}
    found = runs(project)["digits/triplet/seed-1"]
    assert len(client(project).list_artifacts(found.info.run_id)) == 3
    assert (project / "mlartifacts/digits" / found.info.run_id / "artifacts/record.json").is_file()
    assert list(tmp_path.iterdir()) == [project]
    written = {path.name for path in project.iterdir()}
    assert written == {"runs", "logs", "mlflow.db", ".mlflow.db.lock", "mlartifacts"}


@pytest.mark.fault
@pytest.mark.parametrize(
    ("key", "name"), [("suite", "../x"), ("suite", "/x"), ("suite", "a/b"), ("name", "../../x"), ("split", "..")]
)
def test_a_record_whose_names_lead_elsewhere_is_refused(
    key: str, name: str, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (tmp_path / "runs").rename(project / "runs")
    for seed in (1, 2):
        path = project / TRIPLET / f"seed-{seed}" / "record.json"
        path.write_text(json.dumps(RECORD | {"seed": seed, key: name}))
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit):
        mirror.main(["runs"])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {TRIPLET}: not logged to MLflow (") and repr(name) in error
    assert {path.name for path in tmp_path.iterdir()} == {"project", "logs", "mlflow.db"}
    assert [path.name for path in project.iterdir()] == ["runs"]


def test_what_is_just_being_written_is_left_alone(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "seed-1", run / ".seed-3.partial")
    assert [outcome.folder for outcome in mirror.relog(tmp_path, [tmp_path / "runs"])] == [run]


def test_a_fault_at_one_folder_does_not_stop_the_others(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_seed(tmp_path, 1, name="kd", method="kd")
    (other / "seed-1" / "history.csv").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        mirror.main(["runs"])
    printed = capsys.readouterr()
    assert printed.out == f"{TRIPLET}: logged\n"
    assert printed.err.startswith("error: runs/digits/test/kd: not logged to MLflow (") and printed.err.count("\n") == 1


# --- the process beside a stage ---------------------------------------------------------------------------------------


def test_the_logger_mirrors_what_it_is_told(tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Logger(tmp_path) as logger:
        logger.runs([run])
    assert statuses(tmp_path) == ALL
    with Logger(tmp_path) as logger:
        logger.files(mirror.StageFiles("digits", "fetch", {"classes": 10}, {"source": "digits"}, [], LOG))
    assert statuses(tmp_path) == ALL | {"digits/fetch": "FINISHED"}
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


@pytest.mark.fault
def test_logging_that_fails_is_one_warning(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://")
    remedies = {
        "runs": "the run record is whole: `make relog` logs it later",
        "files": "its files are whole: `dvc repro --force --single-item fetch@digits` logs them later",
    }
    requests: dict[str, Any] = {"runs": [run], "files": mirror.StageFiles("digits", "fetch", {}, {}, [], LOG)}
    for name, request in requests.items():
        with Logger(tmp_path) as logger:
            getattr(logger, name)(request)
        [line] = capfd.readouterr().err.splitlines()
        assert line.startswith("warning: not logged to MLflow (") and line.endswith(remedies[name])


def test_a_stage_that_fails_logs_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Logger(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""


def test_a_run_that_another_machine_deletes_while_it_is_logged_leaves_no_model(tmp_path: Path, new_store: Path) -> None:
    """It has a model from the moment on at which that is created, and knows of it only later."""
    shutil.copy(new_store, tmp_path)
    with open_store(tmp_path, "digits") as store:
        with store.adding(NewRun("an export", "digits/triplet/export", {}, {})) as run_id:
            store.client.create_logged_model(store.experiment, source_run_id=run_id)
            store.client.delete_run(run_id)
        assert not store.client.search_logged_models([store.experiment])
