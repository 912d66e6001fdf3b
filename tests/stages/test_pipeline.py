"""The pipeline by running it: shrunk, in a clean copy of the repository, through DVC's command line."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from shrunk import ENVIRONMENT, GIT, change, clone, command, lock, pretend_environment, stages_run

from stages._command import EX_TEMPFAIL
from tripletkd.training.run_record import read_history

pytestmark = pytest.mark.smoke

TRIPLET = "digits/test/triplet"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def when_trained(project: Path) -> dict[str, str]:
    """Of each seed, as its log says: the log's bytes, which a training writes anew."""
    logs = project / "logs"
    return {str(path.relative_to(logs).with_suffix("")): path.read_text() for path in logs.rglob("seed-*.json")}


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
    logs = [json.loads((project / f"logs/{TRIPLET}/seed-{seed}.json").read_text()) for seed in (1, 2)]
    seconds = max(log["seconds"] for log in logs)
    assert parent.info.end_time - parent.info.start_time == round(1000 * seconds)  # training, not logging
    assert child.info.start_time == parent.info.start_time
    assert "2 of 2 seeds" in parent.data.tags["mlflow.note.content"]
    assert "**triplet** is not distinguishable from scratch." in experiment.tags["mlflow.note.content"]
    files = {file.path for file in client.list_artifacts(runs["digits/tabulate"].info.run_id)}
    assert {"report.html", "table.md", "curves.svg"} <= files
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["method.margin"] == "5.0"
    history = client.get_metric_history(child.info.run_id, "triplet")
    assert [metric.step for metric in history] == [1, 2, 3]
    rows = read_history(project / f"runs/{TRIPLET}/seed-2/history.csv")
    assert [metric.value for metric in history] == [row["triplet"] for row in rows]
    artifacts = {file.path for file in client.list_artifacts(child.info.run_id)}
    assert artifacts == {"weights.safetensors", "history.csv", "record.json"}


def test_logging_a_record_again_gives_no_double(project: Path) -> None:
    relog = ("python", "-m", "tripletkd.tracking.mlflow")
    printed = command(project, *relog, "runs", "exports", "results/digits").splitlines()
    folders = [f"runs/digits/{split}/teacher" for split in ("test", "validation")]
    folders += ["runs/digits/test/scratch", "runs/digits/test/triplet", "results/digits"]
    folders += [f"runs/digits/validation/ablations/margin/margin-{margin}" for margin in (1, 5)]
    assert sorted(printed) == sorted(f"{folder}: already there" for folder in folders)
    elsewhere = f"sqlite:///{project}/other.db"
    printed = [command(project, *relog, f"runs/{TRIPLET}", MLFLOW_TRACKING_URI=elsewhere) for _ in range(2)]
    assert printed == [f"runs/{TRIPLET}: logged\n", f"runs/{TRIPLET}: already there\n"]
    (project / "other.db").unlink()


def test_nothing_to_do_does_nothing(project: Path) -> None:
    assert stages_run(command(project, "dvc", "repro")) == []


def test_a_forced_rerun_keeps_finished_seeds_and_gives_the_same_lock(project: Path) -> None:
    before, trained = lock(project), when_trained(project)
    printed = command(project, "dvc", "repro", "--force")
    assert len(stages_run(printed)) == len(before)
    assert "digits/triplet: seeds 1, 2 are there, as asked for; --retrain trains them anew" in printed
    assert printed.count("are there, as asked for") == 6  # two teachers, two methods, two variants
    assert lock(project) == before and when_trained(project) == trained


