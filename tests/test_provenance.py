"""What is recorded of the machine tells apart what gives other bits."""

import json
import subprocess
import sys

from conftest import ROOT

PROGRAM = "import json; from tripletkd.provenance import environment; print(json.dumps(environment('cpu')))"


def seen(**variables: str) -> dict[str, object]:
    """The environment of a process with these variables."""
    found: dict[str, object] = json.loads(
        subprocess.check_output([sys.executable, "-c", PROGRAM], cwd=ROOT, env=variables, text=True)
    )
    return found


def test_other_instructions_are_another_environment() -> None:
    plain, changed = seen(), seen(ATEN_CPU_CAPABILITY="default")
    assert all(plain[key] for key in ("processor", "instructions", "blas", "threads"))
    assert plain != changed, "a table of both would not say so"
    assert changed["instructions_from"] == "ATEN_CPU_CAPABILITY=default" and plain["instructions_from"] is None
