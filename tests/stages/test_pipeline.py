"""The pipeline by running it: shrunk, in a clean copy of the repository, through DVC's command line."""

import json
from pathlib import Path

import pytest
from shrunk import GIT, change, clone, command, lock, stages_run

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a path with a space."""
    folder = clone(tmp_path_factory.mktemp("one space") / "clone")
    command(folder, "dvc", "repro")
    return folder


def test_it_ends_with_a_table_and_runs(project: Path) -> None:
    table = json.loads((project / "results/digits/table.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["teacher", "scratch", "triplet"]
    assert [row["n"] for row in table["rows"]] == [1, 2, 2]
    assert [answer["claim"] for answer in table["verdicts"]] == ["triplet over scratch"]
    text = (project / "results/digits/table.md").read_text()
    assert "## Ablation: margin" in text
    assert "| margin 1 | 2 | " in text
    summary = json.loads((project / "results/digits/summary.json").read_text())
    assert summary.keys() == {"teacher", "scratch", "triplet"}
    for name in ("report.html", "table.csv", "curves.csv", "figures/curves.svg", "figures/ablation-margin.svg"):
        assert (project / "results/digits" / name).stat().st_size > 0
    assert "scratch" in command(project, "dvc", "metrics", "show")


def test_mlflow_has_a_parent_a_stage_and_a_child_a_seed(project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    names = {"fetch", "tabulate", "teacher", "teacher/seed-0", "teacher (validation)", "teacher (validation)/seed-0"}
    variants = [f"margin-{margin} (validation)" for margin in (1, 5)]
    names |= {f"{variant}{seed}" for variant in variants for seed in ("", "/seed-1", "/seed-2")}
    names |= {f"{method}{seed}" for method in ("scratch", "triplet") for seed in ("", "/seed-1", "/seed-2")}
    assert set(runs) == {f"digits/{name}" for name in names}
    child, parent = runs["digits/triplet/seed-2"], runs["digits/triplet"]
    log = json.loads((project / "runs/digits/test/triplet/log.json").read_text())
    assert parent.info.end_time - parent.info.start_time == round(1000 * log["seconds"])  # training, not logging
    assert child.info.start_time == parent.info.start_time
    assert "2 of 2 seeds" in parent.data.tags["mlflow.note.content"]
    assert "**triplet** is not distinguishable from scratch." in experiment.tags["mlflow.note.content"]
    files = {file.path for file in client.list_artifacts(runs["digits/tabulate"].info.run_id)}
    assert {"report.html", "table.md", "curves.svg"} <= files
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["method.margin"] == "5.0"
    history = client.get_metric_history(child.info.run_id, "triplet")
    assert [metric.step for metric in history] == [1, 2, 3]
    rows = (project / "runs/digits/test/triplet/history.csv").read_text().splitlines()
    column = rows[0].split(",").index("triplet")
    assert [metric.value for metric in history] == [
        float(row.split(",")[column]) for row in rows if row.startswith("2,")
    ]
    artifacts = [file.path for file in client.list_artifacts(child.info.run_id)]
    assert artifacts == ["seed-2.safetensors"]


def test_logging_a_record_again_gives_no_double(project: Path) -> None:
    records = ["runs/digits/test/triplet", "runs/digits/validation/ablations/margin/margin-1"]
    printed = command(project, "python", "-m", "tripletkd.tracking", *records)
    assert printed.count("already there") == 2
    elsewhere = f"sqlite:///{project}/other.db"
    printed = command(project, "python", "-m", "tripletkd.tracking", records[0], MLFLOW_TRACKING_URI=elsewhere)
    assert "logged" in printed
    (project / "other.db").unlink()


def test_nothing_to_do_does_nothing(project: Path) -> None:
    assert stages_run(command(project, "dvc", "repro")) == []


def test_a_forced_rerun_gives_the_same_lock(project: Path) -> None:
    before = lock(project)
    assert len(stages_run(command(project, "dvc", "repro", "--force"))) == len(before)
    assert lock(project) == before


def test_what_run_export_names_leaves_as_onnx_and_again_to_the_same_bytes(project: Path) -> None:
    change(project, "run", "export", value=["teacher", "triplet"])
    names = ["export@digits-teacher", "export@digits-triplet"]
    assert sorted(stages_run(command(project, "dvc", "repro"))) == names
    before = lock(project)
    assert sorted(stages_run(command(project, "dvc", "repro", "--force", "--single-item", *names))) == names
    assert lock(project) == before
    assert (project / "exports/digits/triplet/log.json").exists()
    assert not [out for name in names for out in before[name]["outs"] if out["path"].endswith("log.json")]
    change(project, "run", "export", value=[])
    assert stages_run(command(project, "dvc", "repro")) == []


def test_only_what_a_change_touches_is_rerun(project: Path) -> None:
    change(project, "methods", "triplet", "margin", value=1)
    assert stages_run(command(project, "dvc", "repro")) == [
        "distill@digits-triplet", "evaluate@digits-triplet", "tabulate@digits",
    ]  # fmt: skip
    change(project, "run", "methods", value=["scratch", "kd", "triplet"])
    assert stages_run(command(project, "dvc", "repro")) == [
        "distill@digits-kd",
        "evaluate@digits-kd",
        "tabulate@digits",
    ]
    change(project, "run", "methods", value=["scratch", "kd"])
    assert stages_run(command(project, "dvc", "repro")) == ["tabulate@digits"]
    change(project, "ablations", "margin", value=[{"margin": 1}, {"margin": 10}])
    assert stages_run(command(project, "dvc", "repro")) == ["ablate@digits-margin", "tabulate@digits"]
    change(project, "run", "ablations", value=[])
    assert stages_run(command(project, "dvc", "repro")) == ["tabulate@digits"]
    assert "Ablation" not in (project / "results/digits/table.md").read_text()
    rows = json.loads((project / "results/digits/table.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["teacher", "scratch", "kd"]


def test_a_wrong_parameter_stops_before_anything_is_touched(project: Path) -> None:
    before = {path: path.read_bytes() for path in (project / "results").rglob("*") if path.is_file()}
    change(project, "methods", "kd", "temperature", value=-4)
    printed = command(project, "dvc", "repro", check=False)
    change(project, "methods", "kd", "temperature", value=4)
    assert "methods.kd.temperature: found -4.0, expected a value > 0" in printed
    assert "Traceback" not in printed
    assert {path: path.read_bytes() for path in (project / "results").rglob("*") if path.is_file()} == before
    assert stages_run(command(project, "dvc", "repro")) == []  # DVC puts back what it took away for the stage
    assert (project / "runs/digits/test/kd/record.json").exists()


def test_temporary_experiments_log_to_the_main_store(project: Path) -> None:
    from mlflow import MlflowClient

    command(project, "git", "add", "-A")
    command(project, *GIT, "commit", "-qm", "a baseline")
    command(project, "dvc", "exp", "run", "--temp", "-n", "wide", "-S", "methods.kd.temperature=8")
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`log.experiment` = 'wide' and tags.method = 'kd'")
    assert {run.data.params["method.temperature"] for run in runs} == {"8.0"}
    assert len(runs) == 3
    assert "wide" in command(project, "dvc", "exp", "show", "--csv")
