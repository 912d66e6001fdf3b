"""Runs a stage and writes which keys of params.yaml it read, for tests/test_architecture.py.

    python tests/config_reads.py FILE MODULE [key=value ...]

runs MODULE as `python -m MODULE key=value ...` does, and writes a list of paths such as "suites.digits.student.network"
to FILE. What the configuration itself reads while it is loaded or resolved for a suite does not count. Reading a block
counts as nothing: its keys are recorded when they are read.
"""

import atexit
import dataclasses
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATHS: dict[int, tuple[Any, set[str]]] = {}  # by id: the object, which stays alive, and where it stands in params.yaml
READ: set[str] = set()
SILENT = [0]  # more than 0 while the configuration is made
WHOLE = ("__dict__", "model_dump", "model_dump_json")  # read all that there is in a block
PATCHED: set[type] = set()


def is_block(value: Any) -> bool:
    return not isinstance(value, type) and (dataclasses.is_dataclass(value) or hasattr(type(value), "model_fields"))


def keys_of(block: Any) -> list[str]:
    fields = getattr(type(block), "model_fields", None) or type(block).__dataclass_fields__
    return list(fields)


def blocks_in(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    """The blocks in a value, with their paths; a list is one key of params.yaml, so its items share its path."""
    if is_block(value):
        yield value, path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from blocks_in(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from blocks_in(item, path)


def register(value: Any, path: str) -> None:
    """Follow the reads of a block and of all blocks in it."""
    for block, place in blocks_in(value, path):
        PATHS.setdefault(id(block), (block, set()))[1].add(place)
        patch(type(block))
        for key in keys_of(block):
            register(object.__getattribute__(block, key), f"{place}.{key}".lstrip("."))


def register_suite(suite: Any, name: str) -> None:
    """Follow the reads of what a suite resolves to; the parameters in it stand elsewhere in params.yaml."""
    elsewhere = ("methods", "ablations")
    PATHS.setdefault(id(suite), (suite, set()))[1].add(f"suites.{name}")
    patch(type(suite))
    for key in keys_of(suite):
        register(object.__getattribute__(suite, key), key if key in elsewhere else f"suites.{name}.{key}")


def patch(kind: type) -> None:
    if kind in PATCHED:
        return
    PATCHED.add(kind)
    original: Callable[[Any, str], Any] = getattr(kind, "__getattribute__")  # noqa: B009 (typed as bound otherwise)

    def recording(self: Any, name: str) -> Any:
        value = original(self, name)
        if not SILENT[0] and id(self) in PATHS:
            keys = keys_of(self) if name in WHOLE else [name] if name in keys_of(self) else []
            for key in keys:
                record(self, key, object.__getattribute__(self, key))
        return value

    kind.__getattribute__ = recording  # type: ignore[method-assign, assignment]


def record(block: Any, key: str, value: Any) -> None:
    if next(blocks_in(value, ""), None) is None:
        READ.update(f"{place}.{key}".lstrip(".") for place in PATHS[id(block)][1])


def silent(function: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
    """The function with its own reads unrecorded; `then` gets its result and arguments."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        SILENT[0] += 1
        try:
            result = function(*arguments, **named)
            then(result, *arguments)
        finally:
            SILENT[0] -= 1
        return result

    return wrapped


def main(target: Path, module: str, words: list[str]) -> None:
    from tripletkd.config import load

    config = load.Config
    load.load = silent(load.load, lambda found, *_: register(found, ""))
    for_suite = silent(config.for_suite, lambda suite, _, name: register_suite(suite, name))
    setattr(config, "for_suite", for_suite)  # noqa: B010  # mypy would not have a method replaced
    atexit.register(lambda: target.write_text(json.dumps(sorted(READ))))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
