"""Judge a block of params.yaml by the annotations of a dataclass; pydantic judges, a person reads."""

import dataclasses
import json
import reprlib
import typing
from collections.abc import Hashable
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tripletkd.errors import UserError
from tripletkd.files import Json

T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
EXPECTED = {  # what to give, by the type of pydantic's error
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (a number as text needs quotes)",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a block of parameters",
    "dataclass_type": "a block of parameters",
    "greater_than": "a value > {gt:g}",
    "greater_than_equal": "a value >= {ge:g}",
    "less_than": "a value < {lt:g}",
    "less_than_equal": "a value <= {le:g}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "some text",
    "string_pattern_mismatch": "text of the pattern {pattern}",
    "predicate_failed": "each once",
}


def check(cls: type[T], found: object, key: str, strict: bool = True) -> T:
    """Return what a block of parameters is: an instance of a dataclass, or a dict of them.

    Args:
        cls: A dataclass with annotations as config.schema describes them, or a dict of those.
        found: What stands in the place of the block.
        key: The block's path in params.yaml, for the message; empty for the whole file.
        strict: Whether a text is never a number: false for a CSV file.

    Raises:
        UserError: Something in the block is not as annotated; the message names its key.
    """
    try:  # as JSON, in which a strict pydantic takes a list for a tuple and a block for a dataclass
        text = json.dumps({key: found}, default=str)
        return _adapter(cast("Hashable", cls)).validate_json(text, strict=None if strict else False)[key]
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [e for e in errors if e["type"] == "unexpected_keyword_argument"]  # explains what is missing, too
        raise UserError(_explain((unknown or errors)[0], cls, {key: found})) from None


@cache
def _adapter(cls: Any) -> TypeAdapter[Json]:
    return TypeAdapter(dict[str, cls], config=STRICT)


def _explain(error: ErrorDetails, cls: object, block: object) -> str:
    """Say what one of pydantic's errors means to a person who edits params.yaml."""
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        error["loc"] += ("name",)
        found = context.get("tag")
    path = _path(error["loc"], block)
    if kind == "json_invalid":  # hundreds of lists within each other, or half a character
        return f"{path or 'params.yaml'}: cannot be read: {context['error']}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{path}: missing; every key of the block must be given"
    if kind == "unexpected_keyword_argument":
        names = _keys(error["loc"], cls)
        return f"{path}: unknown key; expected one of {', '.join(names)}{near(str(error['loc'][-1]), names)}"
    if found is None:
        return f"{path}: found no value, expected one"
    shown = "a block" if isinstance(found, dict) else reprlib.repr(found)
    if error["loc"][-1] == "[key]":
        return f"{path}: found {shown} as a name, expected letters, digits and _ - in it"
    expected = EXPECTED.get(kind, error["msg"]).format(**context)
    return f"{path}: found {shown}, expected {expected}; correct params.yaml or the command line"


def _path(loc: tuple[int | str, ...], block: Any) -> str:
    """Return where in params.yaml the place of an error is."""
    path = ""
    for part in loc:
        if isinstance(block, dict) and part not in block and part == block.get("name"):
            continue  # pydantic names which of a union's dataclasses it is
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if part != "[key]" else ""
        block = block.get(part) if isinstance(block, dict) else block[part] if isinstance(part, int) else None
    return path.strip(".")


def _keys(loc: tuple[int | str, ...], cls: Any) -> list[str]:
    """Return the keys that may stand beside one that is unknown."""
    for part in loc[1:-1]:
        if dataclasses.is_dataclass(cls):
            cls = typing.get_type_hints(cls)[str(part)]
        else:
            members = typing.get_args(cls)
            cls = next((member for member in members if getattr(member, "name", None) == part), members[-1])
        if type(None) in (members := typing.get_args(cls)):  # a block that may be left out
            [cls] = [member for member in members if member is not type(None)]
    return [item.name for item in dataclasses.fields(cls)]


def near(name: str, names: list[str]) -> str:
    """Return a question after the name that is written much like one that is unknown; empty without one."""
    return "".join(f"; did you mean {close}?" for close in get_close_matches(name, names, n=1, cutoff=0.85))
