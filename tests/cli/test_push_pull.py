"""Runs are pushed to a remote and pulled into a fresh clone: from a folder, a web server, S3. Nobody trains twice."""

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
from shrunk import ENVIRONMENT, change, command, pretend_environment, stages_run

from tripletkd.files import write_text

pytestmark = pytest.mark.smoke
pytest_plugins = ("pushed",)

CLI = ("python", "-m", "tripletkd.cli")
ALL_PULLED = "digits: 7 of 7 outputs and 11 logs pulled; "
TRIPLET = "runs/digits/test/triplet"


def runs(folder: Path, of: Path = Path("runs")) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in (folder / of).rglob("*") if p.is_file()}


def pull(folder: Path, check: bool = True) -> str:
    return command(folder, *CLI, "pull", "digits", check=check)


def test_a_clone_has_the_runs_of_the_repository_itself(origin: Path, fresh: Path) -> None:
    """Nothing is left to do, and all is known of the runs."""
    change(fresh, "run", "suites", value=["digits_resnet"])
    assert pull(fresh).startswith(ALL_PULLED)
    command(fresh, "git", "restore", "params.yaml")
    assert runs(fresh) == runs(origin)
    logs = sorted(path.relative_to(origin) for path in (origin / "logs").rglob("*.json"))
    assert logs and all((fresh / path).read_bytes() == (origin / path).read_bytes() for path in logs)
    assert stages_run(command(fresh, "dvc", "repro", "--allow-missing", "--dry")) == []
    assert "0 of 7 outputs and 0 logs pulled; the others are here already" in pull(fresh)
    assert stages_run(command(fresh, "dvc", "repro")) == ["fetch@digits"]
    assert command(fresh, "git", "status", "--porcelain") == ""


