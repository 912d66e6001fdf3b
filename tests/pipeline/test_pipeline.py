"""The pipeline by running it: shrunk, in a clean copy of the repository, through DVC's command line."""

import json
import re
from pathlib import Path

import pytest
from shrunk import GIT, change, clone, command, lock, pretend_environment, stages_run

pytestmark = pytest.mark.smoke

TRIPLET = "digits/test/triplet"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def when_trained(project: Path) -> dict[str, str]:
    """Of each seed, as its log says: the log's bytes, which a training writes anew."""
    logs = project / "logs"
    return {str(path.relative_to(logs).with_suffix("")): path.read_text() for path in logs.rglob("seed-*.json")}


def commit(project: Path) -> None:
    command(project, "git", "add", "-A")
    command(project, *GIT, "commit", "-q", "--allow-empty", "-m", "a baseline")


def table(project: Path) -> list[tuple[str, int]]:
    rows = json.loads((project / "results/digits/table.json").read_text())["rows"]
    return [(row["method"], row["n"]) for row in rows]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a path with a space."""
    folder = clone(tmp_path_factory.mktemp("one space") / "clone")
    command(folder, "dvc", "repro")
    return folder


def test_it_ends_with_a_table_and_a_second_time_does_nothing(project: Path) -> None:
    assert table(project) == [("teacher", 1), ("scratch", 2), ("triplet", 2)]
    assert "| margin 1 | 2 | " in (project / "results/digits/table.md").read_text()
    summary = json.loads((project / "results/digits/summary.json").read_text())
    assert summary.keys() == {"teacher_percent", "scratch_percent", "triplet_percent"}
    for name in ("report.html", "table.csv", "curves.csv", "figures/curves.svg", "figures/ablation-margin.svg"):
        assert (project / "results/digits" / name).stat().st_size > 0
    assert "scratch" in command(project, "dvc", "metrics", "show")
    assert stages_run(command(project, "dvc", "repro")) == []


def test_where_a_run_was_computed_is_told_and_hashed_by_nobody(project: Path) -> None:
    told = json.loads((project / "results/digits/environment.json").read_text())
    [here] = told["environments"]
    assert here["torch"] and here["device"]
    assert told["seeds"]["test/triplet"].keys() == {"1", "2"} and "validation/teacher" in told["seeds"]
    results = [path for path in (project / "results").rglob("*") if path.is_file() and path.name != "environment.json"]
    hashed = b"".join([*files(project / "runs").values(), *(path.read_bytes() for path in results)])
    assert here["device"].encode() not in hashed and here["processor_flags"].encode() not in hashed


def test_a_forced_rerun_keeps_finished_seeds_and_gives_the_same_lock(project: Path) -> None:
    before, trained = lock(project), when_trained(project)
    printed = command(project, "dvc", "repro", "--force")
    assert len(stages_run(printed)) == len(before) - 1
    assert printed.count("are there, as asked for") == 6  # two teachers, two methods, two variants
    assert re.search(r"measured/test/triplet.json: [\d.]+ % of \d+ test images, the mean of 2 seed\(s\)\n", printed)
    assert lock(project) == before and when_trained(project) == trained


def test_trained_anew_everything_has_the_same_bytes(project: Path) -> None:
    before, trained = files(project / "runs"), when_trained(project)
    for words in (
        ("train_teacher", "split=test"),
        ("distill", "method=scratch"),
        ("distill", "method=triplet"),
        ("ablate", "ablation=margin", "split=validation"),
    ):
        command(project, "python", "-m", f"stages.{words[0]}", "suite=digits", *words[1:], "--retrain")
    now = when_trained(project)
    assert {name for name in now if now[name] == trained[name]} == {"digits/validation/teacher/seed-0"}
    assert files(project / "runs") == before


def test_seeds_are_added_and_taken_away_one_by_one(project: Path) -> None:
    commit(project)
    before, kept, trained = lock(project), files(project / "runs"), when_trained(project)
    touched = {"ablate@digits-margin", "tabulate@digits"}
    touched |= {f"{stage}@digits-{method}" for stage in ("distill", "evaluate") for method in ("scratch", "triplet")}

    change(project, "suites", "digits", "seeds", value=[1, 2, 3])
    assert set(stages_run(command(project, "dvc", "repro"))) - {"fetch_weights@digits"} == touched
    now = when_trained(project)
    added = {name for name in now if now[name] != trained.get(name)}
    assert added == {name for name in now if name.endswith("/seed-3")} and len(added) == 4
    assert table(project) == [("teacher", 1), ("scratch", 3), ("triplet", 3)]

    change(project, "suites", "digits", "seeds", value=[1, 3])
    printed = command(project, "dvc", "repro")
    assert set(stages_run(printed)) - {"fetch_weights@digits"} == touched
    assert f"runs/{TRIPLET}/seed-2: no part of this run any more; moved to" in printed
    assert when_trained(project) == now  # the log of a seed outlives it: it may come back

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
    change(project, "run", "export", value=[])
    assert stages_run(command(project, "dvc", "repro")) == []


def test_only_what_a_change_touches_is_rerun(project: Path) -> None:
    change(project, "methods", "triplet", "margin", value=1)
    triplet = ["distill@digits-triplet", "evaluate@digits-triplet", "tabulate@digits"]
    assert stages_run(command(project, "dvc", "repro")) == triplet
    change(project, "run", "methods", value=["scratch", "kd"])
    kd = ["distill@digits-kd", "evaluate@digits-kd", "tabulate@digits"]
    assert stages_run(command(project, "dvc", "repro")) == kd
    change(project, "ablations", "margin", value=[{"margin": 1}, {"margin": 10}])
    assert stages_run(command(project, "dvc", "repro")) == ["ablate@digits-margin", "tabulate@digits"]
    change(project, "run", "ablations", value=[])
    assert stages_run(command(project, "dvc", "repro")) == ["tabulate@digits"]
    assert "Ablation" not in (project / "results/digits/table.md").read_text()
    assert table(project) == [("teacher", 1), ("scratch", 2), ("kd", 2)]


@pytest.mark.fault
def test_the_way_back_from_a_run_on_another_split_is_exact(project: Path) -> None:
    pretend_environment(project)
    commit(project)
    before = files(project / "results")
    words = ("run.split=validation", "run.ablation_split=test", "run.ablations=[margin]")
    command(project, "dvc", "exp", "run", *(f"--set-param={word}" for word in words))
    assert "| validation accuracy, % |" in (project / "results/digits/table.md").read_text()
    edited = (project / "params.yaml").read_text()
    (project / "results/digits/notes.txt").write_text("mine")
    command(project, "make", "restore")
    assert [path.read_text() for path in project.glob("checkpoints/before-restore.*/results/digits/notes.txt")] == [
        "mine"
    ]
    assert edited in [path.read_text() for path in project.glob("checkpoints/params.*.yaml")]
    assert files(project / "results") == before
    assert command(project, "git", "status", "--porcelain") == ""
    assert stages_run(command(project, "dvc", "repro")) == []


@pytest.mark.fault
def test_a_misspelled_key_ends_the_pipeline_before_anything_is_removed(project: Path) -> None:
    """DVC removes what a stage made before the stage can refuse."""
    commit(project)
    change(project, "suites", "digits", "recipe", "epoch", value=9)
    printed = command(project, "dvc", "repro", check=False)
    assert "recipe.epoch: unknown key" in printed and stages_run(printed) == []
    assert command(project, "git", "status", "--porcelain") == " M params.yaml\n"
    command(project, "git", "checkout", "--", "params.yaml")
    assert stages_run(command(project, "dvc", "repro")) == []


def test_experiments_fit_a_terminal_and_their_pictures_need_no_network(project: Path) -> None:
    commit(project)
    command(project, "dvc", "exp", "run", "-n", "narrow", "-S", "methods.kd.kl=20")
    lines = command(project, "make", "experiments", COLUMNS="100").splitlines()
    assert lines[1].split() == ["Experiment", "Created", "kd_percent", "methods.kd.kl"]
    assert [line.split()[-1] for line in lines if "narrow" in line] == ["20"]
    assert max(map(len, lines)) <= 100
    command(project, "dvc", "plots", "diff", "HEAD")
    page = (project / "dvc_plots/index.html").read_text()
    assert page.count('src="static/') >= 10 and "http" not in page
    assert "dvc_plots" not in command(project, "git", "status", "--porcelain", "--untracked-files=all")


def test_a_stage_of_another_python_says_what_to_type(project: Path) -> None:
    printed = command(project, "python", "-S", "-m", "stages.distill", "suite=digits", check=False)
    assert printed.startswith("error: ") and "source .venv/bin/activate" in printed
