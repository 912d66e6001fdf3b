"""docs/library.md: what pip installs of the repository, run without the packages that only the pipeline needs."""

import email
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT

from tripletkd import methods

LOOP = {"numpy", "safetensors", "tqdm"}  # beside PyTorch
PIPELINE = {
    "PIL", "dvc", "hydra", "jinja2", "matplotlib", "mlflow", "onnx", "pandas", "scipy", "sklearn", "torchvision",
}  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip puts into an environment: the wheel, unpacked."""
    folder = tmp_path_factory.mktemp("library")
    shutil.copytree(ROOT / "tripletkd", folder / "source/tripletkd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "source", check=True, capture_output=True)
    with ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run_without(lacking: Iterable[str], program: str, library: Path) -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({sorted(lacking)}))\n"
    words = [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", block + program]
    variables = {"PYTHONPATH": str(library)}
    done = subprocess.run(words, cwd=library.parent, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_guide_s_own_step_and_every_method_work_with_pytorch_alone(library: Path) -> None:
    guide = (ROOT / "docs/library.md").read_text()
    [step] = re.findall(r"^```python in own_step.py\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    imports = "".join(f"import tripletkd.methods.{name}\n" for name in methods.names())
    program = f"""{imports}{step}
torch.manual_seed(0)
teacher, student = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
x, y = torch.randn(8, 6), torch.arange(8) % 4
losses = [step(student, teacher, optimizer, x, y, x.roll(1, 0)) for _ in range(20)]
assert losses[-1] < losses[0], losses
"""
    run_without(PIPELINE | LOOP, program, library)


def test_pip_brings_what_the_loop_needs_and_not_the_pipeline(library: Path) -> None:
    needs = email.message_from_string(next(library.glob("*.dist-info/METADATA")).read_text()).get_all("Requires-Dist")
    brought = {re.split(r"[^\w-]", need)[0] for need in needs or [] if "extra ==" not in need}
    assert brought >= LOOP | {"torch"} and not brought & {"dvc", "mlflow", "hydra-core", "matplotlib", "scikit-learn"}
    parts = ("job", "loop", "checkpoint", "run_record")
    run_without(PIPELINE, "".join(f"import tripletkd.training.{part}\n" for part in parts), library)
