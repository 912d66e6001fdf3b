"""What a training has reached so far, in a file for each seed, for whoever looks on from another process.

logs/<suite>/<split>/<name>/seed-<N>.live.jsonl has a first line that says what is trained, where and since when, and
then a line for each epoch, as in history.csv. It is there from the first step to the moment at which the seed's record
is written. The process that trains holds a lock on it, which ends with the process, however that happens.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tripletkd.training.checkpoint import Progress
    from tripletkd.training.progress import Rows, Watch

SUFFIX = ".live.jsonl"


class Live:
    """A watch that keeps the rows of each seed in its file, and hands on what it is told to another watch.

    A training never fails because of it: where no file can be written, there is none.
    """

    def __init__(self, watch: Watch, folder: Path, about: Mapping[int, Mapping[str, Any]]) -> None:
        """Describe the files, none of which is written yet.

        Args:
            watch: Is told everything too.
            folder: For the files.
            about: The first line of each seed's file; process and host are added.
        """
        self.watch, self.folder, self.about = watch, folder, about
        self.files: dict[int, TextIO] = {}

    def begin(self, done: Progress, epochs: int, steps: int) -> None:
        """Write the files anew, with the rows that are there already: a resumed run has every epoch once.

        A file has its lock from the moment at which it has its name.
        """
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            for seed, about in self.about.items():
                file = self.files[seed] = self._path(seed, ".partial").open("w", encoding="utf-8", buffering=1)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(json.dumps({**about, "pid": os.getpid(), "host": socket.gethostname()}) + "\n")
            self._keep(done.history)
            for seed in self.files:
                self._path(seed, ".partial").replace(self._path(seed))
        self.watch.begin(done, epochs, steps)

    def step(self) -> None:
        """Keep nothing."""
        self.watch.step()

    def epoch(self, rows: Rows, done: Progress) -> None:
        """Append an epoch."""
        with suppress(OSError):
            self._keep(rows)
        self.watch.epoch(rows, done)

    def _keep(self, rows: Rows) -> None:
        for row in rows:
            if file := self.files.get(int(row["seed"])):
                file.write(json.dumps(row) + "\n")

    def end(self) -> None:
        """Keep the files: the records are not written yet."""
        self.watch.end()

    def remove(self) -> None:
        """Remove the files: the records of all seeds are there."""
        with suppress(OSError):
            for seed in self.files:
                self._path(seed).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files. Those that are not removed are of a training that was stopped."""
        while self.files:
            seed, file = self.files.popitem()
            with suppress(OSError):
                self._path(seed, ".partial").unlink(missing_ok=True)  # where there was no room for it
                file.close()

    def _path(self, seed: int, more: str = "") -> Path:
        return self.folder / f"{'.' if more else ''}seed-{seed}{SUFFIX}{more}"


def is_alive(path: Path) -> bool:
    """Tell whether the process that writes a live file is at work."""
    with suppress(BlockingIOError), path.open(encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    return True


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Read the first line and the rows of a live file, as far as they are whole."""
    about, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return about, rows
