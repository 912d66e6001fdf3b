"""What is measured of a run, and its file: results/<suite>/measured/<split>/<name>.json."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tripletkd.errors import UserError
from tripletkd.files import write_json

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Calibration:
    """Sums over the images of each bin of equal width of the confidence, divided by the number of all images."""

    share: tuple[float, ...]  # of the images, those in the bin
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SeedMeasurement:
    """The figures of one seed's network, on whole splits in eval mode; shares lie in [0, 1].

    The fields stand in the order of the file. A figure that does not apply is None here and is left out there.
    """

    seed: int
    train_accuracy: float
    test_accuracy: float
    test_correct: str  # hexadecimal: a bit an image in the split's order, set where its class was predicted
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


@dataclass(frozen=True)
class Environment:
    """What some of a run's seeds were trained with; in the file, a block with their list and the values."""

    seeds: tuple[int, ...]
    values: dict[str, str | bool | int | None]  # see provenance.environment


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All that is reported of one run: what it is, what its network costs, and the figures of each seed.

    The fields stand in the order of the file.
    """

    suite: str
    split: str
    name: str  # the method, "teacher", or "ablations/<name>/<variant>"
    method: str
    network: str
    parameters: int
    multiply_adds: int  # in one forward pass of one image
    weights_bytes: int
    params: dict[str, Any]  # the blocks of params.yaml that made it
    data_sha256: str
    teacher_sha256: str | None
    weights_sha256: dict[int, str]  # of the seeds that did not fail
    code: tuple[str, ...]  # sha256 of what computed them, the distinct ones
    environments: tuple[Environment, ...]  # the distinct ones
    failed: dict[int, str]  # seed -> why it has no weights
    test_images: int
    seeds: tuple[SeedMeasurement, ...]
    history_sha256: str | None = None  # of the file of its epochs beside this one, where there is one
    map_sha256: str | None = None  # likewise of the map of its outputs
    about: str | None = None  # what its method is, in the words of the method's own file
    class_names: tuple[str, ...] | None = None  # the teacher's only, once for all methods of its table

    def by_seed(self, figure: str) -> dict[int, float]:
        """Return a figure, named as in SeedMeasurement, of each seed that has it."""
        found = {seed.seed: getattr(seed, figure) for seed in self.seeds}
        return {seed: value for seed, value in found.items() if value is not None}

    def percent(self, figure: str = "test_accuracy") -> dict[int, float]:
        """Return a share, named as in SeedMeasurement, of each seed that has it, in percent."""
        return {seed: 100 * value for seed, value in self.by_seed(figure).items()}


@dataclass(frozen=True)
class VariantMeasurement:
    """What is measured of one variant of an ablation; in the file, one flat block."""

    label: str
    changed: dict[str, Any]  # what tells it from the others: parameters and their values
    configured: bool  # whether it is what params.yaml has
    measurement: Measurement


def write(path: Path, measurement: Measurement) -> None:
    """Write the measurement of a method or of the teacher."""
    write_json(path, _to_json(measurement))


def write_ablation(path: Path, variants: Sequence[VariantMeasurement]) -> None:
    """Write the measurements of an ablation's variants, in their order."""
    blocks = [
        {"label": v.label, "changed": v.changed, "configured": v.configured, **_to_json(v.measurement)}
        for v in variants
    ]
    write_json(path, blocks)


def read(path: Path, suite: str, name: str) -> Measurement:
    """Read what `write` wrote of a method or of the teacher.

    Args:
        path: the file.
        suite: the suite that it must be of.
        name: the method that it must be of, or "teacher".

    Raises:
        UserError: if the file is not there, is damaged, is of another run or has no seed.
    """
    try:
        measurement = _typed(Measurement, _fields(_load(path, suite, name)))
        _check_hits(measurement)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from None
    _check(path, measurement, suite, measurement.name == name)
    return measurement


