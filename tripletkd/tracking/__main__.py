"""MLflow beside this project: `make relog` adds what the store lacks, `make ui` shows the store's pages.

python -m tripletkd.tracking [ui PORT]
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tripletkd.tracking import mirror
from tripletkd.tracking.store import address, connect, first_line

HERE = "127.0.0.1"


def ui(root: Path, port: int) -> str | int | None:
    """Serve MLflow's pages on this machine; once they answer, name that of every suite, for its first page has none.

    Returns:
        What is wrong, or the server's exit code. Where the store is a server, that serves them.
    """
    uri = address(root)
    served = uri.startswith("http")
    if not served and _is_taken(port):
        return f"error: port {port} is taken, perhaps by MLflow itself; `make ui PORT={port + 1}` takes another"
    try:
        pages = _pages(root, uri if served else f"http://{HERE}:{port}")
    except Exception as error:  # whatever a store can answer, such as that its database is older than MLflow
        return f"error: {first_line(uri)}: does not answer as MLflow does ({first_line(error)})"
    if served:
        print(pages)
        return None
    quiet = {"PYTHONWARNINGS": "ignore", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    stores = [f"--backend-store-uri={uri}", f"--registry-store-uri={uri}"]  # each, or MLflow says so
    words = ["-m", "mlflow", "ui", f"--host={HERE}", f"--port={port}", *stores, "--workers=1"]
    # This interpreter, with words that stand here
    words = [sys.executable, *words, "--uvicorn-opts=--log-level warning"]
    server = subprocess.Popen(words, env=os.environ | quiet)  # nosec B603  # noqa: S603
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server too, and ends it
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    while server.poll() is None and not _is_ready(port):
        time.sleep(0.2)
    if server.poll() is None:
        print(f"{pages}\nMLflow is ready; Ctrl-C ends it", flush=True)
    return server.wait()


def _is_taken(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex((HERE, port)) == 0


def _pages(root: Path, server: str) -> str:
    """Return the addresses of the suites' pages, a line each."""
    found = {e.name: e.experiment_id for e in connect(root).search_experiments() if e.name != "Default"}
    view = "runs?viewStateShareKey=accuracy&workflowType=machine_learning"
    pages = [f"{name}: {server}/#/experiments/{number}/{view}" for name, number in found.items()]
    return "\n".join(pages) or f"{server}: nothing is logged yet: make repro, or make relog"


def _is_ready(port: int) -> bool:
    with suppress(OSError, HTTPException), closing(HTTPConnection(HERE, port, timeout=5)) as connection:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


def main(words: list[str]) -> str | int | None:
    """Do what the command line says; returns what to exit with."""
    root = Path(os.environ.get("DVC_ROOT") or ".").resolve()
    if words[:1] == ["follow"]:
        mirror.follow(Path(words[1]), float(words[2]))
    elif words[:1] == ["ui"]:
        return ui(root, int(words[1]))
    elif not mirror.relog(root):
        return 1
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
