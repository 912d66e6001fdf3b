"""The pipeline on a real Slurm cluster of two nodes, which share this machine: shrunk, through `tripletkd submit`."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from guides import follow
from shrunk import GIT, LOGGED, change, clone, command, lock, pretend_environment
from slurm import MISSING, Cluster, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: apt-get install munge slurmctld slurmd"),
]
STAGES = [
    "fetch@digits", "fetch_weights@digits", "train_teacher@digits-test", "train_teacher@digits-validation",
    "distill@digits-triplet", "evaluate@digits-triplet", "ablate@digits-margin", "tabulate@digits",
]  # fmt: skip
TRIPLET = "digits/test/triplet"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cluster works, on a path with a space."""
    folder = clone(tmp_path_factory.mktemp("one space") / "clone")
    # A seed alone has the bits that it has among others
    commit(folder, (("run", "methods"), ["triplet"]), (("run", "fuse_seeds"), "never"))
    return folder


@pytest.fixture(scope="module")
def local(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another clone, for `dvc repro`."""
    folder = tmp_path_factory.mktemp("local") / "clone"
    command(project, "git", "clone", "-q", str(project), str(folder))
    return folder


def commit(folder: Path, *changes: tuple[tuple[str, ...], Any]) -> None:
    """Commit changes of params.yaml, and forget what jobs have printed."""
    for keys, value in changes:
        change(folder, *keys, value=value)
    command(folder, "git", "add", "-A")
    command(folder, *GIT, "commit", "-qm", "as it is to be run")
    shutil.rmtree(folder / "logs/slurm", ignore_errors=True)


def submit(cluster: Cluster, project: Path, *options: str) -> dict[str, str]:
    """The numbers of the jobs that were submitted, by name."""
    printed = command(
        project, "python", "-m", "tripletkd.cli", "submit", *options, SLURM_CONF=cluster.configuration, **LOGGED
    )
    return {name: number for number, name in re.findall(r"^job (\d+): ([^ ,]+)(?:,.*)?$", printed, re.MULTILINE)}


def printed_by(project: Path, name: str) -> str:
    return "".join(path.read_text() for path in sorted((project / "logs/slurm").glob(f"{name}.*out")))


def contents(folder: Path) -> dict[str, bytes]:
    """Of runs and results."""
    paths = [path for name in ("runs", "results") for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def mlflow_runs(folder: Path) -> list[tuple[str | None, str, dict[str, float]]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return sorted(((run.info.run_name, run.info.status, run.data.metrics) for run in found), key=str)


def assert_as_after_a_local_repro(project: Path, local: Path) -> None:
    command(local, "dvc", "repro", **LOGGED)
    assert lock(project) == lock(local)
    assert contents(project) == contents(local)
    command(local, "python", "-m", "tripletkd.tracking", **LOGGED)  # what nobody has waited for
    assert mlflow_runs(project) == mlflow_runs(local)
    assert json.loads(command(project, "dvc", "status", "--json")) == {"code": ["always changed"]}


def test_twice_submits_once_and_a_job_refuses_what_was_changed_meanwhile(cluster: Cluster, project: Path) -> None:
    jobs = submit(cluster, project, "--hold")
    assert [*jobs] == [*STAGES, "relog"]
    assert submit(cluster, project) == {}
    assert len(cluster.jobs()) == len(jobs)
    params = (project / "params.yaml").read_text()
    change(project, "methods", "triplet", "margin", value=4)
    cluster.ask("scontrol", "release", *jobs.values())
    wait_for(lambda: not cluster.jobs())
    assert printed_by(project, "fetch@digits").startswith("error: params.yaml: changed since this job was submitted")
    assert not printed_by(project, "train_teacher@digits-test") and not (project / "data").exists()
    (project / "params.yaml").write_text(params)


def test_the_guide_ends_as_a_local_repro_does(cluster: Cluster, project: Path, local: Path) -> None:
    pretend_environment(project)
    follow(project, (ROOT / "docs/cluster.md").read_text(), "Slurm", SLURM_CONF=cluster.configuration, **LOGGED)
    wait_for(lambda: not cluster.jobs(), 300)
    assert_as_after_a_local_repro(project, local)
    assert "seeds 1, 2 are there, as asked for" in printed_by(project, "distill@digits-triplet")
    assert submit(cluster, project) == {}  # nothing is due


def test_what_is_stopped_and_what_loses_its_node_goes_on(cluster: Cluster, project: Path, local: Path) -> None:
    student = {"network": "paper_student", "recipe": {"epochs": 150}}
    run = {"ablations": [], "fuse_seeds": "auto", "checkpoint_minutes": 0.01}
    for folder in (project, local):
        commit(folder, (("suites", "digits", "student"), student), *((("run", key), run[key]) for key in run))
    job = submit(cluster, project)["distill@digits-triplet"]

    def printed() -> str:
        return printed_by(project, "distill@digits-triplet")

    wait_for(lambda: [*project.glob(f"checkpoints/{TRIPLET}/*.safetensors")])
    cluster.ask("scancel", "--batch", "--signal=TERM", job)
    wait_for(lambda: "paused: stopped at epoch" in printed())
    wait_for(lambda: printed().count("going on after epoch") == 1)
    node = cluster.ask("squeue", "--noheader", "--format=%N", f"--job={job}").strip()
    cluster.kill_node(node)
    wait_for(lambda: printed().count("going on after epoch") == 2)
    assert cluster.ask("squeue", "--noheader", "--format=%N", f"--job={job}").strip() != node
    wait_for(lambda: not cluster.jobs(), 180)
    cluster.start_node(node)
    assert_as_after_a_local_repro(project, local)


def test_a_wrong_parameter_cancels_what_depends_on_it(cluster: Cluster, project: Path) -> None:
    before = lock(project)
    commit(project, (("suites", "digits", "teacher_floor"), 100))
    jobs = submit(cluster, project)
    assert [*jobs] == ["distill@digits-triplet", "evaluate@digits-triplet", "tabulate@digits", "relog"]
    wait_for(lambda: not cluster.jobs())
    assert "error: suites.digits.teacher_floor: the teacher reaches" in printed_by(project, "distill@digits-triplet")
    assert not printed_by(project, "evaluate@digits-triplet") and not printed_by(project, "tabulate@digits")
    assert lock(project) == before


def test_a_task_of_an_array_is_queued_again_alone_and_not_after_it_was_cancelled(
    cluster: Cluster, project: Path
) -> None:
    changes = {("teacher_floor",): 0, ("seeds",): [3, 4], ("student", "recipe", "epochs"): 600}
    commit(project, *((("suites", "digits", *keys), value) for keys, value in changes.items()))
    before = lock(project)
    jobs = submit(cluster, project, "--seed-array")
    array = jobs["distill@digits-triplet.seeds"]

    def printed(seed: int) -> str:
        return printed_by(project, f"distill@digits-triplet.seeds.{array}_{seed}")

    wait_for(lambda: len([*project.glob(f"checkpoints/{TRIPLET}/seeds-*.safetensors")]) == 2)
    cluster.ask("scancel", "--batch", "--signal=TERM", f"{array}_4")  # whose number is the array's
    wait_for(lambda: "going on after epoch" in printed(4))
    assert printed(4).count("paused: stopped at epoch") == 1 and "paused" not in printed(3)
    cluster.ask("scancel", *jobs.values())
    wait_for(lambda: not cluster.jobs())
    assert printed(4).count("paused: stopped at epoch") == 2
    after = lock(project)
    assert after.pop("fetch_weights@digits") != before.pop("fetch_weights@digits")  # it was done before the array
    assert after == before


def test_what_sbatch_refuses_is_a_message(cluster: Cluster, project: Path) -> None:
    words = ("python", "-m", "tripletkd.cli", "submit", "--partition=nowhere")
    printed = command(project, *words, check=False, SLURM_CONF=cluster.configuration)
    assert printed.startswith("error: sbatch: error: invalid partition")
    assert "Traceback" not in printed and not cluster.jobs()
