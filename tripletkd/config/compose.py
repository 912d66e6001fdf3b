"""Read params.yaml and overrides with Hydra, and refuse what Hydra and DVC would read differently."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from tripletkd.errors import UserError

MAX_BYTES, MAX_DEPTH, MAX_LENGTH = 2**20, 20, 4000  # of params.yaml, of its blocks in blocks, of one value
LARGEST = 1e30  # float32 ends at 3e38, and parameters are multiplied
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SELECTION = {"suite": None, "method": None, "ablation": None, "split": "test"}  # what only the command line says
RESERVED = ("defaults", "hydra")  # Hydra's own keys


def compose(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return params.yaml in `folder` with Hydra's overrides, as plain values.

    Raises:
        UserError: The file or an override cannot be read, is not there, or asks for what is refused.
    """
    tree = _read(folder / "params.yaml")
    checked = [word for override in overrides for word in _check_override(override, SELECTION | tree)]
    composed = _compose(folder, checked)
    _check_values(composed, "")
    return composed


def _read(path: Path) -> dict[str, Any]:
    """Return the file's content, having refused what Hydra would follow without end or read otherwise than DVC."""
    if not path.is_file():
        raise UserError(f"{path}: not there; run stages from the project's root")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: {path.stat().st_size} bytes, more than {MAX_BYTES} are refused")
    try:
        text = path.read_text(encoding="utf-8")
        _check_events(text)
        for key, value in _scalars(yaml.compose(text, LOADER), ""):
            _check_reserved(key)
            _check_text(key, value)
        tree = yaml.load(text, LOADER)  # nosec B506: a safe loader  # noqa: S506
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        raise UserError(f"params.yaml: cannot be read ({error})") from None
    if not isinstance(tree, dict):
        raise UserError("params.yaml: found no keys, expected run, suites, methods, ablations and claims")
    return tree


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        place = f"params.yaml, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{place}: an alias, *{event.anchor}; expected the value itself")
        if depth > MAX_DEPTH:
            raise UserError(f"{place}: more than {MAX_DEPTH} blocks and lists within each other")


def _scalars(node: yaml.Node | None, path: str) -> Iterable[tuple[str, str]]:
    """Yield (key, text) of every single value below a YAML node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, f"{path}.{key.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _scalars(item, f"{path}[{i}]")
    elif node is not None:
        yield path, node.value


def _check_override(override: str, tree: dict[str, Any]) -> list[str]:
    """Refuse an override that cannot be read, means several, or changes a key that is not in `tree`.

    Returns:
        The override as Hydra takes it. A key that a block of `tree` leaves out is added to it, for the schema to judge;
        a block is merged into the one that is there, or takes its place where it has another name.
    """
    key = override.partition("=")[0][:80]
    _check_text(key, override)
    parsed = _parse(override, key)
    key = key.lstrip("+~")
    _check_reserved(key)
    if parsed.is_add() or parsed.is_force_add():
        return [override]
    parent, _, leaf = key.rpartition(".")
    if parent and not parsed.is_delete():
        try:
            block = _find(parent, tree, key)
        except UserError:
            outside, recipe, _ = parent.partition(".recipe")
            if not recipe:
                raise
            _find(outside, tree, key)
            return [f"++{override}"]  # what a recipe leaves out stands in the suite's
        if isinstance(block, dict) and leaf not in block:
            return [f"++{override}"]
    target, value = _find(key, tree, key), parsed.value()
    if isinstance(target, dict) and isinstance(value, list):
        raise UserError(f"{key}: found a list, expected a block of parameters")
    if isinstance(target, list) and isinstance(value, dict):
        raise UserError(f"{key}: found a block of parameters, expected a list")
    if isinstance(target, dict) and isinstance(value, dict):
        anew = value.get("name", target.get("name")) != target.get("name")
        return [f"~{key}", f"+{override}"] if anew else [f"++{override}"]
    return [override]


def _parse(override: str, key: str) -> Any:
    """Return what Hydra reads in an override; UserError if it cannot be read, or means several."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
        sweep = parsed.is_sweep_override()
    except (HydraException, RecursionError, ValueError) as error:  # whose messages do not name the override
        reason = str(error).splitlines()[0] if str(error) else "no text"
        raise UserError(
            f"{override!r} on the command line: cannot be read ({reason}); expected key=value, and a value of other "
            "than ASCII letters in quotes"
        ) from None
    if sweep:
        raise UserError(f"{key}: found several values, expected one; {_several(key, override)}")
    return parsed


def _several(key: str, override: str) -> str:
    """Say what to type for several values of a key, which Hydra would call a sweep."""
    if key in SELECTION:
        return f"`dvc repro` runs every {key} that params.yaml names in run.{key}s"
    return f"`dvc exp run --queue -S '{override}'`, then `dvc queue start`, try each"


def _check_reserved(key: str) -> None:
    if key.replace("[", ".").replace("/", ".").split(".")[0] in RESERVED:
        raise UserError(f"{key}: unknown key; expected one of run, suites, methods, ablations, claims")


def _check_text(key: str, text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise UserError(f"{key}: {len(text)} characters, more than {MAX_LENGTH} are refused")
    if "${" in text:  # Hydra would also look up environment variables, and records are written of what it finds
        raise UserError(f"{key}: found {text!r}, expected the value itself: DVC and Hydra read a reference differently")


def _find(key: str, root: dict[str, Any], asked: str) -> Any:
    """Return what stands at a key such as claims.0.over; `asked` is the whole key, of which it may be the beginning."""
    parts, tree = key.split("."), root
    for i, part in enumerate(parts):
        known = tree if isinstance(tree, dict) else dict(enumerate(tree)) if isinstance(tree, list) else {}
        index: Any = int(part) if isinstance(tree, list) and part.isdecimal() else part
        if index not in known:
            names = ", ".join(map(str, known)) or "none: it is a single value"
            raise UserError(f"{'.'.join(parts[: i + 1])}: unknown key; expected one of {names}{_near(asked, root)}")
        tree = known[index]
    return tree


def _near(asked: str, tree: dict[str, Any]) -> str:
    """Return a question after the keys that end as the one that was asked for, or are written much like it."""
    keys = list(_keys(tree))
    near = [key for key in keys if key.endswith(f".{asked}")][:3] or get_close_matches(asked, keys, n=1, cutoff=0.8)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _keys(tree: dict[str, Any], inside: str = "") -> Iterable[str]:
    for name, value in tree.items():
        yield f"{inside}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{inside}{name}.")


def _compose(folder: Path, overrides: list[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="selection", node={"defaults": ["_self_", "params"], **SELECTION})
    try:
        with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
            composed = OmegaConf.to_container(compose("selection", overrides=overrides))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        cause = error.__cause__ or error.__context__
        where = " ".join(overrides) or "params.yaml"
        raise UserError(f"{where}: cannot be read ({error}{f': {cause}' if cause else ''})") from None
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def _check_values(value: Any, key: str) -> None:
    """Refuse names that are no text and numbers that are not finite, too large, or left out with ???."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise UserError(f"{key}: found {name!r} as a name, expected text; put it in quotes")
            _check_values(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_values(item, f"{key}[{i}]")
    elif value == "???":
        raise UserError(f"{key}: missing; every key of the block must be given")
    elif isinstance(value, float) and not -float("inf") < value < float("inf"):
        raise UserError(f"{key}: found {value!r}, expected a value that is a finite number")
    elif isinstance(value, float) and abs(value) > LARGEST:
        raise UserError(f"{key}: found {value!r}, expected a value of at most {LARGEST:g}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{key}: found {value!r}, expected a value of at most 64 bits")
