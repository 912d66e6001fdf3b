"""Distillation methods, one file each: the published formula as a pure function, and `loss` for the training loop.

A method module has

    NEEDS    what it uses beside the student's logits for x: any of "teacher", "negative", "teacher_negative",
             "features"; where that depends on the parameters, `needs`, a function of Params, in its place
    Params   a dataclass: its block of params.yaml, ranges in the annotations
    loss     (Batch, Params) -> {name of the term: Term(weight, value)}
    layers   optional: (student, teacher, Params) -> nn.Module, trained with the student and dropped afterwards; its
             arguments are the networks' Outputs for two images, to take shapes from; `loss` calls it as Batch.layers
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def names() -> list[str]:
    """Every method there is, in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "functional")


def load(name: str) -> ModuleType:
    """The module of one method; KeyError if there is none of that name."""
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name}")


def needs(method: ModuleType, params: Any) -> frozenset[str]:
    """What a method uses with these parameters."""
    return method.needs(params) if hasattr(method, "needs") else method.NEEDS
