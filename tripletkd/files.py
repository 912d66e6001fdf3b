"""Files that are whole or not there at all, and the one way to read YAML."""

import csv
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tripletkd.errors import UserError

Kind = TypeVar("Kind")
Json: TypeAlias = dict[str, Any]  # an object of JSON, or a block of YAML


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or folder to; it takes the place of `path` only if the block succeeds.

    An earlier folder is moved away before it is removed: a process killed at any moment leaves the earlier one, the new
    one or none at `path`, and never a part of one; where it left none, the next call puts the earlier one back. Write
    with Python's own means: safetensors' save_file leaves a file of a name of its own when it is killed, and where the
    disk is full it raises no OSError.
    """
    beside, earlier = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "earlier.partial"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(beside)
        if earlier.exists() and not path.exists():
            earlier.replace(path)
        try:
            yield beside
            if beside.is_dir() and path.exists():
                _remove(earlier)
                path.replace(earlier)
            try:
                beside.replace(path)
            except OSError:
                if earlier.exists():
                    earlier.replace(path)
                raise
        finally:
            _remove(beside)
            _remove(earlier)
    except OSError as error:  # where the disk is full there is no name in the error
        error.filename = error.filename or str(path)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Indented, but for lists of numbers, which stand on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_text(path, re.sub(r"\[[-\d.,e\s]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A column for each key of any row, in the order of their appearance; every digit that matters."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def flat(block: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Give the values of nested blocks, each under its dotted name: `optimizer.lr` for {"optimizer": {"lr": 0.1}}."""
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_json(path: Path, kind: type[Kind], remedy: str) -> Kind:
    """Read what `write_json` wrote of a dataclass, or of a list of them.

    Args:
        path: The file.
        kind: What it must hold; each value must be of its field's type.
        remedy: What a person does where it is missing or damaged.

    Raises:
        UserError: If the file is not there, or holds anything else. The message names the first wrong value.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"{path}: not what this version writes ({reason}); {remedy}")


@cache
def _yaml(text: str) -> object:
    """Parse YAML, which takes a tenth of a second for params.yaml, once."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)


def read_yaml(path: Path) -> Json:
    """Read a YAML file of the project as DVC does, by YAML 1.2: 011 is 11, and `yes` is a text.

    Raises:
        UserError: It is not there, is not YAML, or holds no keys or git's marks of a conflict.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        if conflict := re.search("^(<{7}|>{7}) ", text, re.MULTILINE):
            line = text.count("\n", 0, conflict.start()) + 1
            raise UserError(f"{path}, line {line}: a conflict mark of git; resolve the merge first")
        content = deepcopy(_yaml(text))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run the command from the project's root") from None
    except MarkedYAMLError as error:
        place = f"{path}, line {error.problem_mark.line + 1}" if error.problem_mark else f"{path}"
        raise UserError(f"{place}: cannot be read: {error.problem}") from None
    except (YAMLError, OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {str(error) or type(error).__name__}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {'nothing' if content is None else 'no keys'}, expected keys with values")
    return content
