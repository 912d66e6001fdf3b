"""One process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tripletkd.errors import Busy

LOCKS = Path(".locks")


@contextmanager
def exclusive(*words: str) -> Iterator[None]:
    """Let one process at a time do what the words name.

    The lock ends with its holder, however that happens. Where no file can be written, or the file system has no locks,
    nobody is refused.

    Raises:
        Busy: If another process is in such a block.
    """
    from filelock import FileLock, Timeout

    path = LOCKS / ".".join(word.replace("/", "-") for word in words)
    lock, holder = FileLock(path, blocking=False), ""
    with suppress(OSError):
        holder = path.read_text() if path.exists() else ""  # before acquiring, which empties it
    with suppress(OSError, NotImplementedError):  # where no lock can be had
        path.parent.mkdir(exist_ok=True)
        try:
            lock.acquire()
        except Timeout:  # an OSError itself
            who = f"process {holder}" if holder else "another process"
            raise Busy(
                f"{path}: {who} does this here already; wait until it ends, or stop it, and run the same command again"
            ) from None
        path.write_text(str(os.getpid()))
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()
            lock.release()
