"""What is in results/ is made again from the weights, and whatever is not theirs is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save
from shrunk import command

from tripletkd.provenance import sha256

pytestmark = pytest.mark.smoke
pytest_plugins = ("pushed",)

VERIFY = ("python", "-m", "tripletkd.cli", "verify", "digits")
MEASURED = "results/digits/measured/test/triplet.json"
SEED = "runs/digits/test/triplet/seed-1"


@pytest.fixture
def copy(origin: Path, tmp_path: Path) -> Path:
    shutil.copytree(origin, tmp_path / "copy")
    return tmp_path / "copy"


def test_it_confirms_what_is_there_and_changes_nothing(copy: Path) -> None:
    printed = command(copy, *VERIFY, "--train", "triplet")
    files = sum(path.is_file() for path in (copy / "results/digits").rglob("*")) - 1  # but environment.json
    assert f"{files} files in results/digits and the weights of 5 runs verified, every byte the same\n" in printed
    assert printed.endswith("digits/triplet: seeds 1, 2 trained again, the same bytes\n")
    assert command(copy, "git", "status", "--porcelain") == ""
    shutil.rmtree(copy / "data")
    assert "compared with the weights by their hashes only, for want of the images" in command(copy, *VERIFY)


def other_weights(folder: Path) -> None:
    """With a record that says so."""
    weights = {name: values * 1.01 for name, values in load_file(folder / SEED / "weights.safetensors").items()}
    change_seed(folder, "weights", save(weights))


def other_history(folder: Path) -> None:
    change_seed(folder, "history", (folder / SEED / "history.csv").read_bytes().replace(b"1,1,", b"1,1,1", 1))


def change_seed(folder: Path, what: str, content: bytes) -> None:
    [path] = (folder / SEED).glob(f"{what}.*")
    path.chmod(0o644)
    path.write_bytes(content)
    record = folder / SEED / "record.json"
    values = json.loads(record.read_text()) | {f"{what}_sha256": sha256(path)}
    record.chmod(0o644)
    record.write_text(json.dumps(values))


def other_table(folder: Path) -> None:
    table = folder / "results/digits/table.csv"
    table.write_text(table.read_text().replace("triplet", "better"))


def one_file_more(folder: Path) -> None:
    (folder / "results/digits/figures/better.svg").touch()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("change", "images", "named"),
    [
        (other_weights, True, MEASURED),
        (other_weights, False, MEASURED),
        (other_history, False, MEASURED.replace("json", "csv")),
        (other_table, False, "results/digits/table.csv"),
        (one_file_more, False, "results/digits/figures/better.svg"),
    ],
)
def test_what_the_weights_do_not_give_is_named(
    change: Callable[[Path], None], images: bool, named: str, copy: Path
) -> None:
    change(copy)
    if not images:
        shutil.rmtree(copy / "data")
    printed = command(copy, *VERIFY, check=False)
    assert f"error: {named}: " in printed and "Traceback" not in printed


@pytest.mark.fault
def test_runs_that_are_not_here_are_asked_for(copy: Path) -> None:
    shutil.rmtree(copy / "runs")
    printed = command(copy, *VERIFY, check=False)
    assert printed == "error: runs/digits: not there; make it with `tripletkd pull digits`\n"
