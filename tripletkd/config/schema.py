"""What params.yaml may hold, as frozen dataclasses; `check` judges a file by their annotations.

A choice is a typing.Literal, a range stands in the annotation (Annotated[int, ">= 1"]), and a key without a default
must be given.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tripletkd.data.batches import Inputs
from tripletkd.errors import UserError
from tripletkd.training.optim import Recipe

ABLATED = "triplet_family"  # the method whose parameters, and the student's recipe, an ablation varies

Split = Literal["test", "validation"]
Seed = Annotated[int, ">= 0"]
Percent = Annotated[float, ">= 0", "<= 100"]


@dataclass(frozen=True)
class EquivalentCode:
    """Code that was shown to compute the bytes that today's code computes, for some methods of a suite."""

    code: str  # sha256, as in records
    suite: str
    methods: list[str]  # and "teacher"
    shown: str  # where it is shown


@dataclass(frozen=True)
class RunSettings:
    """What is regenerated, and how it is computed where that does not change what a suite describes."""

    suites: list[str]
    methods: list[str]
    ablations: list[str]
    splits: list[Split]  # each with a teacher of its own, which has not seen it
    split: Split  # the one that the table is measured on
    ablation_split: Split
    device: Literal["auto", "cpu", "cuda"]
    residence: Literal["auto", "device", "host"]
    deterministic: bool
    equivalent_code: list[EquivalentCode]
    cuda_graph: bool
    fuse_seeds: Literal["auto", "always", "never"]
    checkpoint_minutes: Annotated[float, "> 0"]
    export: list[str]  # methods whose students, and `teacher`, are written as ONNX files


@dataclass(frozen=True)
class DataSettings:
    """Where a suite's images come from."""

    source: Literal["torchvision", "folder", "archive", "digits"]
    name: str | None = None  # torchvision: the class's name
    path: str | None = None  # folder, archive: where it is
    sha256: str | None = None  # archive: what it must be
    image_size: Annotated[int, ">= 8"] | None = None  # folder, archive: pixels of either side, after resize and crop
    per_class: Annotated[int, ">= 1"] | None = None  # only the first N images of each class, of either split


@dataclass(frozen=True)
class InputSettings:
    """How pixels become a network's input: data.batches.Inputs, before the number of channels is known."""

    mean: list[float]
    std: list[Annotated[float, "> 0"]]
    crop_padding: Annotated[int, ">= 0"]
    flip: bool

    def build(self, channels: int) -> Inputs:
        """Return the Inputs of images with that many channels.

        Raises:
            UserError: A list has neither one value nor one a channel.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise UserError(
                    f"inputs.{name}: {len(values)} values for images of {channels} channel(s); give 1 or {channels}"
                )
        return Inputs(tuple(self.mean), tuple(self.std), self.crop_padding, self.flip)


@dataclass(frozen=True)
class TeacherBlock:
    """The teacher of a suite, as params.yaml says it."""

    network: str
    seed: Seed
    recipe: dict[str, Any] = field(default_factory=dict)  # what is otherwise than in the suite's recipe


@dataclass(frozen=True)
class StudentBlock:
    """The student of a suite, as params.yaml says it."""

    network: str
    recipe: dict[str, Any] = field(default_factory=dict)  # what is otherwise than in the suite's recipe


@dataclass(frozen=True)
class SuiteBlock:
    """An experiment, as params.yaml says it: a data set, a teacher, a student, and how both are trained."""

    about: str  # a sentence for the report
    data: DataSettings
    inputs: InputSettings
    seeds: list[Seed]  # of the students
    precision: Literal["float32", "float64", "tf32", "bfloat16"]
    recipe: Recipe
    teacher: TeacherBlock
    teacher_floor: Percent  # accuracy on the measured split below which no student is trained
    student: StudentBlock
    evaluate_every: Annotated[int, ">= 1"]
    holdout: Annotated[int, ">= 1"]  # training images a class that make the validation split
    published: str | None  # a CSV file of figures from the literature


@dataclass(frozen=True)
class Claim:
    """What the paper says: one method's test accuracy is above that of each of the others."""

    method: str
    over: list[str]


@dataclass(frozen=True)
class Settings:
    """params.yaml, and which of its parts a stage is asked for on the command line (suite=..., method=...)."""

    run: RunSettings
    suites: dict[str, SuiteBlock]
    methods: dict[str, dict[str, Any]]
    ablations: dict[str, list[dict[str, Any]]]
    claims: list[Claim]
    suite: str | None
    method: str | None
    ablation: str | None
    split: Split


@dataclass(frozen=True)
class TeacherSettings:
    """The teacher of a suite and its whole recipe."""

    network: str
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class StudentSettings:
    """The student of a suite and its whole recipe."""

    network: str
    recipe: Recipe


@dataclass(frozen=True)
class Published:
    """A figure from the literature."""

    accuracy: Percent  # on the test split
    source: str
    curve: str | None = None  # a CSV file with epoch and test_accuracy, for the picture


@dataclass(frozen=True)
class Variant:
    """One line of an ablation: what tells it from the others, and the parameters and the recipe that it makes."""

    changed: dict[str, Any]
    params: Any  # of the method ABLATED
    recipe: Recipe

    @property
    def label(self) -> str:
        """What is changed, in words, for example "outputs unit, margin 0.5"."""
        values = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.changed.items()}
        return ", ".join(f"{key} {value}" for key, value in values.items()) or "as configured"

    @property
    def folder_name(self) -> str:
        """The label as a file name: triplet 0, decay_epochs [88] becomes triplet-0-decay_epochs-88."""
        return re.sub(r"[^\w.]+", "-", self.label).strip("-")


@dataclass(frozen=True)
class SuiteConfig:
    """An experiment with nothing left to look up: all that a suite's block, and what it refers to, comes to."""

    name: str
    about: str
    data: DataSettings
    inputs: InputSettings
    seeds: list[int]
    precision: str
    teacher: TeacherSettings
    teacher_floor: float
    student: StudentSettings
    evaluate_every: int
    holdout: int
    published: dict[str, Published]  # of the teacher, of methods here, and of others: references in the table
    methods: dict[str, Any]  # the Params of every method
    ablations: dict[str, list[Variant]]  # of those that are asked for
