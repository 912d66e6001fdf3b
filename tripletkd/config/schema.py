"""What params.yaml may hold: dataclasses, by whose annotations `check` judges a file.

A choice is a Literal, a range is one of annotated_types, and a key without a default must be given.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import Field

from tripletkd.data.batches import Inputs
from tripletkd.data.photograph_batches import PhotographInputs
from tripletkd.data.photographs import View
from tripletkd.errors import UserError
from tripletkd.methods import MethodParams
from tripletkd.methods.functional import Distinct
from tripletkd.training.optim import Recipe

ABLATED = "triplet_family"  # the method whose parameters an ablation varies
MAX_SEEDS = 300  # of a suite: beyond 354, SciPy finds no power for the table

Block = dict[str, object]  # judged later, when it is known what it belongs to
Name = Annotated[str, Field(pattern=r"^\w[\w-]*$")]  # of folders, and of DVC's keys
Split = Literal["test", "validation"]
Share = Annotated[float, Gt(0), Le(1)]
MAX_HUE = 0.5  # of a color jitter: half of the circle to either side
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
    workers: Annotated[int, Ge(0)] | None = None  # processes that decode photographs; as many as processors by default


@dataclass(frozen=True)
class DataSettings:
    """Where a suite's images come from."""

    source: Literal["torchvision", "folder", "archive", "digits"]
    name: str | None = None  # torchvision: the class's name
    path: str | None = None  # folder, archive: where it is; torchvision: the original archive, in place of a download
    sha256: str | None = None  # archive: what it must be
    image_size: Annotated[int, Ge(8)] | None = None  # folder, archive: pixels of either side, after resize and crop
    short_side: Annotated[int, Ge(8)] | None = None  # folder, archive: photographs stay encoded, at most so large
    per_class: Annotated[int, Ge(1)] | None = None  # only the first N images of each class, of either split

    @property
    def origin(self) -> str:
        """Name where the images are from; torchvision's own archive is the same, downloaded or at hand."""
        of = f", sha256 {self.sha256}" if self.sha256 else ""
        return f"{self.source} {self.name or (self.path and Path(self.path).name) or ''}".rstrip() + of

    @property
    def selection(self) -> str:
        """Say which images they are, and at which size, where that is said."""
        said = {name: getattr(self, name) for name in ("image_size", "short_side", "per_class")}
        return ", ".join(f"{name} {value}" for name, value in said.items() if value is not None)


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
class TrainView:
    """What training does to a photograph, by torchvision.transforms.v2: the flip is `inputs.flip`."""

    random_resized_crop: Annotated[list[Share], MinLen(2), MaxLen(2)] | None = None  # smallest and largest area
    color_jitter: Annotated[list[Annotated[float, Ge(0)]], MinLen(4), MaxLen(4)] | None = None  # brightness, ..., hue
    rand_augment: Annotated[list[Annotated[int, Ge(1), Le(30)]], MinLen(2), MaxLen(2)] | None = None  # ops, magnitude
    trivial_augment: bool = False


@dataclass(frozen=True)
class EvaluationView:
    """What evaluation does to a photograph, before the square in its center is cropped."""

    resize: Annotated[int, Ge(8)] | None = None  # pixels of the shorter side; the size of the input by default


@dataclass(frozen=True)
class SuiteInputs(InputSettings):
    """The same, and for photographs (`data.short_side`) the size of a network's input, and how they become one."""

    size: Annotated[int, Ge(8)] | None = None
    train: TrainView = TrainView()
    test: EvaluationView = EvaluationView()

    def build(self, channels: int) -> Inputs:
        """Return the Inputs of images with that many channels.

        Raises:
            UserError: A list has neither one value nor one a channel.
        """
        pixels = super().build(channels)
        return pixels if self.size is None else PhotographInputs(**vars(pixels), view=self.view, train=vars(self.train))

    @property
    def view(self) -> View:
        """What evaluation sees of a photograph."""
        assert self.size is not None
        return View(self.test.resize or self.size, self.size)

    def check(self, data: DataSettings) -> None:
        """Raise UserError, which begins with the key, if photographs and how they become inputs do not go together."""
        hue = (self.train.color_jitter or [0])[-1]
        scale = self.train.random_resized_crop or [1, 1]
        for is_wrong, message in (
            (data.short_side and data.image_size, "data.image_size: found with data.short_side; expected one of them"),
            (data.short_side and not self.size, "inputs.size: missing; data.short_side needs the size of an input"),
            (
                not data.short_side and (self.size or self.train != TrainView() or self.test != EvaluationView()),
                "inputs: found size, train or test without data.short_side; expected with photographs only",
            ),
            (self.size and self.crop_padding, "inputs.crop_padding: found with photographs; expected 0"),
            (
                self.size and not self.size <= self.view.resize <= (data.short_side or 0),
                f"inputs.test.resize: found {self.test.resize or self.size}; expected at least {self.size}, the size, "
                f"and at most {data.short_side}, data.short_side",
            ),
            (
                self.train.rand_augment and self.train.trivial_augment,
                "inputs.train.trivial_augment: found with rand_augment; expected one of them",
            ),
            (hue > MAX_HUE, f"inputs.train.color_jitter: found a hue of {hue}; expected at most {MAX_HUE}"),
            (scale[0] > scale[-1], f"inputs.train.random_resized_crop: found {scale}; expected the smaller one first"),
        ):
            if is_wrong:
                raise UserError(message)


@dataclass(frozen=True)
class WeightsSettings:
    """Weights that somebody else trained, from which a network starts in every seed."""

    source: Text  # a file, an address (https://...), torchvision/NAME or timm/NAME
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None  # of the file; this or git_blob
    git_blob: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None  # of the file, as git has it
    tag: Text | None = None  # which of a name's weights, such as IMAGENET1K_V1
    classes: Annotated[Distinct[int | str], MinLen(1)] | None = None  # of the file, in the data set's order
    temperature: Annotated[float, Gt(0)] = 1.0  # by which the logits are divided, that is the last layer's weights


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
    inputs: SuiteInputs
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
    in_common: Block = field(default_factory=dict)  # what all lines change alike, and `changed` leaves out

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
