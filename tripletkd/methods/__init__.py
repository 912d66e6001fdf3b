"""The distillation methods, one module each: the published formula as a pure function, and the loss made of it.

A method's module defines

    NEEDS     what the method uses beside the student's logits for x, a frozenset of "teacher", "negative",
              "teacher_negative", "features" and "index"; where that depends on the parameters, a function
              needs(params) instead
    Params    a frozen dataclass: the method's block in params.yaml, with the accepted ranges as annotations
    loss      loss(batch, params) returns the terms of the loss by name: {name: Term(weight, value)}
    adapters  optional: adapters(student, teacher, params) builds a module that is trained along with the student and
              dropped afterwards, shaped to the Outputs of both networks for two images; `loss` calls it as
              batch.adapters. Of a method that needs "index" it is adapters(student, teacher, params, images), with the
              number of training images. What the module assigns to its buffers in `forward` is there in the next step
    by_class  optional: by_class(params) says whether `loss` compares labels beyond the cross-entropy. It then gets no
              labels that are shares of classes (label smoothing, mixup, cutmix)
    draw      optional: draw(context, params) draws on the host what the method wants for a batch of one seed, from the
              training split by class and a generator (data.batches.Drawing); `loss` finds it as batch.drawn
"""

import importlib
import pkgutil
from dataclasses import Field
from typing import Any, ClassVar, Protocol, TypeVar, cast

from tripletkd.types import Batch, Term


class MethodParams(Protocol):
    """The parameters of a method: an instance of the dataclass Params in its module."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


P = TypeVar("P", bound=MethodParams)


class Method(Protocol[P]):
    """What the module of every method defines; what it may define beside this stands above."""

    Params: type[P]

    def loss(self, batch: Batch, params: P) -> dict[str, Term]:
        """Return the terms of the loss by name."""


def names() -> list[str]:
    """List the names of all methods in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "functional")


def load(name: str) -> Method[MethodParams]:
    """Import the module of one method.

    Raises:
        KeyError: there is no method of that name.
    """
    if name not in names():
        raise KeyError(name)
    return cast("Method[MethodParams]", importlib.import_module(f"{__name__}.{name}"))


def needs(method: Method[P], params: P) -> frozenset[str]:
    """Say what a method uses beside the student's logits for x.

    Args:
        method: a method's module.
        params: an instance of its Params.

    Returns:
        Some of "teacher", "negative", "teacher_negative", "features" and "index".
    """
    return method.needs(params) if hasattr(method, "needs") else getattr(method, "NEEDS")  # noqa: B009


def by_class(method: Method[P], params: P) -> bool:
    """Say whether a method compares images by their labels, beyond the cross-entropy."""
    return hasattr(method, "by_class") and method.by_class(params)


def about(name: str) -> str | None:
    """Say what a method is in the words of its own file; None where it does not say it."""
    return (load(name).__doc__ or "").partition("\n")[0].rstrip(".") or None
