"""Read params.yaml, and change it by the overrides of a command line, whose grammar is Hydra's."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletkd.config.check import near
from tripletkd.errors import UserError
from tripletkd.files import Json, read_yaml

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

LARGEST = 1e30  # float32 ends at 3e38, and parameters are multiplied
SELECTION: Json = {"suite": None, "method": None, "ablation": None, "split": None}  # what only the command line says


def compose(folder: Path, overrides: Sequence[str]) -> Json:
    """Return params.yaml in `folder` with the overrides, as plain values.

    Hydra reads no file: it would read 011 as 9, and DVC reads 11.

    Raises:
        UserError: The file or an override cannot be read, or asks for what is refused.
    """
    tree = SELECTION | read_yaml(folder / "params.yaml")
    for override in overrides:
        _apply(tree, override)
    if tree["split"] is None:
        key = "split" if tree["ablation"] is None else "ablation_split"
        tree["split"] = tree["run"].get(key, "test") if isinstance(tree.get("run"), dict) else "test"
    for key, value in _places(tree):
        _check_value(value, key)
    return tree


def merged(base: object, changes: object) -> object:
    """Return `base` with changes, block by block; a block with another name, such as of an optimizer, starts anew."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    if changes.get("name", base.get("name")) != base.get("name"):
        return changes
    return base | {key: merged(base.get(key), value) for key, value in changes.items()}


def _apply(tree: Json, override: str) -> None:
    """Change `tree` by one override: set a value, merge a block, or with ~ take a key away.

    A key that the block of a suite or of a method leaves out is added, for the schema to judge. With + or without is
    the same.
    """
    parsed = _parse(override)
    path, block = parsed.get_key_element().lstrip("+~").split("."), tree
    for depth, name in enumerate(path):
        known: Any = block if isinstance(block, dict) else range(len(block)) if isinstance(block, list) else ()
        index: Any = int(name) if isinstance(block, list) and name.isdecimal() else name
        last = depth == len(path) - 1
        if index not in known:
            if not isinstance(block, dict) or depth < 2 - last or parsed.is_delete():
                expected = ", ".join(map(str, known)) or "none: it is a single value"
                found = ".".join(path[: depth + 1]) or repr(override)
                raise UserError(f"{found}: unknown key; expected one of {expected}{_near(path, tree)}")
            block[index] = None if last else {}
        if not last:
            block = block[index]
    if parsed.is_delete():
        del block[index]
    else:
        block[index] = merged(block[index], parsed.value())


def _near(path: Sequence[str], tree: Json) -> str:
    """Return a question after the keys that end as the one that was asked for, or are written much like it."""
    asked, keys = ".".join(path), [key for key, _ in _places(tree) if key]
    ending = [key for key in keys if key.endswith(f".{asked}")][:3]
    return f"; did you mean {' or '.join(ending)}?" if ending else near(asked, keys)


def _parse(override: str) -> "Override":
    """Return what Hydra reads in an override; UserError if it cannot be read, or has several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
        sweep = parsed.is_sweep_override()
    except (HydraException, RecursionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no text"
        raise UserError(
            f"{override[:200]!r} on the command line: cannot be read ({reason}); expected key=value, and quotes "
            "around a value of other than ASCII letters"
        ) from None
    if sweep:
        key = parsed.get_key_element()
        each = f"`dvc exp run --queue -S '{override}'`, then `dvc queue start`, try each"
        every = f"`dvc repro` runs every {key} that params.yaml names in run.{key}s"
        raise UserError(f"{key}: found several values, expected one; {every if key in SELECTION else each}")
    return parsed


def read_override(override: str) -> tuple[str, object]:
    """Return the key of an override, without + or ~, and its value; None where it takes the key away."""
    parsed = _parse(override)
    return parsed.get_key_element().lstrip("+~"), None if parsed.is_delete() else parsed.value()


def _places(value: object, key: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, object]]:
    """Yield every block, list and value that there is, with its key.

    Raises:
        UserError: A name is no text, or a block or list is YAML's alias of another: ten lines of those fill any memory.
    """
    yield key, value
    seen = set() if seen is None else seen
    if not isinstance(value, dict | list):
        return
    if id(value) in seen:
        raise UserError(f"{key}: found an alias, expected the block or list itself")
    seen.add(id(value))
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict) and not isinstance(name, str):
            raise UserError(f"{key}: found {name!r} as a name, expected text; put it in quotes")
        yield from _places(item, f"{key}.{name}".lstrip(".") if isinstance(value, dict) else f"{key}[{name}]", seen)


def _check_value(value: object, key: str) -> None:
    """Refuse what the schema's types do not rule out."""
    if isinstance(value, str) and "${" in value:  # `dvc exp run -S` would write an environment variable there
        raise UserError(f"{key}: found {value!r}, expected the value itself, no reference")
    if isinstance(value, int | float):
        largest = LARGEST if isinstance(value, float) else 2**63 - 1
        if not abs(value) <= largest:
            raise UserError(f"{key}: found {value!r}, expected a finite number of at most {largest:g}")
