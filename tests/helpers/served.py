"""A server of small data sets in torchvision's formats, and of what it does wrong: for tests that download."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripletkd.data import dataset as data

Contents = Mapping[str, bytes]  # by path; a path that ends in / is a folder
Pixels = NDArray[np.uint8]
RNG = np.random.default_rng(0)


def random_pixels(*shape: int) -> Pixels:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def in_tar(path: Path, contents: Contents, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(content))
        for member in members:
            tar.addfile(member)
    return path


def small() -> data.Dataset:
    labels = np.array([0, 0, 1, 1])
    return data.Dataset(
        data.Split(random_pixels(4, 2, 2, 3), labels), data.Split(random_pixels(4, 2, 2, 3), labels), ("été", "猫")
    )


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `fault` says what it does wrong, after `sound` requests and `share` of the next file."""

    files: dict[str, bytes]
    fault: str
    closing: threading.Event
    silent: threading.Event  # it has sent that share and says no more
    asked: list[tuple[str, str | None]]  # the paths, and the ranges of bytes
    sound: int = 0
    share: float = 0.5

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is no matter."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        fault = self.server.fault if self.server.sound == 0 else ""
        self.server.sound = max(self.server.sound - 1, 0)
        self.server.asked.append((self.path, self.headers["Range"]))
        if content is None or fault == "404":
            self.send_error(404)
            return
        if fault == "cut off once":
            fault, self.server.fault = "cut off", ""
        begin = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        content = content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault in ("cut off", "silence"):
            content = content[: int(len(content) * self.server.share)]
        if fault == "changed":
            content = content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
        self.wfile.write(content)
        if fault == "silence":
            self.wfile.flush()
            self.server.silent.set()
            self.server.closing.wait(30)

    def log_message(self, *_: Any) -> None:
        """Not on the terminal."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.files, server.fault, server.closing, server.silent = {}, "", threading.Event(), threading.Event()
        server.asked = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


CIFAR_PIXELS = random_pixels(6, 32, 32, 3)
CIFAR_LABELS = [0, 1, 1, 0, 1, 0]
CIFAR_FILES = ["tabby_s_10.png", "pug_s_02.png", "mutt_s_01.png", "house_cat_s_03.png", "a.png", "b.png"]
CIFAR_ORDER = [3, 0, 2, 1, 5, 4]  # by class, then by name: of the training images, then of the test images


def batch(part: slice) -> bytes:
    rows = CIFAR_PIXELS[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
    return pickle.dumps({"data": rows, "labels": CIFAR_LABELS[part], "filenames": CIFAR_FILES[part]})


BATCHES = {
    "data_batch_1": batch(slice(0, 2)),
    "data_batch_2": batch(slice(2, 4)),
    "test_batch": batch(slice(4, 6)),
    "batches.meta": pickle.dumps({"label_names": ["cat", "dog"]}),
}


def cifar_from(server: Server, tmp_path: Path, batches: Contents) -> dict[str, Any]:
    """What torchvision's class must hold for an archive of `batches` with its md5, inner files with that of BATCHES."""
    path = in_tar(tmp_path / "cifar.tar.gz", {f"cifar-10-batches-py/{name}": body for name, body in batches.items()})
    server.files["/cifar.tar.gz"] = path.read_bytes()
    known = [[name, md5(content)] for name, content in BATCHES.items()]
    return {
        "url": address(server) + path.name,
        "filename": path.name,
        "tgz_md5": md5(path.read_bytes()),
        "train_list": known[:2],
        "test_list": known[2:3],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": known[3][1]},
    }


MNIST_PIXELS = random_pixels(4, 28, 28)


def mnist_from(server: Server) -> dict[str, Any]:
    """What torchvision's class must hold."""
    resources = []
    for part, images in (("train", MNIST_PIXELS[:2]), ("t10k", MNIST_PIXELS[2:])):
        for name, content in (
            (f"{part}-images-idx3-ubyte.gz", struct.pack(">4I", 2051, 2, 28, 28) + images.tobytes()),
            (f"{part}-labels-idx1-ubyte.gz", struct.pack(">2I", 2049, 2) + bytes([3, 9])),
        ):
            server.files[f"/{name}"] = gzip.compress(content)
            resources.append((name, md5(server.files[f"/{name}"])))
    return {"resources": resources, "mirrors": [address(server)]}
