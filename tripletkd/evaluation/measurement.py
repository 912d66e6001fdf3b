"""What is measured of a run, and its file: results/<suite>/measured/<split>/<name>.json."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from tripletkd.errors import UserError
from tripletkd.files import Json, read_json, write_json
from tripletkd.provenance import sha256
from tripletkd.training.identity import RunIdentity, as_block
from tripletkd.training.run_record import read_history

BORDERLINE = 0.0005, 2  # the share of images, or their number, that another machine may classify otherwise


@dataclass(frozen=True)
class Calibration:
    """Sums over the images of each bin of equal width of the confidence, divided by the number of all images."""

    share: tuple[float, ...]  # of the images, those in the bin
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SeedMeasurement:
    """The figures of one seed's network, on whole splits in eval mode; shares lie in [0, 1].

    The fields are in the order of the file. A figure that does not apply is None here and is left out there.
    """

    seed: int
    train_accuracy: float
    train_cross_entropy: float | None = None
    test_accuracy: float
    # Hexadecimal: a bit an image, first image first, set where its class was predicted; the last byte is filled with 0
    test_correct: str
    test_cross_entropy: float
    test_calibration_error: float
    test_calibration: Calibration
    test_accuracy_by_class: tuple[float, ...]
    test_top5_accuracy: float | None = None  # with more than 20 classes
    agreement: float | None = None  # as those below, of student and teacher together
    kl_to_teacher: float | None = None
    anchor_positive: float | None = None
    anchor_negative: float | None = None
    violated_triplets: float | None = None
    best_test_accuracy: float  # of the history's epochs; chosen by the test split, and no result
    best_epoch: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All that is reported of one run: what it is, what its network costs, and the figures of each seed.

    The fields are in the order of the file.
    """

    identity: RunIdentity
    parameters: int
    multiply_adds: int  # in one forward pass of one image
    weights_bytes: int
    weights_sha256: dict[int, str]  # of the seeds that did not fail
    code: dict[str, tuple[int, ...]]  # sha256 of what computed the weights -> the seeds
    failed: dict[int, str]  # seed -> why it has no weights
    test_images: int
    seeds: tuple[SeedMeasurement, ...]
    history_sha256: str | None = None  # of the file of its epochs beside this one, where there is one
    map_sha256: str | None = None  # likewise of the map of its outputs
    about: str | None = None  # what its method is, in the words of the method's own file
    class_names: tuple[str, ...] | None = None  # the teacher's only, once for all methods of its table

    def __post_init__(self) -> None:
        """Refuse a measurement that contradicts itself."""
        if not self.seeds and not self.failed:
            raise ValueError("measurements of no seed")
        for seed in self.seeds:
            _check_hits(seed, self.test_images)
        if len(set(self.weights_sha256.values())) < len(self.weights_sha256):
            raise ValueError(f"of the seeds {', '.join(map(str, self.weights_sha256))}, two have the same weights")

    @property
    def all_seeds(self) -> list[int]:
        """List the seeds of the run, those that failed among them."""
        return sorted([*(each.seed for each in self.seeds), *self.failed])

    def by_seed(self, figure: str) -> dict[int, float]:
        """Return a figure, named as in SeedMeasurement, of each seed that has it."""
        found = {seed.seed: getattr(seed, figure) for seed in self.seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def percent(self, figure: str = "test_accuracy") -> dict[int, float]:
        """Return a share, named as in SeedMeasurement, of each seed that has it, in percent."""
        return {seed: 100 * value for seed, value in self.by_seed(figure).items()}

    @property
    def in_short(self) -> str:
        """Say in a line what was reached, and by how many seeds."""
        reached = self.percent()
        mean = f"{sum(reached.values()) / len(reached):.2f} %" if reached else "nothing"
        failed = f", {len(self.failed)} more failed" if self.failed else ""
        of = f"{self.test_images:,} {self.identity.split} images"
        return f"{mean} of {of}, the mean of {len(reached)} seed(s){failed}"


@dataclass(frozen=True)
class VariantMeasurement:
    """What is measured of one variant of an ablation."""

    label: str
    changed: dict[str, object]  # what tells it from the others: parameters and their values
    configured: bool  # whether it is what params.yaml has
    measurement: Measurement


def are_close(accuracy: float, other: float, images: int) -> bool:
    """Tell whether two accuracies may be of the same weights, computed in another order or on another machine."""
    share, number = BORDERLINE
    return abs(accuracy - other) <= max(share, number / images) + 1e-9


def _check_hits(seed: SeedMeasurement, images: int) -> None:
    """Raise ValueError if a seed's hits are not of as many images as were tested, or not its accuracy."""
    hits = int.from_bytes(bytes.fromhex(seed.test_correct))
    if len(seed.test_correct) != 2 * -(-images // 8) or hits % 2 ** (-images % 8):  # eight to a byte, the last padded
        raise ValueError(f"seed {seed.seed}: test_correct is not of {images} images")
    if not math.isclose(hits.bit_count(), seed.test_accuracy * images, abs_tol=1e-6):
        raise ValueError(f"seed {seed.seed}: test_accuracy {seed.test_accuracy}, test_correct has {hits.bit_count()}")
    if not 0 <= seed.train_accuracy <= 1:  # nor is NaN
        raise ValueError(f"seed {seed.seed}: train_accuracy {seed.train_accuracy}")


def write(path: Path, measurement: Measurement) -> None:
    """Write the measurement of a method or of the teacher."""
    write_json(path, _applicable(as_block(measurement), Measurement))


def write_ablation(path: Path, variants: Sequence[VariantMeasurement]) -> None:
    """Write the measurements of an ablation's variants, in their order."""
    blocks = [as_block(variant) for variant in variants]
    write_json(path, [b | {"measurement": _applicable(b["measurement"], Measurement)} for b in blocks])


def _applicable(block: Json, kind: type) -> Json:
    """Return the block of the file: optional figures that do not apply are left out."""
    optional = {field.name for field in fields(kind) if field.default is None}
    kept = {name: value for name, value in block.items() if value is not None or name not in optional}
    if "seeds" in kept:
        kept["seeds"] = [_applicable(seed, SeedMeasurement) for seed in kept["seeds"]]
    return kept


def read(path: Path, suite: str, name: str) -> Measurement:
    """Read what `write` wrote of a method or of the teacher.

    Args:
        path: The file.
        suite: The suite that it must be of.
        name: The method that it must be of, or "teacher".

    Raises:
        UserError: If the file is not there, is damaged, or is of another run.
    """
    stage = "train_teacher" if name == "teacher" else "evaluate"
    measurement = read_json(path, Measurement, f"run `dvc repro` with {suite} in run.suites, or stages.{stage}")
    _refuse_other_run(path, measurement, suite, measurement.identity.name == name)
    return measurement


def read_ablation(path: Path, suite: str, name: str) -> list[VariantMeasurement]:
    """Read what `write_ablation` wrote.

    Args:
        path: The file.
        suite: The suite that it must be of.
        name: The ablation that it must be of.

    Raises:
        UserError: If the file is not there or is damaged, or if a variant is of another run.
    """
    remedy = f"run `dvc repro` with {suite} in run.suites, or stages.ablate"
    variants = read_json(path, list[VariantMeasurement], remedy)
    for variant in variants:
        of_ablation = variant.measurement.identity.name.rpartition("/")[0]
        _refuse_other_run(path, variant.measurement, suite, of_ablation == f"ablations/{name}")
    return variants


def _refuse_other_run(path: Path, measurement: Measurement, suite: str, is_named: bool) -> None:
    if measurement.identity.suite != suite or not is_named:
        raise UserError(f"{path}: measurements of {measurement.identity}; run its stage again")


def read_beside(place: Path, measured: Measurement, of: Literal["", "_map"] = "") -> list[dict[str, float]]:
    """Read the history, or the map, that was written with a measurement.

    Seeds that failed are left out: a mean over other seeds in every epoch is no curve.

    Raises:
        UserError: If the file beside it is another.
    """
    name, written = measured.identity.name, measured.map_sha256 if of else measured.history_sha256
    path = place / f"{name}{of}.csv"
    if not path.is_file() or sha256(path) != written:
        raise UserError(f"{path}: not the file that {name}.json was written with; run evaluate again")
    rows = [row for row in read_history(path) if row.get("seed") not in measured.failed]
    if not of:
        _refuse_other_history(path, measured, rows)
    return rows


def _refuse_other_history(path: Path, measured: Measurement, rows: list[dict[str, float]]) -> None:
    """Raise UserError if the figures of a seed are not those of its history."""
    for seed in measured.seeds:
        tested = [row for row in rows if row["seed"] == seed.seed and "test_accuracy" in row]
        best = max(tested, key=lambda row: row["test_accuracy"], default={})
        found = (best.get("test_accuracy"), best.get("epoch"))
        names, images = ("test_accuracy", "train_accuracy"), measured.test_images
        is_its_end = tested and all(are_close(getattr(seed, name), tested[-1][name], images) for name in names)
        if found != (seed.best_test_accuracy, seed.best_epoch) or not is_its_end:
            raise UserError(f"{path}: seed {seed.seed} has other accuracies there than beside it; run evaluate again")
