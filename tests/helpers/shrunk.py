"""The pipeline shrunk to minutes, in a folder of its own, and how to run commands there: for tests that run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "MAKE"))},
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "MLFLOW_TRACKING_URI": "nowhere:",  # nothing is logged; LOGGED logs
}
LOGGED: dict[str, Any] = {"MLFLOW_TRACKING_URI": ""}  # in the project's own store
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")


def command(folder: Path, *words: str, check: bool = True, **variables: str) -> str:
    """Run it there; both of its outputs as one text."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=ENVIRONMENT | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout
    assert check or done.returncode != 0, done.stdout
    return done.stdout


def change(folder: Path, *keys: str, value: Any) -> None:
    """Edit params.yaml as a person would."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    block = params
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def pretend_environment(folder: Path) -> None:
    """Let make find its environment built: the programs are on the PATH."""
    for place in (".venv/.synced", ".uv/bin/uv"):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).touch()


def stages_run(output: str) -> list[str]:
    """All but `code`, which always runs."""
    names = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
    return [name for name in names if name != "code"]


def lock(folder: Path) -> Any:
    return yaml.safe_load((folder / "dvc.lock").read_text())["stages"]


def shrink(folder: Path) -> None:
    """To two methods, two seeds, three epochs, and an ablation of two variants."""
    change(folder, "ablations", "margin", value=[{"margin": 1}, {"margin": 5}])
    change(folder, "run", "ablations", value=["margin"])
    change(folder, "run", "methods", value=["scratch", "triplet"])
    change(folder, "suites", "digits", "seeds", value=[1, 2])
    change(folder, "suites", "digits", "teacher_floor", value=0)
    change(folder, "suites", "digits", "evaluate_every", value=3)
    change(folder, "suites", "digits", "recipe", "epochs", value=3)
    change(folder, "suites", "digits", "recipe", "schedule", "decay_epochs", value=[2])


def clone(folder: Path) -> Path:
    """This working tree, shrunk, as a git repository without results."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("results/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shrink(folder)
    command(folder, "git", "init", "-q")
    command(folder, "git", "add", "-A")
    command(folder, *GIT, "commit", "-qm", "shrunk")
    return folder


def with_faults(folder: Path, rank: str = "") -> str:
    """A PYTHONPATH with which FAULT and FAULT_IN work in every Python process, or in torchrun's of that number."""
    text = f"import os, faults\nif os.environ.get('RANK', '') == '{rank}':\n    faults.install_from_environment()\n"
    (folder / "sitecustomize.py").write_text(text)
    return os.pathsep.join(map(str, (folder, ROOT / "tests/helpers")))
