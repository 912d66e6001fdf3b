"""What params.yaml may hold: dataclasses, by whose annotations `check` judges a file.

A choice is a Literal, a range is one of annotated_types, and a key without a default must be given.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import Field

from tripletkd.data.batches import Inputs
from tripletkd.errors import UserError
from tripletkd.methods import MethodParams
from tripletkd.methods.functional import Distinct
from tripletkd.training.optim import Recipe

ABLATED = "triplet_family"  # the method whose parameters an ablation varies
MAX_SEEDS = 300  # of a suite: beyond 354, SciPy finds no power for the table

Block = dict[str, object]  # judged later, when it is known what it belongs to
Name = Annotated[str, Field(pattern=r"^\w[\w-]*$")]  # of folders, and of DVC's keys
Split = Literal["test", "validation"]
Percent = Annotated[float, Ge(0), Le(100)]
Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class EquivalentCode:
    """Code other than today's that was shown to compute the same bytes: its weights of these runs count as today's."""

    code: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # sha256, as in records
    suite: str
    methods: Annotated[Distinct[str], MinLen(1)]  # `teacher` among them, where its training was shown
    shown: Text  # the file or folder that says how it was shown


@dataclass(frozen=True)
class RunSettings:
    """What is regenerated, and how it is computed."""

    suites: Annotated[Distinct[str], MinLen(1)]
    methods: Annotated[Distinct[str], MinLen(1)]
    ablations: Distinct[str]
    splits: Distinct[Split]  # each has a teacher of its own, which has not seen it
    split: Split  # that the table is measured on
    ablation_split: Split
    device: Literal["auto", "cpu", "cuda"]
    residence: Literal["auto", "device", "host"]
    deterministic: bool
    equivalent_code: list[EquivalentCode]
    cuda_graph: bool
    fuse_seeds: Literal["auto", "always", "never"]
    checkpoint_minutes: Annotated[float, Gt(0)]
    export: Distinct[str]  # methods, and `teacher`, that are written as ONNX files


@dataclass(frozen=True)
class DataSettings:
    """Where a suite's images come from."""

    source: Literal["torchvision", "folder", "archive", "digits"]
    name: str | None = None  # torchvision: the class's name
    path: str | None = None  # folder, archive: where it is; torchvision: the original archive, in place of a download
    sha256: str | None = None  # archive: what it must be
    image_size: Annotated[int, Ge(8)] | None = None  # folder, archive: pixels of either side, after resize and crop
    per_class: Annotated[int, Ge(1)] | None = None  # only the first N images of each class, of either split


@dataclass(frozen=True)
class InputSettings:
    """How pixels become a network's input: data.batches.Inputs, before the number of channels is known."""

    mean: list[float]
    std: list[Annotated[float, Gt(0)]]
    crop_padding: Annotated[int, Ge(0)]
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
class WeightsSettings:
    """Weights that somebody else trained, from which a network starts in every seed."""

    source: Text  # a file, an address (https://...), torchvision/NAME or timm/NAME
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of the file; this or git_blob
    git_blob: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None  # of the file, as git has it
    tag: Text | None = None  # which of a name's weights, such as IMAGENET1K_V1
    classes: Annotated[Distinct[int | str], MinLen(1)] | None = None  # of the file, in the data set's order


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What the blocks of a teacher and of a student have in common."""

    network: str
    weights: WeightsSettings | None = None  # drawn from the seed where it is None


@dataclass(frozen=True, kw_only=True)
class StudentSettings(NetworkSettings):
    """The student of a suite. Its recipe is the suite's, but for what its own block changes."""

    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class TeacherSettings(NetworkSettings):
    """The teacher of a suite, likewise."""

    recipe: Recipe | None  # None: taken as its weights are
    seed: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Suite:
    """An experiment: a data set, a teacher, a student, and how both are trained."""

    about: str  # a sentence for the report
    data: DataSettings
    inputs: InputSettings
    seeds: Annotated[Distinct[Annotated[int, Ge(0)]], MinLen(1), MaxLen(MAX_SEEDS)]  # of the students
    precision: Literal["float32", "float64", "tf32", "bfloat16"]
    recipe: Recipe
    teacher: TeacherSettings
    teacher_floor: Percent  # accuracy on the measured split below which no student is trained
    student: StudentSettings
    evaluate_every: Annotated[int, Ge(1)]
    holdout: Annotated[int, Ge(1)]  # training images a class that make the validation split


@dataclass(frozen=True)
class SuiteBlock(Suite):
    """A suite as params.yaml has it."""

    published: str | None  # a CSV file of figures from the literature


@dataclass(frozen=True)
class Published:
    """A figure from the literature."""

    accuracy: Percent  # on the test split
    source: Text
    curve: str | None = None  # a CSV file with epoch and test_accuracy, for the picture


@dataclass(frozen=True)
class Variant:
    """One line of an ablation: how it differs from the others, and the parameters and the recipe that it makes."""

    changed: Block
    params: MethodParams  # of the method ABLATED
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
class SuiteConfig(Suite):
    """A suite with nothing left to look up."""

    name: str
    published: dict[str, Published]  # of the teacher, of methods here, and of others: references in the table
    methods: dict[str, MethodParams]  # the Params of every method
    ablations: dict[str, list[Variant]]


@dataclass(frozen=True)
class Claim:
    """What the paper says: one method's test accuracy is above that of each of the others."""

    method: str
    over: Distinct[str]


@dataclass(frozen=True)
class Settings:
    """params.yaml, and which of its parts a stage is asked for on the command line (suite=..., method=...)."""

    run: RunSettings
    suites: dict[Name, SuiteBlock]
    methods: dict[str, Block]
    ablations: dict[Name, Annotated[list[Block], MinLen(2)]]
    claims: list[Claim]
    suite: str | None
    method: str | None
    ablation: str | None
    split: Split
