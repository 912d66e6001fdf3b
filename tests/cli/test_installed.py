"""The command as it is installed."""

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT
from shrunk import command

from tripletkd.cli.__main__ import tripletkd


def test_a_copy_of_the_project_runs_its_own_code(tmp_path: Path) -> None:
    """Also where another checkout is installed, as in an experiment that DVC runs in a copy."""
    copy, script = tmp_path / "copy", tmp_path / "bin/tripletkd"
    for path, text in (
        (script, "from tripletkd.cli import main\nmain()"),  # as pip writes it
        (copy / "tripletkd/__init__.py", ""),
        (copy / "tripletkd/cli/__init__.py", ""),
        (copy / "tripletkd/cli/__main__.py", "print('the copy')"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert command(copy, sys.executable, str(script), PYTHONPATH=str(ROOT)) == "the copy\n"


def test_a_suite_that_is_not_there_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("plan", "verify", "pull", "push"):
        done = CliRunner().invoke(tripletkd, [name, "nope"])
        assert done.exit_code == 1 and done.output.startswith("error: "), done.output
        assert "nope" in done.output and done.output.count(os.linesep) == 1
