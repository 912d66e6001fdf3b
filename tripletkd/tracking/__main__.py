"""MLflow beside this project: `make relog` adds what the store lacks, `make ui` shows the store's pages.

python -m tripletkd.tracking [ui PORT]
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tripletkd.tracking import mirror
from tripletkd.tracking.store import address, first_line


def ui(root: Path, port: int) -> str | int | None:
    """Show the store's pages on this machine and name those to open; returns what to exit with."""
    uri, server = address(root), f"http://127.0.0.1:{port}"
    if uri.startswith("http"):
        return _name_pages(uri)
    if _answers(port):
        return f"error: port {port} is taken, perhaps by MLflow itself; `make ui PORT={port + 1}` takes another"
    words = [sys.executable, "-m", "mlflow", "ui", "--host=127.0.0.1", f"--port={port}", f"--backend-store-uri={uri}"]
    quiet = {"PYTHONWARNINGS": "ignore", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # This interpreter, with words that stand here
    process = subprocess.Popen([*words, "--uvicorn-opts=--log-level warning"], env=os.environ | quiet)  # nosec B603  # noqa: S603
    try:
        while process.poll() is None and not _answers(port):
            time.sleep(0.2)
        if process.poll() is None:
            _name_pages(server)
        if process.wait():
            print(f"if the database is older than MLflow: mlflow db upgrade '{uri}'", file=sys.stderr)
        return process.returncode
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        return None


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _name_pages(server: str) -> str | None:
    """Name the page of every suite's accuracies: MLflow's own first page has none. Returns why that failed."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient

    try:
        found = {e.name: e.experiment_id for e in MlflowClient(server).search_experiments() if e.name != "Default"}
    except Exception as error:  # whatever a server can answer
        return f"error: {first_line(server)}: does not answer as MLflow does ({first_line(error)})"
    for name, number in found.items():
        view = "viewStateShareKey=accuracy&workflowType=machine_learning"
        print(f"{name}: {server}/#/experiments/{number}/runs?{view}", flush=True)
    if not found:
        print(f"{server}: nothing is logged yet: make repro, or make relog", flush=True)
    return None


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
