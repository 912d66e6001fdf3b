"""Made-up measurements and results, of which the answers are known: shared by the tests of analysis and reporting."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tripletkd.analysis import ablation, comparison
from tripletkd.evaluation.measurement import Calibration, Measurement, SeedMeasurement, VariantMeasurement
from tripletkd.training.identity import RunIdentity

IMAGES = 1003  # no multiple of eight
HASH = "a" * 64


@dataclass(frozen=True)
class Claim:
    method: str
    over: list[str]


@dataclass(frozen=True)
class Published:
    accuracy: float
    source: str


CLAIMS = [Claim("triplet", ["scratch", "kd"]), Claim("pair", ["scratch"]), Claim("triplet", ["triplet"])]
PUBLISHED = {"triplet": Published(81.0, "one run"), "kd": Published(70.0, "elsewhere <script>")}
PUBLISHED |= {"crd": Published(75.5, "README")}
AS_KD = {"suite": "cifar10", "split": "test", "name": "kd", "method": "kd", "network": "paper_student"}
MADE_WITH = {"precision": "bfloat16", "deterministic": True, "evaluate_every": 1, "inputs": {}}
MADE_WITH |= {"recipe": {"epochs": 28, "optimizer": {"name": "sgd", "lr": 0.01}}}
KD = RunIdentity(**AS_KD, **MADE_WITH, params={"ce": 1}, data_sha256="d" * 64, teacher_sha256=HASH)  # type: ignore[arg-type]
BINS = Calibration(share=(0.5, 0.5), confidence=(0.3, 0.45), accuracy=(0.3, 0.45))
COMMON = {"train_accuracy": 0.99, "train_cross_entropy": 0.1, "test_cross_entropy": 0.5, "test_calibration_error": 0.05}


def of_seed(seed: int, accuracy: float, **changes: Any) -> SeedMeasurement:
    """Accuracy in percent; its first images are the ones it gets right."""
    share, hits = accuracy / 100, np.arange(IMAGES) < round(accuracy / 100 * IMAGES)
    made: dict[str, Any] = {"seed": seed, "test_correct": np.packbits(hits).tobytes().hex(), **COMMON}
    made |= {
        "test_accuracy": share,
        "test_accuracy_by_class": (share, 1.0),
        "violated_triplets": 0.1,
        "test_calibration": BINS,
    }
    return SeedMeasurement(**(made | {"best_test_accuracy": share + 0.01, "best_epoch": 2} | changes))


def measured(accuracies: dict[int, float], name: str = "kd", **changes: Any) -> Measurement:
    """Accuracies in percent by seed."""
    made: dict[str, Any] = {"identity": replace(KD, name=name), "failed": {}, "test_images": IMAGES}
    made |= {"parameters": 1000, "multiply_adds": 2000, "weights_bytes": 4000, "code": {"c" * 64: tuple(accuracies)}}
    made |= {"weights_sha256": dict.fromkeys(accuracies, HASH)}
    made |= {"seeds": tuple(of_seed(seed, accuracy) for seed, accuracy in accuracies.items())}
    return Measurement(**(made | changes))


def changed(measurement: Measurement, **changes: Any) -> Measurement:
    return replace(measurement, **changes)


MEASURED = {
    "teacher": measured({1: 90.0}, "teacher", parameters=9000, class_names=("a cat & $dog$ of $x", "猫")),
    "scratch": measured({1: 80.0, 2: 80.2, 3: 80.1, 4: 79.9, 5: 80.0}),
    "kd": measured({1: 82.1, 2: 82.2, 3: 82.0, 4: 82.1, 5: 82.1}),
    "triplet": measured({1: 81.0, 2: 81.3, 3: 81.0, 5: 81.1}, failed={4: "triplet is nan at epoch 3, step 7"}),
}
ROW = {"train_accuracy": 0.9, "violated_triplets": 0.1, "anchor_positive": 1.0, "anchor_negative": 2.0}
HISTORY = [{"seed": s, "epoch": e, "test_accuracy": 0.5 + 0.1 * s} | ROW for s in (1, 2) for e in (1, 2)]
MAPPED = [f"{who}_{axis}" for who in ("teacher", "before", "after") for axis in "xy"]
VARIANTS = [
    VariantMeasurement("margin 1", {"margin": 1}, False, measured({1: 70.0, 2: 70.2, 3: 70.1}, "ablations/margin/0")),
    VariantMeasurement("margin 5", {"margin": 5}, True, measured({1: 75.0, 2: 75.1, 3: 75.2}, "ablations/margin/1")),
    VariantMeasurement(
        "margin 20", {"margin": 20}, False, measured({}, "ablations/margin/2", failed={1: "loss is inf"})
    ),
]


def results(**changes: Any) -> comparison.Results:
    methods = [name for name in MEASURED if name != "teacher"]
    point = {"label": 1, **dict.fromkeys(MAPPED, 0.5)}
    made: dict[str, Any] = {"suite": "cifar10", "about": "A sentence & more", "split": "test", "measured": MEASURED}
    made |= {"histories": dict.fromkeys(methods, HISTORY), "maps": {name: [point] for name in methods}}
    made |= {"claims": CLAIMS, "published": PUBLISHED, "ablations": {"margin": ablation.lines(VARIANTS)}}
    curve = [{"epoch": 1, "test_accuracy": 50.0}, {"epoch": 2, "test_accuracy": 60.0}]
    made |= {"published_curves": {"triplet": curve}, "ablation_split": "validation"}
    return comparison.Results(**(made | changes))
