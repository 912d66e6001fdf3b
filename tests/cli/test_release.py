"""A release holds what the commit holds, verified from the weights on, and is the same bytes each time."""

import hashlib
import shutil
from pathlib import Path

import pytest
from shrunk import GIT, command

pytestmark = pytest.mark.smoke
pytest_plugins = ("pushed",)

RELEASE = ("python", "-m", "tripletkd.cli", "release", "digits")
TABLE = "results/digits/table.md"


@pytest.fixture
def ready(fresh: Path, origin: Path) -> Path:
    """A clone with the images, which no remote has."""
    shutil.copytree(origin / "data", fresh / "data")
    return fresh


def test_a_release_is_what_the_commit_holds_and_the_same_bytes_twice(ready: Path, origin: Path, tmp_path: Path) -> None:
    printed = command(ready, *RELEASE)
    assert "and the weights of 5 runs verified, every byte the same\n" in printed
    [archive] = (ready / "dist").iterdir()
    packed = archive.read_bytes()
    assert f"sha256 {hashlib.sha256(packed).hexdigest()}" in printed
    command(ready, *RELEASE)
    assert archive.read_bytes() == packed
    command(tmp_path, "tar", "xf", str(archive))
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    command(unpacked, "sha256sum", "--check", "--strict", "SHA256SUMS")
    files = {str(path.relative_to(unpacked)): path.read_bytes() for path in unpacked.rglob("*") if path.is_file()}
    assert len(files.pop("SHA256SUMS").splitlines()) == len(files)
    assert files.pop("COMMIT").decode() == command(ready, "git", "rev-parse", "HEAD")
    exported = {name for name in files if name.startswith("exports/")}
    assert {name for name in exported if "MODEL_CARD" in name} == {
        f"exports/digits/{name}/MODEL_CARD.md" for name in ("teacher", "scratch", "triplet")
    }
    assert all(content == (origin / name).read_bytes() for name, content in files.items() if name not in exported)
    for folder in ("runs", "results"):
        there = {str(path.relative_to(origin)) for path in (origin / folder).rglob("*") if path.is_file()}
        assert there == {name for name in files if name.startswith(f"{folder}/")}
    assert command(ready, "git", "status", "--porcelain") == ""


@pytest.mark.fault
@pytest.mark.parametrize("commit", [False, True])
def test_what_the_commit_does_not_stand_for_is_not_released(commit: bool, ready: Path) -> None:
    (ready / TABLE).write_text((ready / TABLE).read_text().replace("triplet", "better"))
    expected = f"{TABLE}: not committed; "
    if commit:
        command(ready, *GIT, "commit", "-qam", "edited by hand")
        expected = f"{TABLE}: not what the weights and the code here give; "
    assert f"error: {expected}" in command(ready, *RELEASE, check=False)
    assert not (ready / "dist").exists()


@pytest.mark.fault
def test_a_link_is_not_released(ready: Path) -> None:
    (ready / TABLE).unlink()
    (ready / TABLE).symlink_to("/etc/hostname")
    command(ready, *GIT, "commit", "-qam", "a link")
    assert command(ready, *RELEASE, check=False).startswith(f"error: {TABLE}: a link in the commit; ")


@pytest.mark.fault
def test_without_weights_images_or_a_repository_it_says_what_is_missing(ready: Path) -> None:
    shutil.move(ready / "data/digits", ready / "data/elsewhere")
    assert "error: data/digits: no images; " in command(ready, *RELEASE, check=False)
    shutil.rmtree(ready / "store/files")
    command(ready, *GIT, "commit", "-qam", "no weights")
    assert "store/files/md5 has no data/digits/dataset.json, weights/digits, runs/digits/" in command(
        ready, *RELEASE, check=False
    )
    shutil.rmtree(ready / ".git")
    printed = command(ready, *RELEASE, check=False)
    assert printed.startswith("error: git: ") and printed.count("\n") == 1
    assert not (ready / "dist").exists()