def test_what_is_committed_can_be_pulled_whole(tmp_path: Path) -> None:
    """Nothing is left to do, tables belong to weights, and students can be taken away, without any image."""
    command(tmp_path, "git", "clone", "-q", str(ROOT), "clone")
    fresh = tmp_path / "clone"
    pretend_environment(fresh)
    for suite in ("digits", "cifar10_sharp_teacher"):
        command(fresh, "make", "pull", f"SUITE={suite}")
        assert f"results/{suite} and the weights of" in command(fresh, "make", "verify", f"SUITE={suite}")
    assert stages_run(command(fresh, "dvc", "repro", "--allow-missing", "--dry")) == []
    command(fresh, "make", "export", "SUITE=cifar10_sharp_teacher")
    assert stages_run(command(fresh, "make", "paper", "TEACHER=sharp")) == []
    assert command(fresh, "git", "status", "--porcelain") == " M params.yaml\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def web(origin: Path) -> Iterator[str]:
    """A server of the origin's store that answers GET and HEAD, and nothing else."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(origin / "store"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.fault
def test_a_web_server_is_read_and_bytes_that_were_altered_there_are_refused(
    origin: Path, fresh: Path, web: str
) -> None:
    shutil.rmtree(fresh / "store")
    command(fresh, "dvc", "remote", "add", "--local", "--default", "web", web)
    weights = origin / TRIPLET / "seed-2/weights.safetensors"
    stored = store_place(origin, hashlib.md5(weights.read_bytes(), usedforsecurity=False).hexdigest())
    sound = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    printed = pull(fresh, check=False)
    stored.write_bytes(sound)
    assert f"error: {TRIPLET}: " in printed and "has seed-2/weights.safetensors missing or altered" in printed
    assert not (fresh / TRIPLET).exists()
    pull(fresh)
    assert runs(fresh) == runs(origin)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that speaks S3, and an environment that says where it is."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = {"DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": f"http://{host}:{port}"}
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", **found}.items():
        monkeypatch.setitem(ENVIRONMENT, f"AWS_{name}", value)
    yield
    server.stop()


@pytest.mark.usefixtures("s3")
def test_a_bucket_of_ones_own_takes_and_gives(origin: Path, fresh: Path) -> None:
    command(fresh, "python", "-c", "import boto3; boto3.client('s3').create_bucket(Bucket='lab')")
    shutil.rmtree(fresh / "store")
    for folder in (origin, fresh):
        command(folder, "dvc", "remote", "add", "--local", "lab", "s3://lab/tripletkd")
    printed = command(origin, *CLI, "push", "digits", "--remote", "lab")
    assert printed.startswith("digits: 7 of 7 outputs and 11 logs pushed; ")
    command(fresh, "dvc", "remote", "default", "--local", "lab")
    assert pull(fresh).startswith(ALL_PULLED)
    assert runs(fresh) == runs(origin)


@pytest.mark.fault
def test_what_stands_here_otherwise_than_the_lock_says_is_named(fresh: Path) -> None:
    pull(fresh)
    shutil.rmtree(fresh / "runs/digits/test/scratch/seed-2")
    assert "runs/digits/test/scratch: stands here otherwise than dvc.lock says, and was left" in pull(fresh)


@pytest.mark.fault
def test_a_log_of_another_run_is_neither_pushed_nor_kept(fresh: Path) -> None:
    pull(fresh)
    right, other = (fresh / f"logs/digits/test/{name}/seed-2.json" for name in ("scratch", "triplet"))
    sound = right.read_bytes()
    shutil.copy(other, right)
    command(fresh, "dvc", "remote", "add", "--local", "lab", str(fresh / "lab"))
    push = (*CLI, "push", "digits", "--remote", "lab")
    assert " 10 logs pushed" in command(fresh, *push)
    assert " 1 logs pulled" in pull(fresh)
    assert right.read_bytes() == sound
    assert " 1 logs pushed" in command(fresh, *push)


@pytest.mark.fault
def test_a_remote_that_is_not_configured_is_named(fresh: Path) -> None:
    printed = command(fresh, *CLI, "pull", "digits", "--remote", "nowhere", check=False)
    assert printed.startswith("error: digits: could not pull (config file error: remote 'nowhere'")
    assert printed.count("\n") == 1


@pytest.mark.fault
def test_a_remote_without_something_gives_nothing_half(origin: Path, fresh: Path) -> None:
    for path in (fresh / "store").rglob("*"):
        if path.is_file() and path.suffix != ".dir" and path.stat().st_size > 5000:
            path.unlink()
    assert "error: " in pull(fresh, check=False)
    folders = [path.relative_to(fresh) for path in fresh.glob("runs/digits/test/*")]
    for folder in folders:  # each whole
        assert runs(fresh, folder) == runs(origin, folder)
    assert Path(TRIPLET) not in folders
    for path in (fresh / "store").rglob("*.dir"):
        path.unlink()
    assert re.fullmatch(
        r"error: \S+/store/files/md5 has no weights/digits, runs/.+; push that .+\n", pull(fresh, check=False)
    )


# --- what a remote, or a lock, must not bring here --------------------------------------------------------------------


def store_place(folder: Path, md5: str) -> Path:
    return folder / "store/files/md5" / md5[:2] / md5[2:]


def locked(folder: Path, path: str) -> str:
    """The hash that dvc.lock has for a path."""
    [found] = set(re.findall(rf"path: {path}\n(?: .*\n)*? *md5: (\S+)", (folder / "dvc.lock").read_text()))
    return str(found)


def in_lock(folder: Path, before: str, after: str) -> None:
    path = folder / "dvc.lock"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


@pytest.mark.fault
@pytest.mark.parametrize("name", ["../../../../yaml.csv", "seed-1/weights.so"])
def test_a_file_that_would_land_elsewhere_or_be_code_is_not_pulled(name: str, fresh: Path) -> None:
    """A file of a run has another name in the remote's list, and dvc.lock says so."""
    md5 = locked(fresh, TRIPLET)
    listing = json.loads(store_place(fresh, md5).read_text())
    listing[0]["relpath"] = name
    other = hashlib.md5(json.dumps(listing).encode(), usedforsecurity=False).hexdigest() + ".dir"
    write_text(store_place(fresh, other), json.dumps(listing))
    in_lock(fresh, md5, other)
    assert pull(fresh, check=False).startswith(f"error: {TRIPLET}: has {name}; expected files in it that end in")
    assert not (fresh / "runs").exists() and not (fresh / "yaml.csv").exists()


@pytest.mark.fault
def test_an_output_elsewhere_is_not_pulled(fresh: Path) -> None:
    in_lock(fresh, f"path: {TRIPLET}\n", "path: runs/digits/../../yaml.py\n")
    assert "has runs/digits/../../yaml.py; expected a path in runs/digits" in pull(fresh, check=False)
    assert not (fresh / "yaml.py").exists() and not (fresh / "runs").exists()


@pytest.mark.fault
def test_images_are_not_pushed_under_another_name(origin: Path, fresh: Path) -> None:
    images = "data/digits/images.npy"
    shutil.copytree(origin / ".dvc/cache", fresh / ".dvc/cache")
    in_lock(fresh, locked(fresh, TRIPLET), locked(fresh, images))
    in_lock(fresh, f"path: {TRIPLET}\n", f"path: {TRIPLET}/seed-1/weights.safetensors\n")
    printed = command(fresh, *CLI, "push", "digits", check=False)
    assert f"dvc.lock: {TRIPLET}/seed-1/weights.safetensors has the hash of images" in printed
    assert not store_place(fresh, locked(origin, images)).exists()
