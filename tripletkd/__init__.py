"""The library behind the stages: data, networks, losses, training, evaluation, statistics, reports."""

import importlib.util
from contextlib import suppress
from pathlib import Path


def _remove_stale_bytecode(*folders: Path) -> None:
    """Remove compiled files that are older than the last change of their source, whatever the source's time says.

    Python compares size and modification time in seconds. An edit of equal size within one second, or a copy that keeps
    the time, would run the old code, and the results would be recorded under the hash of the new.
    """
    for source in [source for folder in folders for source in folder.rglob("*.py")]:
        with suppress(OSError):
            compiled = Path(importlib.util.cache_from_source(str(source)))
            if compiled.stat().st_ctime_ns <= source.stat().st_ctime_ns:
                compiled.unlink()


_remove_stale_bytecode(Path(__file__).parent, Path(__file__).parents[1] / "stages")
