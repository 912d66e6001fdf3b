"""docs/library.md: every loss in a loop of one's own, in an environment with PyTorch and NumPy alone."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

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
LACKING = sorted(
    module
    for module, packages in metadata.packages_distributions().items()
    if not {p.replace("_", "-").lower() for p in packages} & (brought_along("torch") | brought_along("numpy"))
)


def run_without_the_rest(program: str, folder: Path) -> str:
    """Run a program for which no other package than these two, and what they bring along, can be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({LACKING}))\n"
    words = [sys.executable, "-c", block + program]
    done = subprocess.run(words, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_guide_s_own_step_learns_with_pytorch_alone(tmp_path: Path) -> None:
    [step] = re.findall(r"^```python in own_step.py\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    program = f"""{step}
torch.manual_seed(0)
teacher, student = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
x, y = torch.randn(8, 6), torch.arange(8) % 4
losses = [step(student, teacher, optimizer, x, y, x.roll(1, 0)) for _ in range(20)]
assert losses[-1] < losses[0], losses
"""
    assert run_without_the_rest(program, tmp_path) == ""


def test_every_method_and_the_loop_s_data_are_imported_with_pytorch_and_numpy_alone(tmp_path: Path) -> None:
    imports = "".join(f"import tripletkd.methods.{name}\n" for name in methods.names())
    run_without_the_rest(f"{imports}import tripletkd.data.batches\n", tmp_path)


def test_what_is_lacking_is_noticed(tmp_path: Path) -> None:
    assert {"yaml", "sklearn", "tqdm", "safetensors", "torchvision"} <= set(LACKING)
    with pytest.raises(AssertionError, match="tqdm"):
        run_without_the_rest("import tqdm", tmp_path)
