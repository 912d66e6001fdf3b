"""What identifies a run: all that its weights and history should depend on; and its comparison with params.yaml."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tripletkd.code_hash import Definition, everything_in, meaning
from tripletkd.errors import UserError
from tripletkd.files import Json

NAME = re.compile(r"\w[\w.-]*")  # what a suite, a method, an ablation or a variant may be called


@dataclass(frozen=True)
class RunIdentity:
    """Says what a run is, whatever the seed and the machine.

    The blocks of parameters leave out every value that is its default. A parameter that is added later, with a default,
    therefore changes no run that is there.

    Attributes:
        split: The part of the data that the run is measured on and has not seen.
        name: "teacher", a method, or "ablations/<ablation>/<variant>".
        method: The module of tripletkd.methods that computes the loss.
        initial_sha256: Of the weights that every seed starts from; None where each draws its own.
    """

    suite: str
    split: str
    name: str
    method: str
    network: str
    params: dict[str, Any]
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    precision: str
    deterministic: bool
    evaluate_every: int
    data_sha256: str
    teacher_sha256: str | None
    initial_sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would be read or written outside the folders that a run belongs to."""
        names = [self.suite, *self.name.split("/")]
        if self.split not in ("test", "validation") or not all(NAME.fullmatch(name) for name in names):
            raise ValueError(f"{self.suite!r}, {self.split!r}, {self.name!r} name no run")

    def __str__(self) -> str:
        """Name the run for people."""
        return f"{self.suite}/{self.name}"

    @property
    def is_teacher(self) -> bool:
        """Tell whether the run is the suite's teacher."""
        return self.name == "teacher"


def as_block(holder: object) -> Json:
    """Return a dataclass, in which identities may be, as JSON has it.

    initial_sha256 is left out where it is None: hashes of runs from before there was such a field stay valid.
    """
    assert dataclasses.is_dataclass(holder) and not isinstance(holder, type)
    return asdict(holder, dict_factory=_without_absent)


def _without_absent(pairs: list[tuple[str, object]]) -> Json:
    return {key: value for key, value in pairs if (key, value) != ("initial_sha256", None)}


def described(settings: object) -> Json:
    """Return a dataclass of parameters as JSON has it, without the values that are their defaults.

    A `name`, which tells one kind of block from another, is kept.
    """
    assert dataclasses.is_dataclass(settings)
    block = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name != "name" and value == field.default:
            continue
        block[field.name] = described(value) if dataclasses.is_dataclass(value) else value
    found: Json = json.loads(json.dumps(block))
    return found


def refuse_unlike(place: object, found: RunIdentity, expected: RunIdentity, source: str) -> None:
    """Compare a run with the one that params.yaml describes.

    Runs are compared with params.yaml, not with each other: where all runs of a table agree with it, they agree.

    Args:
        place: The file or the folder that says what was found.
        found: What it says.
        expected: The identity that params.yaml describes.
        source: The blocks of params.yaml that it comes from.

    Raises:
        UserError: If they differ. The message names the first key that does, with both values.
    """
    if difference := first_difference(as_block(found), as_block(expected)):
        key, one, other = difference
        raise UserError(
            f"{place}: made with {key} {one}, params.yaml ({source}) has {other}; run its stages again, or write into "
            "params.yaml what it was made with: figures of unlike runs are not compared"
        )


def first_difference(found: Json, expected: Json) -> tuple[str, object, object] | None:
    """Return the first dotted key at which two nested blocks differ, with both values; None where they are equal."""
    return next(_differences(found, expected), None)


def _differences(found: object, expected: object, key: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for name in [*expected, *(name for name in found if name not in expected)]:
            yield from _differences(found.get(name), expected.get(name), f"{key}.{name}".lstrip("."))
    elif found != expected:
        yield key, found, expected


def code_of(method: str, choices: Sequence[Definition]) -> str:
    """Hash what the code means that computes the weights and the history of a run.

    Args:
        method: Its module in tripletkd.methods.
        choices: The classes of the networks, of the optimizer and of the schedule.
    """
    roots = [Definition(*name.split(":")) for name in COMPUTES]
    without = [definition for definition in REGISTRIES if definition not in choices]
    return meaning([*roots, *choices, *everything_in(f"tripletkd.methods.{method}")], without)


# What computing begins with. tests/test_code_hash.py compares what these reach with what is called while a run trains.
COMPUTES = (
    "tripletkd.config.schema:InputSettings",
    "tripletkd.data.batches:DeviceData",
    "tripletkd.training.compute:select_compute",
    "tripletkd.training.compute:set_up_process",
    "tripletkd.training.job:build_trainer",
    "tripletkd.training.loop:fit",
    "tripletkd.training.optim:Recipe",
    "tripletkd.training.trainer:Teacher",
    "tripletkd.evaluation.metrics:TripletMetrics",
)
# Lists of what can be chosen from: what is chosen counts, the rest of the list does not.
REGISTRIES = (
    Definition("tripletkd.models", "NETWORKS"),
    Definition("tripletkd.models.torchvision", "TorchvisionNetwork"),
    Definition("tripletkd.training.optim", "OptimizerSettings"),
    Definition("tripletkd.training.optim", "ScheduleSettings"),
)
