"""Runs are pushed to a remote and pulled into a fresh clone: from a folder, a web server, S3. Nobody trains twice.

A release is packed from such a clone.
"""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from shrunk import ENVIRONMENT, GIT, change, clone, command, pretend_environment, stages_run

pytestmark = pytest.mark.smoke

SHARE = ("python", "-m", "stages.share")
RELEASE = ("python", "-m", "stages.release", "digits")


def runs(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "runs").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shrunk pipeline, run and pushed to the folder that the repository has for it, and committed with it."""
    folder = clone(tmp_path_factory.mktemp("origin"))
    command(folder, "dvc", "repro")
    printed = command(folder, *SHARE, "push", "digits")
    assert printed == "digits: 6 of 6 outputs and 11 logs pushed\n"
    assert command(folder, *SHARE, "push", "digits") == "digits: 6 of 6 outputs and 0 logs pushed\n"
    command(folder, "git", "add", "-A")
    command(folder, *GIT, "commit", "-qm", "results, and what they were made of")
    return folder


@pytest.fixture
def fresh(origin: Path, tmp_path: Path) -> Path:
    command(tmp_path, "git", "clone", "-q", str(origin), "clone")
    return tmp_path / "clone"


def check(fresh: Path, origin: Path) -> None:
    """Nothing is left to do, all is known of the runs, and the student can be taken away without the images."""
    assert runs(fresh) == runs(origin)
    logs = sorted(path.relative_to(origin) for path in (origin / "logs").rglob("*.json"))
    assert logs and all((fresh / path).read_bytes() == (origin / path).read_bytes() for path in logs)
    assert stages_run(command(fresh, "dvc", "repro", "--allow-missing", "--dry")) == []
    printed = command(fresh, "python", "-m", "stages.export", "suite=digits", "method=triplet")
    assert "on 500 made-up images: the same class for all" in printed
    exported = json.loads((fresh / "exports/digits/triplet/export.json").read_text())
    assert exported["test_accuracy"] is None
    assert stages_run(command(fresh, "dvc", "repro")) == ["fetch@digits"]
    assert "Data and pipelines are up to date." in command(fresh, "dvc", "status")
    printed = command(fresh, "python", "-m", "tripletkd.tracking.mlflow", "runs")
    assert printed.count(": logged") == 6
    status = command(fresh, "git", "status", "--porcelain")
    assert status == ""


def test_a_clone_has_the_runs_of_the_repository_itself(origin: Path, fresh: Path) -> None:
    assert command(fresh, *SHARE, "pull", "digits") == "digits: 6 of 6 outputs and 11 logs pulled\n"
    check(fresh, origin)
    printed = command(fresh, *SHARE, "pull", "digits")
    assert printed == "digits: 0 of 6 outputs and 0 logs pulled; the others are here already\n"


def test_what_is_committed_can_be_pulled_whole(tmp_path: Path) -> None:
    """Nothing is left to do, and students can be taken away, from a clone that has no images."""
    command(tmp_path, "git", "clone", "-q", str(ROOT), "clone")
    fresh = tmp_path / "clone"
    pretend_environment(fresh)
    for suite in ("digits", "cifar10"):
        command(fresh, "make", "pull", f"SUITE={suite}")
    assert stages_run(command(fresh, "dvc", "repro", "--allow-missing", "--dry")) == []
    command(fresh, "make", "export", "SUITE=cifar10")
    printed = command(fresh, "make", "paper")
    assert printed.count("didn't change, skipping") == 9
    assert stages_run(printed) == []
    assert command(fresh, "git", "status", "--porcelain") == " M params.yaml\n"


@pytest.fixture
def web(origin: Path) -> Iterator[str]:
    """A server of the origin's store that answers GET and HEAD, and nothing else."""
    handler = partial(Quiet, directory=str(origin / "store"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Prints nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing of a request."""


def test_a_web_server_is_read(origin: Path, fresh: Path, web: str) -> None:
    shutil.rmtree(fresh / "store")
    command(fresh, "dvc", "remote", "add", "--local", "--default", "web", web)
    assert command(fresh, *SHARE, "pull", "digits") == "digits: 6 of 6 outputs and 11 logs pulled\n"
    assert runs(fresh) == runs(origin)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that speaks S3, and an environment that says where it is."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", **found}.items():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    yield
    server.stop()


@pytest.mark.usefixtures("s3")
def test_a_bucket_of_ones_own_takes_and_gives(origin: Path, fresh: Path) -> None:
    make = "import boto3; boto3.client('s3').create_bucket(Bucket='lab')"
    command(fresh, "python", "-c", make)
    shutil.rmtree(fresh / "store")
    for folder in (origin, fresh):
        command(folder, "dvc", "remote", "add", "--local", "lab", "s3://lab/tripletkd")
    assert command(origin, *SHARE, "push", "digits", "--remote", "lab") == "digits: 6 of 6 outputs and 11 logs pushed\n"
    command(fresh, "dvc", "remote", "default", "--local", "lab")
    assert command(fresh, *SHARE, "pull", "digits") == "digits: 6 of 6 outputs and 11 logs pulled\n"
    assert runs(fresh) == runs(origin)
    assert "up to date" in command(fresh, "dvc", "pull", "--allow-missing")


@pytest.mark.fault
def test_bytes_that_were_altered_on_a_server_are_refused(origin: Path, fresh: Path, web: str, tmp_path: Path) -> None:
    shutil.rmtree(fresh / "store")
    command(fresh, "dvc", "remote", "add", "--local", "--default", "web", web)
    weights = origin / "runs/digits/test/triplet/seed-2/weights.safetensors"
    md5 = hashlib.md5(weights.read_bytes(), usedforsecurity=False).hexdigest()
    stored = origin / "store/files/md5" / md5[:2] / md5[2:]
    sound = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    printed = command(fresh, *SHARE, "pull", "digits", check=False)
    stored.write_bytes(sound)
    assert "error: runs/digits/test/triplet: " in printed
    assert "has seed-2/weights.safetensors missing or altered" in printed
    assert not (fresh / "runs/digits/test/triplet").exists()
    command(fresh, *SHARE, "pull", "digits")
    assert runs(fresh) == runs(origin)


@pytest.mark.fault
def test_what_stands_here_otherwise_than_the_lock_says_is_named(fresh: Path) -> None:
    command(fresh, *SHARE, "pull", "digits")
    shutil.rmtree(fresh / "runs/digits/test/scratch/seed-2")
    printed = command(fresh, *SHARE, "pull", "digits")
    assert "runs/digits/test/scratch: stands here otherwise than dvc.lock says, and was left" in printed
    shutil.rmtree(fresh / "runs/digits/test/scratch")
    assert "1 of 6 outputs and 0 logs pulled; the others are here" in command(fresh, *SHARE, "pull", "digits")


@pytest.mark.fault
def test_a_log_of_another_run_is_neither_pushed_nor_kept(fresh: Path) -> None:
    command(fresh, *SHARE, "pull", "digits")
    right, other = (fresh / f"logs/digits/test/{name}/seed-2.json" for name in ("scratch", "triplet"))
    sound = right.read_bytes()
    shutil.copy(other, right)
    command(fresh, "dvc", "remote", "add", "--local", "lab", str(fresh / "lab"))
    assert " 10 logs pushed" in command(fresh, *SHARE, "push", "digits", "--remote", "lab")
    assert " 1 logs pulled" in command(fresh, *SHARE, "pull", "digits")
    assert right.read_bytes() == sound
    assert " 1 logs pushed" in command(fresh, *SHARE, "push", "digits", "--remote", "lab")


def test_a_suite_that_params_yaml_does_not_name_is_pulled_by_its_name(origin: Path, fresh: Path) -> None:
    change(fresh, "run", "suites", value=["digits_resnet"])
    assert command(fresh, *SHARE, "pull", "digits") == "digits: 6 of 6 outputs and 11 logs pulled\n"
    assert runs(fresh) == runs(origin)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pull", "cifar10"), "dvc.lock: nothing of 'cifar10'; expected a suite that `dvc repro` has made"),
        (
            ("pull", "digits", "--remote", "nowhere"),
            "digits: could not pull (config file error: remote 'nowhere'",
        ),
    ],
)
def test_what_cannot_be_shared_is_named(words: tuple[str, ...], message: str, fresh: Path) -> None:
    printed = command(fresh, *SHARE, *words, check=False)
    assert printed.startswith(f"error: {message}") and printed.count("\n") == 1


@pytest.mark.fault
def test_what_nobody_pushed_is_named(fresh: Path) -> None:
    for path in (fresh / "store").rglob("*.dir"):
        path.unlink()
    printed = command(fresh, *SHARE, "pull", "digits", check=False)
    assert re.fullmatch(r"error: \S+/store/files/md5 has no runs/digits/test/teacher, .+; push that .+\n", printed)


@pytest.mark.fault
def test_a_remote_that_has_lost_a_file_gives_nothing_half(origin: Path, fresh: Path) -> None:
    for path in (fresh / "store").rglob("*"):
        if path.is_file() and path.suffix != ".dir" and path.stat().st_size > 5000:
            path.unlink()
    assert "error: " in command(fresh, *SHARE, "pull", "digits", check=False)
    there, expected = runs(fresh), runs(origin)
    assert not any("triplet" in name for name in there)
    for run in {name.split("/seed-")[0] for name in there}:
        assert {k: v for k, v in there.items() if run in k} == {k: v for k, v in expected.items() if run in k}


def test_a_release_is_what_the_commit_holds_and_the_same_bytes_twice(fresh: Path, origin: Path, tmp_path: Path) -> None:
    printed = command(fresh, *RELEASE)
    [archive] = (fresh / "dist").iterdir()
    packed = archive.read_bytes()
    assert f"sha256 {hashlib.sha256(packed).hexdigest()}" in printed
    command(fresh, *RELEASE)
    assert archive.read_bytes() == packed
    command(tmp_path, "tar", "xf", str(archive))
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    command(unpacked, "sha256sum", "--check", "--strict", "SHA256SUMS")
    assert runs(unpacked) == runs(origin)
    files = {str(path.relative_to(unpacked)): path for path in unpacked.rglob("*") if path.is_file()}
    assert len((unpacked / "SHA256SUMS").read_text().splitlines()) == len(files) - 1
    in_git = [name for name in command(fresh, "git", "ls-files", "results").splitlines() if "/digits/" in name]
    assert in_git and all(files[name].read_bytes() == (origin / name).read_bytes() for name in in_git)
    assert files["params.yaml"].read_bytes() == (origin / "params.yaml").read_bytes()
    assert {name for name in files if "MODEL_CARD" in name} == {
        f"exports/digits/{name}/MODEL_CARD.md" for name in ("teacher", "scratch", "triplet")
    }
    assert files["COMMIT"].read_text() == command(fresh, "git", "rev-parse", "HEAD")
    assert command(fresh, "git", "status", "--porcelain") == ""


@pytest.mark.fault
@pytest.mark.parametrize("commit", [False, True])
def test_what_the_commit_does_not_stand_for_is_not_released(commit: bool, fresh: Path) -> None:
    table = fresh / "results/digits/table.md"
    table.write_text(table.read_text().replace("triplet", "better"))
    expected = "results/digits/table.md: not committed; "
    if commit:
        command(fresh, *GIT, "commit", "-qam", "edited by hand")
        expected = "dvc.lock: `dvc repro` would run tabulate@digits; expected results of the code"
    assert f"error: {expected}" in command(fresh, *RELEASE, check=False)
    assert not (fresh / "dist").exists()


@pytest.mark.fault
def test_a_release_without_its_weights_says_what_is_missing(fresh: Path) -> None:
    shutil.rmtree(fresh / "store/files")
    command(fresh, *GIT, "commit", "-qam", "no weights")
    assert re.search("has no .*runs/digits/test/triplet, ", command(fresh, *RELEASE, check=False))
    assert not (fresh / "dist").exists()
