"""MLflow in a process of its own, beside a stage that must not wait for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from tripletkd.tracking.mlflow import StageFiles, first_line, log_files, relog
from tripletkd.tracking.store import prepare

SECONDS_TO_LOG = 600  # that a stage waits for MLflow at its end


class Logger:
    """A process that imports MLflow while the stage computes, and cannot fail, slow or hang it.

    Enter it early, then call `runs`, `export`, `results` or `files` once. It does what `make relog` does: mirror
    folders. If that fails, one line says so: results do not depend on it.
    """

    def __init__(self, root: Path) -> None:
        """Start the process.

        Args:
            root: The project's folder; see open_store.
        """
        self.root = root
        code = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
        # In a session of its own: Ctrl-C is for the stage.
        self.process = subprocess.Popen(  # nosec B603  # this interpreter, with words that stand here
            [sys.executable, "-m", "tripletkd.tracking.logger"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    def __enter__(self) -> Logger:
        """Return the logger itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process: after an error of the stage there is nothing to log."""
        with self.process:
            self.process.kill()

    def runs(self, folders: Sequence[Path]) -> None:
        """Mirror run folders, each with the seeds that it holds."""
        self._send("the run record is whole: `make relog` logs it later", folders=[str(folder) for folder in folders])

    def export(self, folder: Path) -> None:
        """Mirror the folder of an exported network."""
        self._send("the export is whole: `make relog` logs it later", folders=[str(folder)])

    def results(self, folder: Path) -> None:
        """Mirror the folder of a suite's table."""
        self._send("its files are whole: `make relog` logs them later", folders=[str(folder)])

    def files(self, made: StageFiles) -> None:
        """Mirror figures and files of a stage that trains nothing."""
        again = f"dvc repro --force --single-item {made.stage}@{made.suite}"
        self._send(f"its files are whole: `{again}` logs them later", files=asdict(made))

    def _send(self, remedy: str, **request: object) -> None:
        """Have the process do the one call that it is there for; warn with the remedy if it does not."""
        reason = None
        try:
            text = json.dumps({"root": str(self.root), "remedy": remedy} | request)
            self.process.communicate(text, timeout=SECONDS_TO_LOG)
            if self.process.returncode:
                reason = f"its process ended with {self.process.returncode}"
        except OSError as error:
            reason = str(error)
        except subprocess.TimeoutExpired:
            self.process.kill()
            reason = f"not done after {SECONDS_TO_LOG} s"
        if reason:
            _warn(reason, remedy)


def _warn(reason: str, remedy: str) -> None:
    print(f"warning: not logged to MLflow ({reason}); {remedy}", file=sys.stderr)


def _serve() -> None:
    """Import MLflow at once, then do the one call that comes, if any, before standard input ends."""
    with suppress(Exception):  # which the call below meets again, when there is something to say it of
        prepare()
    text = sys.stdin.read()
    if not text:
        return
    request = json.loads(text)
    root = Path(request["root"])
    try:
        if "files" in request:
            log_files(root, StageFiles(**request["files"]))
            return
        errors = [outcome.error for outcome in relog(root, map(Path, request["folders"])) if outcome.error]
        if errors:
            _warn(errors[0], request["remedy"])
    except Exception as error:  # whatever a store can raise
        _warn(first_line(error), request["remedy"])


if __name__ == "__main__":
    _serve()
