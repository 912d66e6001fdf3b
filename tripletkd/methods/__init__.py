"""The distillation methods, one module each: the published formula as a pure function, and the loss made of it.

A method's module defines

    NEEDS     what the method uses beside the student's logits for x, a frozenset of "teacher", "negative",
              "teacher_negative" and "features"; where that depends on the parameters, a function needs(params) instead
    Params    a frozen dataclass: the method's block in params.yaml, with the accepted ranges as annotations
    loss      loss(batch, params) returns the terms of the loss by name: {name: Term(weight, value)}
    adapters  optional: adapters(student, teacher, params) builds a module that is trained along with the student and
              dropped afterwards, shaped to the Outputs of both networks for two images; `loss` calls it as
              batch.adapters
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def names() -> list[str]:
    """List the names of all methods in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "functional")


def load(name: str) -> ModuleType:
    """Import the module of one method.

    Raises:
        KeyError: there is no method of that name.
    """
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name}")


def needs(method: ModuleType, params: Any) -> frozenset[str]:
    """Say what a method uses beside the student's logits for x.

    Args:
        method: a method's module.
        params: an instance of its Params.

    Returns:
        Some of "teacher", "negative", "teacher_negative" and "features".
    """
    return method.needs(params) if hasattr(method, "needs") else method.NEEDS
