"""What is recorded of the machine tells apart what gives other bits."""

import json
import subprocess
import sys
from functools import cache

import pytest
from conftest import ROOT

PROGRAM = """
import json, torch; from tripletkd.provenance import environment; torch.manual_seed(1)
x, w = torch.randn(8, 3, 32, 32), torch.randn(32, 3, 3, 3)
y = torch.nn.functional.conv2d(x, w, padding=1).log_softmax(1)
print(json.dumps([environment("cpu"), y.double().sum().item().hex()]))
"""


@cache
def seen(**variables: str) -> tuple[dict[str, object], str]:
    """The environment of a process with these variables, and a number that it computes."""
    words = [sys.executable, "-c", PROGRAM]
    environment, number = json.loads(subprocess.check_output(words, cwd=ROOT, env=variables, text=True))
    return environment, number


@pytest.mark.parametrize(("name", "value"), [("ATEN_CPU_CAPABILITY", "default"), ("ONEDNN_MAX_CPU_ISA", "SSE41")])
def test_other_instructions_are_another_environment(name: str, value: str) -> None:
    plain, changed = seen()[0], seen(**{name: value})[0]
    assert all(plain[key] for key in ("processor", "instructions", "blas", "threads"))
    assert plain != changed, "a table of both would not say so"
    assert changed["instructions_from"] == f"{name}={value}" and plain["instructions_from"] is None
