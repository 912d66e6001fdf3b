"""docs/library.md: what pip installs of the repository, in environments that lack what the pipeline needs."""

import email
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT

from tripletkd import methods

GUIDE = (ROOT / "docs/library.md").read_text()


def brought_along(package: str) -> set[str]:
    """A package, and those that are installed with it, without what its extras add."""
    found, pending = set[str](), [package]
    while pending:
        name = pending.pop().replace("_", "-").lower()
        if name not in found:
            found.add(name)
            needed = metadata.requires(name) if name in INSTALLED else None
            pending += [re.split(r"[^\w-]", need)[0] for need in needed or [] if "extra ==" not in need]
    return found


INSTALLED = {(d.metadata["Name"] or "").replace("_", "-").lower() for d in metadata.distributions()}


def lacking(needed: Iterable[str]) -> list[str]:
    """The modules that are not there where only the needed packages are installed, and what they bring along."""
    there = {name for package in needed for name in brought_along(package)}
    modules = metadata.packages_distributions().items()
    return sorted(module for module, found in modules if not {p.replace("_", "-").lower() for p in found} & there)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip puts into an environment: the wheel, unpacked."""
    folder = tmp_path_factory.mktemp("library")
    source = folder / "source"
    shutil.copytree(ROOT / "tripletkd", source / "tripletkd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run_with(needed: Iterable[str], program: str, library: Path) -> str:
    """Run a program where the library is installed, and of other packages only those that are needed."""
    block = f"import sys; sys.modules.update(dict.fromkeys({lacking(needed)}))\n"
    words = [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", block + program]
    variables = {"PYTHONPATH": str(library)}
    done = subprocess.run(words, cwd=library.parent, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def requirements(library: Path) -> list[str]:
    """The packages that pip installs beside the library."""
    [path] = library.glob("*.dist-info/METADATA")
    needs = email.message_from_string(path.read_text()).get_all("Requires-Dist") or []
    return [re.split(r"[^\w-]", need)[0] for need in needs if "extra ==" not in need]


def test_the_guide_s_own_step_learns_with_pytorch_alone(library: Path) -> None:
    [step] = re.findall(r"^```python in own_step.py\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    program = f"""{step}
torch.manual_seed(0)
teacher, student = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
x, y = torch.randn(8, 6), torch.arange(8) % 4
losses = [step(student, teacher, optimizer, x, y, x.roll(1, 0)) for _ in range(20)]
assert losses[-1] < losses[0], losses
"""
    assert run_with(["torch"], program, library) == ""


def test_every_method_is_imported_with_pytorch_alone(library: Path) -> None:
    run_with(["torch"], "".join(f"import tripletkd.methods.{name}\n" for name in methods.names()), library)


def test_pip_brings_what_the_loop_needs_and_not_the_pipeline(library: Path) -> None:
    assert not {"dvc", "mlflow", "hydra-core", "matplotlib", "scikit-learn"} & set(requirements(library))
    parts = ("job", "loop", "checkpoint", "run_record")
    run_with(requirements(library), "".join(f"import tripletkd.training.{part}\n" for part in parts), library)


def test_what_is_lacking_is_noticed(library: Path) -> None:
    assert {"yaml", "sklearn", "tqdm", "safetensors", "torchvision", "numpy"} <= set(lacking(["torch"]))
    with pytest.raises(AssertionError, match="tqdm"):
        run_with(["torch", "numpy"], "import tqdm", library)
