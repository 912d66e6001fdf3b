"""The model card of an exported network: what it is, what it was trained on, how well it does, what it is not for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tripletkd.analysis.statistics import summarise
from tripletkd.evaluation.measurement import Measurement, SeedMeasurement
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

# a figure of SeedMeasurement -> its line of the card, factor, decimals
MEASURES = {
    "test_accuracy": ("test accuracy, %", 100, 2),
    "test_top5_accuracy": ("top-5 test accuracy, %", 100, 2),
    "test_cross_entropy": ("test cross-entropy", 1, 4),
    "test_calibration_error": ("calibration error, %", 100, 2),
    "train_accuracy": ("training accuracy, %", 100, 2),
    "agreement": ("same class as the teacher, % of the test images", 100, 2),
}


@dataclass(frozen=True)
class Exported:
    """What export.json says of a network, its file, and what came of holding one against the other."""

    suite: str
    method: str  # or "teacher"
    network: str
    seed: int
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


@dataclass(frozen=True)
class Line:
    """A figure's line in the table of the card: its name, and texts for its cells."""

    name: str
    this: str
    mean: str
    interval: str
    teacher: str


def markdown(exported: Exported, sources: Sources) -> str:
    """Write the model card.

    Args:
        exported: The network and its file.
        sources: Where it comes from, and what was measured.

    Returns:
        MODEL_CARD.md. What was named by somebody else, such as classes, cannot bring HTML or table cells into it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_as_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    record = next(record for record in sources.records if record.seed == exported.seed)
    return environment.get_template(TEMPLATE).render(
        exported=exported,
        record=record,
        records=sources.records,
        is_teacher=record.method == "teacher",
        seeds=", ".join(str(each.seed) for each in sources.records),
        classes=", ".join(exported.classes),
        shape=", ".join(map(str, record.image_shape)),
        optimizer=OPTIMIZERS.get(name := record.params["recipe"]["optimizer"]["name"], name),
        params=list(_flat(record.params)),
        data=sources.data,
        measured=sources.measured,
        measures=list(_lines(exported.seed, sources)),
        licence=LICENCES.get(sources.data["source"], UNKNOWN),
    )


def _as_text(value: object) -> Markup:
    """Return a value as text that Markdown shows as it is: on one line, no HTML, no end of a table's cell.

    Spaces at the ends stay: the template joins with them.
    """
    text = escape(str(value), quote=False).replace("|", "\\|").replace("\r", " ").replace("\n", " ")
    return Markup(text)  # nosec B704  # noqa: S704  # escaped in the line above


def _flat(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Give the values of nested blocks, each under its dotted name."""
    for key, value in block.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _lines(seed: int, sources: Sources) -> Iterator[Line]:
    """Give a line for each figure that the exported seed has."""
    measured = {each.seed: each for each in sources.measured.seeds}
    for key, (name, factor, decimals) in MEASURES.items():

        def figure(of: SeedMeasurement, key: str = key, factor: int = factor) -> float | None:
            value: float | None = getattr(of, key)
            return None if value is None else factor * value

        def text(value: float | None, decimals: int = decimals) -> str:
            return "" if value is None else f"{value:.{decimals}f}"

        values = [value for each in sources.measured.seeds if (value := figure(each)) is not None]
        mine = figure(measured[seed])
        if mine is not None:
            summary = summarise(values)
            mean = text(summary.mean) + (f" ± {text(summary.std)}" if summary.std is not None else "")
            interval = f"± {text(summary.half_width)}" if summary.half_width is not None else ""
            yield Line(name, text(mine), mean, interval, text(figure(sources.teacher.seeds[0])))