def read_ablation(path: Path, suite: str, name: str) -> list[VariantMeasurement]:
    """Read what `write_ablation` wrote.

    Args:
        path: the file.
        suite: the suite that it must be of.
        name: the ablation that it must be of.

    Raises:
        UserError: if the file is not there or is damaged, or if a variant is of another run or has no seed.
    """
    try:
        blocks = _load(path, suite, f"ablations/{name}")
        if not isinstance(blocks, list) or not blocks:
            raise TypeError("expected a list of variants")
        variants = [_typed(VariantMeasurement, block | {"measurement": _fields(block)}) for block in blocks]
        for variant in variants:
            _check_hits(variant.measurement)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from None
    for variant in variants:
        of_ablation = variant.measurement.name.rpartition("/")[0]
        _check(path, variant.measurement, suite, of_ablation == f"ablations/{name}")
    return variants


def refuse_unlike(place: str, found: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> None:
    """Compare what a run was made with with what params.yaml says; runs that are all like it are like each other.

    Args:
        place: the file or the folder that says what was found.
        found: keys and values, in nested blocks.
        expected: likewise of params.yaml.
        source: the blocks of params.yaml that they are of.

    Raises:
        UserError: if they differ; it names the first key that does, with both values.
    """
    for key, one, other in _differences(json.loads(json.dumps(found)), json.loads(json.dumps(expected))):
        raise UserError(
            f"{place}: made with {key} {one}, params.yaml ({source}) has {other}; run its stages again, or say in "
            "params.yaml what it was made with: figures of unlike runs are not compared"
        )


def _differences(found: Any, expected: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Give the dotted keys at which two nested blocks differ, with both values; None where a key is missing."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in expected | found:
            yield from _differences(found.get(name), expected.get(name), f"{key}.{name}".lstrip("."))
    elif found != expected:
        yield key, found, expected


def _load(path: Path, suite: str, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        stage = {"teacher": "train_teacher"}.get(name, "ablate" if name.startswith("ablations/") else "evaluate")
        raise UserError(
            f"{path}: not there; run `dvc repro` with {suite} in run.suites, or stages.{stage}, first"
        ) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not measurements ({error!r}); run the stage that writes it again")


def _check(path: Path, measurement: Measurement, suite: str, is_named: bool) -> None:
    """Raise UserError if the measurement is of another run, or of no seed."""
    if measurement.suite != suite or not is_named:
        raise UserError(f"{path}: measurements of {measurement.suite}/{measurement.name}; run its stage again")
    if not measurement.seeds and not measurement.failed:
        raise UserError(f"{path}: measurements of no seed; run its stage again")


def _check_hits(measurement: Measurement) -> None:
    """Raise ValueError if a seed's hits are not of as many images as were tested, or not its accuracy."""
    images = measurement.test_images
    for seed in measurement.seeds:
        hits = bytes.fromhex(seed.test_correct)
        if len(hits) != -(-images // 8):  # eight to a byte
            raise ValueError(f"test_correct is not of {images} images")
        right = int.from_bytes(hits).bit_count()
        if abs(right - seed.test_accuracy * images) >= 0.5:
            raise ValueError(f"seed {seed.seed}: test_accuracy {seed.test_accuracy}, test_correct has {right}")


def _to_json(measurement: Measurement) -> dict[str, Any]:
    """Return the block of the file; what does not apply is left out."""
    block = asdict(measurement)
    block["environments"] = [{"seeds": each.seeds, **each.values} for each in measurement.environments]
    block["seeds"] = [{name: value for name, value in seed.items() if value is not None} for seed in block["seeds"]]
    for name in ("history_sha256", "map_sha256", "about", "class_names"):
        if block[name] is None:
            del block[name]
    return block


def _fields(block: dict[str, Any]) -> dict[str, Any]:
    """Return a block of the file with its keys as the fields of Measurement."""
    environments = [
        {"seeds": each["seeds"], "values": {name: value for name, value in each.items() if name != "seeds"}}
        for each in block["environments"]
    ]
    return block | {"environments": environments}


def _typed(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """Build an object, each value of its field's type; ValueError names the first that is not."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
