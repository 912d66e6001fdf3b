"""What is recorded of the machine tells apart what gives other bits."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import json, torch; from tripletkd.provenance import environment; torch.manual_seed(1)
x, w = torch.randn(8, 3, 32, 32), torch.randn(32, 3, 3, 3)
y = torch.nn.functional.conv2d(x, w, padding=1).log_softmax(1)
print(json.dumps([environment("cpu"), y.double().sum().item().hex()]))
"""


def seen(**variables: str) -> tuple[dict[str, object], str]:
    """The environment of a process with these variables, and a number that it computes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    environment, number = json.loads(done.stdout)
    return environment, number


@pytest.mark.parametrize("variables", [{"ATEN_CPU_CAPABILITY": "default"}, {"ONEDNN_MAX_CPU_ISA": "SSE41"}], ids=str)
def test_other_instructions_are_another_environment(variables: dict[str, str]) -> None:
    plain, changed = seen(), seen(**variables)
    assert plain == seen()
    assert plain[0] != changed[0], "a table of both would not say so"
    [(name, value)] = variables.items()
    assert changed[0]["instructions_from"] == f"{name}={value}" and plain[0]["instructions_from"] is None


def test_the_processor_and_what_computes_are_named() -> None:
    environment, _ = seen()
    assert all(environment[name] for name in ("processor", "instructions", "blas", "threads"))
