"""Made-up measurements and results, of which the answers are known: shared by the tests of analysis and reporting."""

import dataclasses
from typing import Any

import numpy as np

from tripletkd.analysis import ablation, comparison
from tripletkd.evaluation.measurement import (
    Calibration,
    Environment,
    Measurement,
    SeedMeasurement,
    VariantMeasurement,
)

IMAGES = 1003  # no multiple of eight


@dataclasses.dataclass(frozen=True)
class Claim:
    method: str
    over: list[str]


@dataclasses.dataclass(frozen=True)
class Published:
    accuracy: float
    source: str


CLAIMS = [Claim("triplet", ["scratch", "kd"]), Claim("pair", ["scratch"]), Claim("triplet", ["triplet"])]
PUBLISHED = {
    "triplet": Published(81.0, "one run"),
    "kd": Published(70.0, "elsewhere <script>"),
    "crd": Published(75.5, "README"),
}


def of_seed(seed: int, accuracy: float, **changes: Any) -> SeedMeasurement:
    """Accuracy in percent; its first images are the ones it gets right."""
    made = SeedMeasurement(
        seed=seed,
        train_accuracy=0.99,
        test_accuracy=accuracy / 100,
        test_correct=np.packbits(np.arange(IMAGES) < round(accuracy / 100 * IMAGES)).tobytes().hex(),
        test_cross_entropy=0.5,
        test_calibration_error=0.05,
        test_calibration=Calibration(share=(0.5, 0.5), confidence=(0.3, 0.45), accuracy=(0.3, 0.45)),
        test_accuracy_by_class=(accuracy / 100, 1.0),
        violated_triplets=0.1,
        best_test_accuracy=accuracy / 100 + 0.01,
        best_epoch=2,
    )
    return dataclasses.replace(made, **changes)


def measured(accuracies: dict[int, float], **changes: Any) -> Measurement:
    """Accuracies in percent by seed."""
    made = Measurement(
        suite="cifar10",
        split="test",
        name="kd",
        method="kd",
        network="paper_student",
        parameters=1000,
        multiply_adds=2000,
        weights_bytes=4000,
        params={"method": {"ce": 1}},
        data_sha256="d" * 64,
        teacher_sha256="a" * 64,
        weights_sha256=dict.fromkeys(accuracies, "a" * 64),
        code=("c" * 64,),
        environments=(Environment(tuple(accuracies), {"torch": "2", "deterministic": True, "cuda": None}),),
        failed={},
        test_images=IMAGES,
        seeds=tuple(of_seed(seed, accuracy) for seed, accuracy in accuracies.items()),
    )
    return dataclasses.replace(made, **changes)


def changed(measurement: Measurement, **changes: Any) -> Measurement:
    return dataclasses.replace(measurement, **changes)


MEASURED = {
    "teacher": measured({1: 90.0}, parameters=9000, class_names=("a cat & $dog$ of $x", "猫")),
    "scratch": measured({1: 80.0, 2: 80.2, 3: 80.1, 4: 79.9, 5: 80.0}),
    "kd": measured({1: 82.1, 2: 82.2, 3: 82.0, 4: 82.1, 5: 82.1}),
    "triplet": measured({1: 81.0, 2: 81.3, 3: 81.0, 5: 81.1}, failed={4: "triplet is nan at epoch 3, step 7"}),
}
HISTORY = [
    {"seed": seed, "epoch": epoch, "test_accuracy": 0.5 + 0.1 * seed, "train_accuracy": 0.9, "violated_triplets": 0.1}
    | {"anchor_positive": 1.0, "anchor_negative": 2.0}
    for seed in (1, 2)
    for epoch in (1, 2)
]
MAPPED = [f"{who}_{axis}" for who in ("teacher", "before", "after") for axis in "xy"]
VARIANTS = [
    VariantMeasurement("margin 1", {"margin": 1}, False, measured({1: 70.0, 2: 70.2, 3: 70.1})),
    VariantMeasurement("margin 5", {"margin": 5}, True, measured({1: 75.0, 2: 75.1, 3: 75.2})),
    VariantMeasurement("margin 20", {"margin": 20}, False, measured({}, failed={1: "loss is inf"})),
]


def results(**changes: Any) -> comparison.Results:
    methods = [name for name in MEASURED if name != "teacher"]
    point = {"label": 1, **dict.fromkeys(MAPPED, 0.5)}
    made = comparison.Results(
        suite="cifar10",
        about="A sentence & more",
        split="test",
        measured=MEASURED,
        histories=dict.fromkeys(methods, HISTORY),
        maps={name: [point] for name in methods},
        rows=comparison.rows(MEASURED, PUBLISHED),
        verdicts=comparison.verdicts(MEASURED, CLAIMS),
        published=PUBLISHED,
        published_curves={"triplet": [{"epoch": 1, "test_accuracy": 50.0}, {"epoch": 2, "test_accuracy": 60.0}]},
        equivalent_code=[],
        ablation_split="validation",
        ablations={"margin": ablation.lines(VARIANTS)},
    )
    return dataclasses.replace(made, **changes)
