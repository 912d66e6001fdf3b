"""MLflow beside this project: `make relog` adds what the store lacks, `make ui` shows the store's pages.

python -m tripletkd.tracking [ui PORT]
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from tripletkd.tracking import mirror
from tripletkd.tracking.store import address, connect, first_line


def ui(root: Path, port: int) -> str | None:
    """Name the pages of every suite's accuracies, for MLflow's own first page has none, and serve them on this machine.

    Returns:
        What is wrong. Where the store is a server, that serves them.
    """
    uri, local = address(root), f"http://127.0.0.1:{port}"
    if uri.startswith("http"):
        return _name_pages(root, uri, uri)
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return f"error: port {port} is taken, perhaps by MLflow itself; `make ui PORT={port + 1}` takes another"
    if wrong := _name_pages(root, uri, local):
        return wrong
    quiet = {"PYTHONWARNINGS": "ignore", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    words = ["-m", "mlflow", "ui", "--host=127.0.0.1", f"--port={port}", f"--backend-store-uri={uri}"]
    # This interpreter, with words that stand here
    words = [sys.executable, *words, "--uvicorn-opts=--log-level warning"]
    return os.execve(sys.executable, words, os.environ | quiet)  # nosec B606  # noqa: S606


def _name_pages(root: Path, uri: str, server: str) -> str | None:
    try:
        found = {e.name: e.experiment_id for e in connect(root).search_experiments() if e.name != "Default"}
    except Exception as error:  # whatever a store can answer, such as that its database is older than MLflow
        return f"error: {first_line(uri)}: does not answer as MLflow does ({first_line(error)})"
    for name, number in found.items():
        print(f"{name}: {server}/#/experiments/{number}/runs?viewStateShareKey=accuracy&workflowType=machine_learning")
    print("" if found else f"{server}: nothing is logged yet: make repro, or make relog\n", end="", flush=True)
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
