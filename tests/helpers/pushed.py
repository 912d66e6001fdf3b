"""A pytest plugin for tests of the console command: the shrunk pipeline, run, pushed and committed once."""

from pathlib import Path

import pytest
from shrunk import GIT, clone, command


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose results are committed, and whose runs are in the folder that the repository has for them."""
    folder = clone(tmp_path_factory.mktemp("origin"))
    command(folder, "dvc", "repro")
    command(folder, "python", "-m", "tripletkd.cli", "push", "digits")
    command(folder, "git", "add", "-A")
    command(folder, *GIT, "commit", "-qm", "results, and what they were made of")
    return folder


@pytest.fixture
def fresh(origin: Path, tmp_path: Path) -> Path:
    """A clone of it, without runs and images."""
    command(tmp_path, "git", "clone", "-q", str(origin), "clone")
    return tmp_path / "clone"
