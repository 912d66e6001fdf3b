"""Judge blocks of params.yaml by the annotations of a dataclass, with the key's path in the message.

pydantic's core does the judging. The dataclasses stay the standard library's own, because methods and optimizers, which
declare theirs, are to be read and imported without pydantic.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic_core import CoreSchema, SchemaValidator, ValidationError, core_schema

from tripletkd.errors import UserError

T = TypeVar("T")
BOUNDS = {">": "gt", ">=": "ge", "<": "lt", "<=": "le"}  # in annotations -> in pydantic
OUT_OF_RANGE = {
    "greater_than": "> {gt:g}",
    "greater_than_equal": ">= {ge:g}",
    "less_than": "< {lt:g}",
    "less_than_equal": "<= {le:g}",
}


def check(cls: type[T], found: object, key: str) -> T:
    """Return the dataclass built from a block of parameters.

    Args:
        cls: A dataclass with annotations as config.schema describes them.
        found: What stands in the place of the block.
        key: The block's path in params.yaml, for the message; empty for the whole file.

    Raises:
        UserError: Something in the block is not as annotated; the message names its key.
    """
    try:
        made: T = _validator(typing.cast("Hashable", cls)).validate_python(found)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        unknown = [e for e in errors if e["type"] == "unexpected_keyword_argument"]  # explains what is missing, too
        problem = (unknown or errors)[0]
        path, hint = _locate(cls, problem["loc"], key)
        path += ".name" if problem["type"].startswith("union_tag") else ""
        raise UserError(f"{path}: {_explain(problem, hint)}") from None
    return made


@cache
def _validator(cls: Any) -> SchemaValidator:
    return SchemaValidator(_schema(cls))


def _schema(hint: Any, constraints: Sequence[str] = ()) -> CoreSchema:
    """Translate an annotation; constraints are the ranges beside it."""
    bounds: dict[str, Any] = {BOUNDS[relation]: float(n) for relation, n in (text.split() for text in constraints)}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass_schema(hint)
    if origin is Annotated:
        return _schema(arguments[0], arguments[1:])
    if origin is Literal:
        return core_schema.literal_schema(list(arguments))
    if origin in (typing.Union, types.UnionType):
        return _union_schema([argument for argument in arguments if argument is not type(None)], arguments)
    if origin is list:
        return core_schema.list_schema(_schema(arguments[0]), strict=True)
    if origin is tuple:  # of any length: tuple[X, ...]
        return core_schema.tuple_schema([_schema(arguments[0])], variadic_item_index=0)
    if origin is dict:
        return core_schema.dict_schema(core_schema.str_schema(), _schema(arguments[1]), strict=True)
    simple: dict[Any, Callable[[], CoreSchema]] = {
        int: lambda: core_schema.int_schema(strict=True, **bounds),
        float: lambda: core_schema.float_schema(strict=True, **bounds),
        bool: lambda: core_schema.bool_schema(strict=True),
        str: lambda: core_schema.str_schema(coerce_numbers_to_str=True),
        Any: core_schema.any_schema,
    }
    return simple[hint]()


def _dataclass_schema(cls: type) -> CoreSchema:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = []
    for item in dataclasses.fields(cls):
        schema = _schema(hints[item.name])
        if item.default is not dataclasses.MISSING:
            schema = core_schema.with_default_schema(schema, default=item.default)
        elif item.default_factory is not dataclasses.MISSING:
            schema = core_schema.with_default_schema(schema, default_factory=item.default_factory)
        fields.append(core_schema.dataclass_field(item.name, schema, kw_only=True))
    block = core_schema.dataclass_args_schema(cls.__name__, fields, extra_behavior="forbid")
    return core_schema.dataclass_schema(cls, block, list(hints))


def _union_schema(members: list[Any], arguments: tuple[Any, ...]) -> CoreSchema:
    """Translate `X | None`, or a union of dataclasses of which the block's `name` picks one."""
    if len(members) < len(arguments):
        [member] = members
        return core_schema.nullable_schema(_schema(member))
    return core_schema.tagged_union_schema({member.name: _schema(member) for member in members}, "name")


def _locate(hint: Any, loc: Sequence[int | str], path: str) -> tuple[str, Any]:
    """Return the path of an error's place, and the annotation there; of an unknown key, its block's annotation."""
    hint = _bare(hint)
    for part in loc:
        if typing.get_origin(hint) in (
            typing.Union,
            types.UnionType,
        ):  # pydantic's place has the member's name
            hint = next(member for member in typing.get_args(hint) if member.name == part)
            continue
        path = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}".lstrip(".")
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint, include_extras=True).get(str(part), hint)
        else:
            hint = typing.get_args(hint)[1 if typing.get_origin(hint) is dict else 0]
        hint = _bare(hint)
    return path, hint


def _bare(hint: Any) -> Any:
    """Return the annotation without its ranges and without None."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated or (len(arguments) == 2 and arguments[1] is type(None)):
        return _bare(arguments[0])
    return hint


def _explain(error: Any, hint: Any) -> str:
    """Say what one of pydantic's errors means to a person who edits params.yaml."""
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return "missing; every key of the block must be given"
    if kind == "unexpected_keyword_argument":
        return f"unknown key; expected one of {', '.join(item.name for item in dataclasses.fields(hint))}"
    if found is None:
        return "found no value, expected one"
    if kind == "union_tag_invalid":
        found, expected = context["tag"], f"a value in {' '.join(m.name for m in typing.get_args(hint))}"
    elif kind in OUT_OF_RANGE:
        expected = f"a value {OUT_OF_RANGE[kind].format(**context)}"
    elif typing.get_origin(hint) is Literal:
        expected = f"a value in {' '.join(typing.get_args(hint))}"
    else:
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        is_list = typing.get_origin(hint) in (list, tuple)
        expected = kinds.get(hint, "a list" if is_list else "a block of parameters")
    return f"found {_shown(found, hint)}, expected {expected}; correct params.yaml or the command line"


def _shown(found: Any, hint: Any) -> str:
    if isinstance(found, list | dict):
        return "a list" if isinstance(found, list) else "a block"
    if typing.get_origin(hint) in (list, tuple):
        return "a single value"
    return repr(float(found) if hint is float and type(found) is int else found)
