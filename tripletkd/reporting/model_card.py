"""The model card of an exported network: what it is, what it was trained on, how well it does, what it is not for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tripletkd.analysis.statistics import summarise
from tripletkd.errors import UserError
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
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}

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
class Sources:
    """What a card is made of besides the export.

    Attributes:
        records: The records of the run's seeds, in the order of params.yaml.
        data: What dataset.json says.
        measured: What was measured of the method.
        teacher: What was measured of the teacher.
    """

    records: Sequence[Record]
    data: Mapping[str, Any]
    measured: Measurement
    teacher: Measurement


def markdown(exported: Exported, sources: Sources) -> str:
    """Write the model card.

    Args:
        exported: The network and its file.
        sources: Where it comes from, and what was measured.

    Returns:
        MODEL_CARD.md. What was named by somebody else, such as classes, cannot bring HTML or table cells into it.

    Raises:
        UserError: If the description of the data lacks what the card says of it.
    """
    record = next(record for record in sources.records if record.seed == exported.seed)
    identity, data = record.identity, sources.data
    try:
        counts = {split: int(data["images"][split]) for split in ("train", "test")}
        counts["both"] = int(data["duplicates"]["train_and_test"])
        source, data_sha256 = data["source"], data["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"dataset.json of {exported.suite}: cannot be read ({error!r}); run the fetch stage") from None
    parameters = {"method": identity.params, "recipe": identity.recipe, "inputs": identity.inputs}
    optimizer = identity.recipe["optimizer"]["name"] if identity.recipe else ""
    return render(
        TEMPLATE,
        exported=exported,
        record=record,
        records=sources.records,
        identity=identity,
        seeds=", ".join(str(each.seed) for each in sources.records),
        classes=", ".join(exported.classes),
        shape=", ".join(map(str, record.image_shape)),
        optimizer=OPTIMIZERS.get(optimizer, optimizer),
        parameters=flat(parameters),
        counts=counts,
        source=source,
        data_sha256=data_sha256,
        figures=_figures(exported.seed, sources, identity.is_teacher),
        licence=LICENCES.get(source, UNKNOWN),
    )


def _figures(seed: int, sources: Sources, is_teacher: bool) -> str:
    """Write the table of the figures that the exported seed has: a row for each."""
    measured, teacher = sources.measured, sources.teacher
    head = ["", f"this one (seed {seed})", f"all seeds (n = {len(measured.seeds)})", "95 % interval", "teacher"]
    rows = [list(row) for row in _rows(seed, measured, teacher)]
    table = Table(head[:-1], [row[:-1] for row in rows]) if is_teacher else Table(head, rows)
    return "\n".join(table.markdown())


def _rows(seed: int, measured: Measurement, teacher: Measurement) -> Iterator[Sequence[str]]:
    for key, (title, factor) in FIGURES.items():
        values = {of: factor * value for of, value in measured.by_seed(key).items()}
        if seed in values:
            summary = summarise(list(values.values()))
            beside = "".join(f"{factor * value:.2f}" for value in teacher.by_seed(key).values())
            yield title, f"{values[seed]:.2f}", tables.mean_and_deviation(summary), tables.interval(summary), beside
