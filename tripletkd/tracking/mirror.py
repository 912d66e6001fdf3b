"""One process beside all stages of a checkout that mirrors in MLflow what they leave on disk, while they are at work.

A stage starts it, unless it is there already, and never waits for it. What it cannot log, `make relog` adds later.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from signal import alarm

from filelock import FileLock, Timeout

from tripletkd.errors import UserError
from tripletkd.provenance import fingerprint
from tripletkd.tracking import live
from tripletkd.tracking.exports_and_tables import EXPORT, TABLE, mirror_export, mirror_table
from tripletkd.tracking.store import address, first_line
from tripletkd.tracking.training_runs import mirror_seeds
from tripletkd.training.run_record import RECORD

LOCKS, AT_WORK = Path(".locks"), "mlflow-stages"  # a file that every stage at work holds a lock on
NOWHERE = "nowhere:"  # what MLFLOW_TRACKING_URI begins with where nothing is to be logged
POLL, IDLE, AGAIN = 1.0, 30.0, 20.0  # seconds between two looks, to the end without news, and after an error
OF_A_FILE = UserError, ValueError  # errors that stay as long as a file is as it is
HUNG = 600  # seconds after which a store that says nothing ends the process

State = set[tuple[str, float, int, bool]]  # of files: path, last change, size, whether a process is writing it
KINDS: dict[str, tuple[str, int, Callable[..., bool]]] = {  # what to look for, how far up is what is mirrored as one
    "runs": (RECORD, 1, mirror_seeds),
    "logs": (f"seed-*{live.SUFFIX}", 0, mirror_seeds),
    "exports": (EXPORT, 0, mirror_export),
    "results": (TABLE, 0, mirror_table),
}


def start(root: Path) -> ExitStack:
    """Start the mirror of this checkout if it is not at work already; it ends some time after the last stage.

    Args:
        root: The project's folder; see open_store.

    Returns:
        What to close when the stage is done.
    """
    stack = ExitStack()
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith(NOWHERE):
        return stack
    with suppress(Exception):  # a stage does not depend on it
        LOCKS.mkdir(exist_ok=True)
        fcntl.flock(stack.enter_context((LOCKS / AT_WORK).open("a")), fcntl.LOCK_SH)
        with suppress(Timeout), _lock(root):
            words = [sys.executable, "-m", "tripletkd.tracking", "follow", str(root.resolve()), str(time.time())]
            nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
            # In a session of its own: Ctrl-C is for the stage
            os.posix_spawn(sys.executable, words, os.environ, file_actions=nowhere, setsid=True)
    return stack


def _lock(root: Path) -> FileLock:
    """The lock of a checkout's mirror of a store."""
    return FileLock(LOCKS / f"mlflow-mirror-{fingerprint(address(root))[:16]}", timeout=0)


def due(root: Path, seen: Mapping[Path, State]) -> Iterator[tuple[Path, State, Callable[[], bool]]]:
    """Give the folders in which something has changed, the state of their files, and what logs them."""
    files = defaultdict[Path, State](set)
    for kind, (pattern, up, _) in KINDS.items():
        for path in [path for path in Path(kind).rglob(pattern) if ".partial" not in str(path)]:
            folder = Path("runs" if kind == "logs" else kind, path.parents[up].relative_to(kind))
            with suppress(FileNotFoundError):
                stat, is_written = path.stat(), kind == "logs" and live.is_held(path)
                files[folder].add((str(path), stat.st_mtime, stat.st_size, is_written))
    for folder, found in sorted(files.items()):
        if found != seen.get(folder):
            logs, task = Path("logs", *folder.parts[1:]), KINDS[folder.parts[0]][2]
            yield folder, found, partial(task, root, folder, logs)


def relog(root: Path) -> bool:
    """Add all that the store lacks, saying so line by line; returns whether that worked.

    It ends where the store does not do what it should, but not at a damaged file.
    """
    done, new, tasks = 0, 0, list(due(root, {}))
    for number, (folder, _, task) in enumerate(tasks, 1):
        try:
            added = _twice(task)
        except Exception as error:  # whatever a store can raise
            print(f"error: {folder}: not logged to MLflow ({first_line(error)})", file=sys.stderr)
            if not isinstance(error, OF_A_FILE):
                break
        else:
            if added:
                print(f"[{number}/{len(tasks)}] {folder}: logged", flush=True)
            done, new = done + 1, new + added
    print(f"MLflow: {new} logged, {done - new} already there; `make ui` shows them", flush=True)
    return done == len(tasks)


def _twice(task: Callable[[], bool]) -> bool:
    """Try again what failed: another machine may have logged the same at that moment."""
    with suppress(Exception):
        return task()
    return task()


def follow(root: Path, since: float) -> None:
    """Mirror what is live, and what is newer than a time, until no stage is at work and nothing new comes."""
    at_work, seen = True, {folder: state for folder, state, _ in due(root, {}) if not _is_news(state, since)}
    with suppress(Timeout):  # another process does it
        while at_work:
            with _lock(root):
                _follow(root, seen)
            at_work = _is_stage_at_work()  # one that came at the end has met the lock, and relies on this process


def _is_stage_at_work() -> bool:
    return live.is_held(LOCKS / AT_WORK, fcntl.LOCK_EX)  # stages share theirs


def _is_news(state: State, since: float) -> bool:
    return any(changed >= since - 1 or path.endswith(live.SUFFIX) for path, changed, *_ in state)


def _follow(root: Path, seen: dict[Path, State]) -> None:
    warned, news, pause = False, time.monotonic(), POLL
    while time.monotonic() - news < IDLE or _is_stage_at_work():
        time.sleep(pause)
        pause = POLL
        for folder, state, task in due(root, seen):
            alarm(HUNG)
            try:
                task()
                news = time.monotonic()
            except Exception as error:  # whatever a store can raise
                warned = warned or _warn(first_line(error))
                if not isinstance(error, OF_A_FILE):
                    pause = AGAIN
                    break
            seen[folder] = state
        alarm(0)


def _warn(reason: str) -> bool:
    with suppress(OSError), Path("logs", "mlflow.log").open("a", encoding="utf-8") as file:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        file.write(f"{now} warning: not logged to MLflow ({reason}); `make relog` adds it later\n")
    return True
