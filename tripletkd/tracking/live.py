"""What a training has reached so far, in a file for each seed, for whoever looks on from another process.

logs/<suite>/<split>/<name>/seed-<N>.live.jsonl has a first line that says what is trained and since when, and then a
line for each epoch, as in history.csv. It is there from the first step to the moment at which the seed's record is
written. The process that trains holds a lock on it, which ends with the process, however that happens.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tripletkd.files import Json, whole

if TYPE_CHECKING:
    from tripletkd.training.checkpoint import Progress
    from tripletkd.training.progress import Rows, Watch

SUFFIX = ".live.jsonl"


class Live:
    """A watch that keeps the rows of each seed in its file, and hands on what it is told to another watch.

    A training never fails because of it: where no file can be written, there is none.
    """

    def __init__(self, watch: Watch, folder: Path, about: Mapping[int, Json]) -> None:
        """Describe the files, none of which is written yet.

        Args:
            watch: Is told everything too.
            folder: For the files.
            about: The first line of each seed's file.
        """
        self.watch, self.about, self.files = watch, about, dict[int, TextIO]()
        self.paths = {seed: folder / f"seed-{seed}{SUFFIX}" for seed in about}

    def begin(self, done: Progress, epochs: int, steps: int) -> None:
        """Write the files anew, with the rows that are there already: a resumed run has every epoch once.

        A file has its lock from the moment at which it has its name.
        """
        with suppress(OSError):
            for seed, path in self.paths.items():
                rows = [row for row in done.history if row["seed"] == seed]
                with whole(path) as beside:
                    file = self.files[seed] = beside.open("w", encoding="utf-8", buffering=1)
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.writelines(json.dumps(line) + "\n" for line in (self.about[seed], *rows))
        self.watch.begin(done, epochs, steps)

    def step(self) -> None:
        """Keep nothing."""
        self.watch.step()

    def epoch(self, rows: Rows, done: Progress) -> None:
        """Append an epoch."""
        with suppress(OSError):
            for row in rows:
                if file := self.files.get(int(row["seed"])):
                    file.write(json.dumps(row) + "\n")
        self.watch.epoch(rows, done)

    def end(self) -> None:
        """Keep the files: the records are not written yet."""
        self.watch.end()

    def remove(self) -> None:
        """Remove the files: the records of all seeds are there."""
        with suppress(OSError):
            for path in self.paths.values():
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files. Those that are not removed are of a training that was stopped."""
        for file in self.files.values():
            with suppress(OSError):
                file.close()


def is_held(path: Path, tried: int = fcntl.LOCK_SH) -> bool:
    """Tell whether a process at work holds a lock on a file, such as the one that writes a live file.

    Args:
        path: The file.
        tried: A kind of lock that nobody can have beside theirs.
    """
    with suppress(BlockingIOError), path.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, tried | fcntl.LOCK_NB)
        return False
    return True


def read(path: Path) -> tuple[Json, list[dict[str, float]]]:
    """Read the first line and the rows of a live file, as far as they are whole."""
    about, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return about, rows
