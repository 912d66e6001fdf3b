"""The command as it is installed."""

import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from shrunk import command


def test_a_copy_of_the_project_runs_its_own_code(tmp_path: Path) -> None:
    """Also where another checkout is installed, as in an experiment that DVC runs in a copy."""
    copy, script = tmp_path / "copy", tmp_path / "bin/tripletkd"
    for path, text in (
        (script, "from tripletkd.cli import main\nmain()"),  # as pip writes it
        (copy / "tripletkd/__init__.py", ""),
        (copy / "tripletkd/cli/__init__.py", ""),
        (copy / "tripletkd/cli/__main__.py", "print('the copy')"),
        (copy / "stages/__init__.py", ""),
        (copy / "stages/fetch.py", "import tripletkd.cli.__main__"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for words in ([str(script)], ["-m", "stages.fetch"]):
        assert command(copy, sys.executable, *words, PYTHONPATH=str(ROOT)) == "the copy\n"


@pytest.mark.parametrize("words", [["plan", "nope"], ["verify", "nope"], ["pull", "nope"]])
def test_a_suite_that_is_not_there_is_named_in_one_line(words: list[str]) -> None:
    printed = command(ROOT, sys.executable, "-m", "tripletkd.cli", *words, check=False)
    assert printed.startswith("error: ") and "nope" in printed and printed.count(os.linesep) == 1
