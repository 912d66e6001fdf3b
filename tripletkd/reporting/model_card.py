"""The model card of an exported network: what it is, what it was trained on, how well it does, what it is not for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tripletkd.analysis.statistics import summarise
from tripletkd.evaluation.measurement import Measurement
from tripletkd.files import flat
from tripletkd.reporting import tables
from tripletkd.reporting.tables import Table
from tripletkd.reporting.text import render
from tripletkd.training.run_record import Record

TEMPLATE = "model_card.md.j2"

# data.source and data.name -> what its authors say of the images' licence, as far as is known
LICENCES = {
    "digits": "CC BY 4.0: UCI Machine Learning Repository, Optical Recognition of Handwritten Digits (E. Alpaydin, "
    "C. Kaynak, 1998), of which scikit-learn carries the test part",
    "torchvision CIFAR10": "none stated by its authors, who ask for a citation (A. Krizhevsky, 2009); the images were "
    "found on the web, and 80 Million Tiny Images, from which they come, was withdrawn by its authors in 2020",
    "torchvision MNIST": "none stated by its authors (Y. LeCun, C. Cortes, C. Burges); Keras' documentation says "
    "CC BY-SA 3.0",
    "torchvision FashionMNIST": "MIT (Zalando SE, 2017)",
    "torchvision SVHN": "none stated, but its page says `for non-commercial use only` (Y. Netzer et al., 2011)",
}
LICENCES["torchvision CIFAR100"] = LICENCES["torchvision CIFAR10"]
UNKNOWN = "unknown, ask who gave you the images"

FIGURES = {"test_accuracy": ("test accuracy, %", 100), "train_accuracy": ("training accuracy, %", 100)} | tables.FIGURES


@dataclass(frozen=True)
class Exported:
    """What export.json says of a network, its file, and what came of holding one against the other."""

    suite: str
    method: str  # or "teacher"
    network: str
    seed: int
    seed_is: Literal["the first", "asked for"]  # the first that did not fail, or one that a person asked for
    parameters: int
    opset: int
    weights_bytes: int
    onnx_bytes: int
    weights_sha256: str
    onnx_sha256: str
    data_sha256: str
    versions: dict[str, str]
    classes: Sequence[str]
    images: int  # the four below are export.Check's
    max_difference: float
    other_class: int
    test_accuracy: float | None

    @property
    def checked_on(self) -> str:
        """What kind of images the two were compared on."""
        return "made-up images" if self.test_accuracy is None else "test images"


@dataclass(frozen=True)
class Description:
    """What a card says of the data: a part of dataset.json."""

    source: str
    sha256: str
    classes: tuple[str, ...]
    images: dict[Literal["train", "test"], int]
    duplicates: dict[str, int]
    orientation: str | None = None  # by which rule image files became pixels
    resized: dict[str, object] | None = None  # image_size, and by which rule


@dataclass(frozen=True)
class Sources:
    """What a card is made of besides the export.

    Attributes:
        records: The records of the run's seeds, in the order of params.yaml.
        data: What dataset.json says.
        measured: What was measured of the method.
        teacher: What was measured of the teacher.
    """

    records: Sequence[Record]
    data: Description
    measured: Measurement
    teacher: Measurement


def markdown(exported: Exported, sources: Sources) -> str:
    """Write the model card.

    Args:
        exported: The network and its file.
        sources: Where it comes from, and what was measured.

    Returns:
        MODEL_CARD.md. What was named by somebody else, such as classes, cannot bring HTML or table cells into it.
    """
    record = next(record for record in sources.records if record.seed == exported.seed)
    identity = record.identity
    size = identity.inputs.get("size")
    view = (identity.inputs.get("test", {}).get("resize", size), size) if size else None  # of photographs
    return render(
        TEMPLATE,
        exported=exported,
        record=record,
        records=sources.records,
        identity=identity,
        parameters=flat({"method": identity.params, "recipe": identity.recipe, "inputs": identity.inputs}),
        data=sources.data,
        view=view,
        figures=_figures(exported.seed, sources, identity.is_teacher),
        licence=LICENCES.get(sources.data.source, UNKNOWN),
    )


def _figures(seed: int, sources: Sources, is_teacher: bool) -> Table:
    """Make the table of the figures that the exported seed has: a row for each."""
    head = ["", f"this one (seed {seed})", f"all seeds (n = {len(sources.measured.seeds)})", "95 % interval", "teacher"]
    rows = []
    for key, (title, factor) in FIGURES.items():
        values = {of: factor * value for of, value in sources.measured.by_seed(key).items()}
        if seed in values:
            of_all = summarise(list(values.values()))
            beside = "".join(f"{factor * value:.2f}" for value in sources.teacher.by_seed(key).values())
            mean, interval = tables.mean_and_deviation(of_all), tables.interval(of_all)
            rows.append([title, f"{values[seed]:.2f}", mean, interval, beside])
    columns = slice(-1) if is_teacher else slice(None)
    return Table(head[columns], [row[columns] for row in rows])