@pytest.mark.parametrize(
    ("stage", "words", "runs"),
    [
        ("train_teacher", ("split=test",), ["test/teacher"]),
        ("distill", ("method=scratch",), ["test/scratch"]),
        ("distill", ("method=triplet",), ["test/triplet"]),
        (
            "ablate",
            ("ablation=margin", "split=validation"),
            [f"validation/ablations/margin/margin-{margin}" for margin in (1, 5)],
        ),
    ],
    ids=["teacher", "scratch", "triplet", "ablation"],
)
def test_trained_anew_it_has_the_same_bytes(stage: str, words: tuple[str, ...], runs: list[str], project: Path) -> None:
    before, trained = files(project / "runs"), when_trained(project)
    printed = command(project, "python", "-m", f"stages.{stage}", "suite=digits", *words, "--retrain")
    now = when_trained(project)
    anew = {name for name in now if now[name] != trained[name]}
    assert anew == {name for name in now if name.rpartition("/")[0] in {f"digits/{run}" for run in runs}}
    assert printed.count("--retrain; trained anew") == len(anew) > 0
    assert files(project / "runs") == before
    assert "Data and pipelines are up to date." in command(project, "dvc", "status")


def test_what_is_stopped_says_paused_and_goes_on_to_the_same_bytes(project: Path) -> None:
    before = files(project / "runs")
    shutil.rmtree(project / f"runs/{TRIPLET}")
    words = ["python", "-m", "stages.distill", "suite=digits", "method=triplet"]
    stopped = subprocess.run(
        [*words, "--max-minutes", "0"], cwd=project, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert stopped.returncode == EX_TEMPFAIL == 75
    [checkpoint] = (project / f"checkpoints/{TRIPLET}").iterdir()
    named = checkpoint.relative_to(project)
    assert stopped.stderr.splitlines()[-1] == (
        f"paused: stopped at epoch 1 of 3 (--max-minutes); the same command goes on from {named}"
    )
    assert f"{named}: going on after epoch 1" in command(project, *words)
    assert files(project / "runs") == before and not checkpoint.exists()


def test_verify_trains_a_run_again_and_names_a_seed_of_other_bytes(project: Path) -> None:
    words = ("python", "-m", "stages.verify", "suite=digits", "method=triplet")
    before = files(project / "runs")
    assert command(project, *words).splitlines()[-1] == "digits/triplet: 2 seeds trained again, the same bytes"
    one, other = (project / f"runs/{TRIPLET}/seed-{seed}/weights.safetensors" for seed in (1, 2))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    place = f"runs/{TRIPLET}/seed-1/weights.safetensors"
    assert f"error: {place}: sha256 is " in command(project, *words, check=False)
    record = one.with_name("record.json")
    text = record.read_text()
    record.write_text(text.replace(sha256_of(kept), sha256_of(one.read_bytes())))
    printed = command(project, *words, check=False)
    assert f"error: {place}: other bytes when trained again" in printed and "seed-2/" not in printed
    one.write_bytes(kept)
    record.write_text(text)
    assert files(project / "runs") == before


def test_seeds_are_added_and_taken_away_one_by_one(project: Path) -> None:
    command(project, "git", "add", "-A")
    command(project, *GIT, "commit", "-qm", "two seeds")
    before, kept, trained = lock(project), files(project / "runs"), when_trained(project)
    touched = ["ablate@digits-margin", "tabulate@digits"]
    touched += [f"{stage}@digits-{method}" for stage in ("distill", "evaluate") for method in ("scratch", "triplet")]

    change(project, "suites", "digits", "seeds", value=[1, 2, 3])
    assert sorted(stages_run(command(project, "dvc", "repro"))) == sorted(touched)
    now = when_trained(project)
    added = {name for name in now if now[name] != trained.get(name)}
    assert added == {name for name in now if name.endswith("/seed-3")} and len(added) == 4
    for seed, group in ((2, [1, 2]), (3, [3])):
        record = json.loads((project / f"runs/{TRIPLET}/seed-{seed}/record.json").read_text())
        assert record["trained_with"] == group
    table = json.loads((project / "results/digits/table.json").read_text())
    assert [row["n"] for row in table["rows"]] == [1, 3, 3]

    change(project, "suites", "digits", "seeds", value=[1, 3])
    printed = command(project, "dvc", "repro")
    assert sorted(stages_run(printed)) == sorted(touched)
    assert f"runs/{TRIPLET}/seed-2: no part of this run any more; moved to" in printed
    assert when_trained(project) == now  # the log of a seed outlives it: it may come back
    assert sorted(path.name for path in (project / f"runs/{TRIPLET}").iterdir()) == ["seed-1", "seed-3"]

    command(project, "git", "checkout", "--", "params.yaml", "dvc.lock", "results")
    command(project, "dvc", "checkout")
    assert lock(project) == before and files(project / "runs") == kept
    assert stages_run(command(project, "dvc", "repro")) == []


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
    assert (project / "runs/digits/test/kd/seed-1/record.json").exists()


@pytest.mark.fault
def test_the_way_back_from_a_run_on_another_split_is_exact(project: Path) -> None:
    command(project, "git", "add", "-A")
    command(project, *GIT, "commit", "-qm", "a table")
    before = files(project / "results")
    words = ("run.split=validation", "run.ablation_split=test", "run.ablations=[margin]")
    command(project, "dvc", "exp", "run", *(f"--set-param={word}" for word in words))
    table = (project / "results/digits/table.md").read_text()
    assert "| validation accuracy, % |" in table and "Measured on the test images" in table
    command(project, "git", "restore", "params.yaml")
    assert "tabulate@digits" in stages_run(command(project, "dvc", "repro"))
    assert {name: files(project / "results")[name] for name in before} == before
    command(project, "dvc", "exp", "run", *(f"--set-param={word}" for word in words))
    command(project, "make", "restore")
    assert files(project / "results") == before
    assert command(project, "git", "status", "--porcelain") == ""
    assert "Data and pipelines are up to date." in command(project, "dvc", "status")
    assert stages_run(command(project, "dvc", "repro")) == []


def test_temporary_experiments_log_to_the_main_store(project: Path) -> None:
    from mlflow import MlflowClient

    command(project, "git", "add", "-A")
    command(project, *GIT, "commit", "-q", "--allow-empty", "-m", "a baseline")
    command(project, "dvc", "exp", "run", "--temp", "-n", "wide", "-S", "methods.kd.temperature=8")
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`log.experiment` = 'wide' and tags.method = 'kd'")
    assert {run.data.params["method.temperature"] for run in runs} == {"8.0"}
    assert len(runs) == 3
    assert "wide" in command(project, "dvc", "exp", "show", "--csv")


@pytest.mark.parametrize(
    ("word", "answer"), [("run.methods=scratch", "'Value' object is not iterable"), ("method.kd.kl=1", "not in struct")]
)
def test_what_dvc_answers_to_a_habit_stands_in_the_guide(project: Path, word: str, answer: str) -> None:
    assert answer in command(project, "dvc", "exp", "run", "-S", word, check=False)
    assert answer in (ROOT / "docs/working.md").read_text()


def test_experiments_fit_a_terminal_and_their_pictures_need_no_network(project: Path) -> None:
    pretend_environment(project)
    change(project, "run", "methods", value=["scratch", "kd"])
    command(project, "dvc", "repro")
    command(project, "git", "add", "-A")
    command(project, *GIT, "commit", "-q", "--allow-empty", "-m", "a baseline")
    command(project, "dvc", "exp", "run", "-n", "narrow", "-S", "methods.kd.kl=20")
    lines = command(project, "make", "experiments", COLUMNS="100").splitlines()
    assert lines[1].split() == ["Experiment", "Created", "kd", "methods.kd.kl"]
    assert [line.split()[-1] for line in lines if "narrow" in line] == ["20"]
    assert max(map(len, lines)) <= 100
    command(project, "dvc", "plots", "diff", "HEAD")
    page = (project / "dvc_plots/index.html").read_text()
    assert page.count('src="static/') >= 10 and "http" not in page
    assert "dvc_plots" not in command(project, "git", "status", "--porcelain", "--untracked-files=all")
    assert command(project, "make", "repro").splitlines()[-1] == "the report: results/digits/report.html"
