"""Made-up measurements and results, of which the answers are known: shared by the tests of analysis and reporting."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from tripletkd.analysis import ablation, comparison
from tripletkd.config.schema import Claim, Published
from tripletkd.evaluation.measurement import Calibration, Measurement, SeedMeasurement, VariantMeasurement
from tripletkd.reporting import page
from tripletkd.training.identity import RunIdentity

IMAGES = 1000
HASH = "a" * 64
CLAIMS = [Claim("triplet", ["scratch", "kd"]), Claim("pair", ["scratch"]), Claim("triplet", ["triplet"])]
PUBLISHED = {"triplet": Published(81.0, "one run"), "kd": Published(70.0, "elsewhere <script>")}
PUBLISHED |= {"crd": Published(75.5, "README")}
MADE_WITH: dict[str, Any] = {"precision": "bfloat16", "deterministic": True, "evaluate_every": 1, "inputs": {}}
MADE_WITH |= {"recipe": {"epochs": 28, "optimizer": {"name": "sgd", "lr": 0.01}}, "network": "paper_student"}
MADE_WITH |= {"params": {"ce": 1}, "data_sha256": "d" * 64, "teacher_sha256": HASH}
KD = RunIdentity(suite="cifar10", split="test", name="kd", method="kd", **MADE_WITH)
BINS = Calibration(share=(0.5, 0.5), confidence=(0.3, 0.45), accuracy=(0.3, 0.45))
COMMON = {"train_accuracy": 0.99, "train_cross_entropy": 0.1, "test_cross_entropy": 0.5, "test_calibration_error": 0.05}


def of_seed(seed: int, accuracy: float, **changes: Any) -> SeedMeasurement:
    """Accuracy in percent; its first images are the ones it gets right."""
    share, hits = accuracy / 100, np.arange(IMAGES) < round(accuracy / 100 * IMAGES)
    made: dict[str, Any] = {"seed": seed, "test_correct": np.packbits(hits).tobytes().hex(), **COMMON}
    made |= {"test_accuracy": share, "test_accuracy_by_class": (share, 1.0), "violated_triplets": 0.1}
    made |= {"test_calibration": BINS, "best_test_accuracy": share + 0.01, "best_epoch": 2}
    return SeedMeasurement(**(made | changes))


def measured(accuracies: dict[int, float], name: str = "kd", **changes: Any) -> Measurement:
    """Accuracies in percent by seed."""
    made: dict[str, Any] = {"identity": replace(KD, name=name), "failed": {}, "test_images": IMAGES}
    made |= {"parameters": 1000, "multiply_adds": 2000, "weights_bytes": 4000, "code": {"c" * 64: tuple(accuracies)}}
    made |= {"weights_sha256": {seed: f"{i or 'a'}".rjust(64, "a") for i, seed in enumerate(accuracies)}}
    made |= {"seeds": tuple(of_seed(seed, accuracy) for seed, accuracy in accuracies.items())}
    return Measurement(**(made | changes))


MEASURED = {
    "teacher": measured({1: 90.0}, "teacher", parameters=9000, class_names=("a cat & $dog$ of $x", "猫")),
    "scratch": measured({1: 80.0, 2: 80.2, 3: 80.1, 4: 79.9, 5: 80.0}),
    "kd": measured({1: 82.1, 2: 82.2, 3: 82.0, 4: 82.1, 5: 82.1}),
    "triplet": measured({1: 81.0, 2: 81.3, 3: 81.0, 5: 81.1}, failed={4: "triplet is nan at epoch 3, step 7"}),
}
ROW = {"train_accuracy": 0.9, "violated_triplets": 0.1, "anchor_positive": 1.0, "anchor_negative": 2.0}
HISTORY = [{"seed": s, "epoch": e, "test_accuracy": 0.5 + 0.1 * s} | ROW for s in (1, 2) for e in (1, 2)]
POINT = {"label": 1, **{f"{who}_{axis}": 0.5 for who in ("teacher", "before", "after") for axis in "xy"}}


def history_of(found: Measurement) -> list[dict[str, float]]:
    """Two evaluated epochs, of which the first is the best."""
    rows = []
    for each in found.seeds:
        shares = (each.best_test_accuracy, each.test_accuracy)
        rows += [ROW | {"seed": each.seed, "epoch": e, "test_accuracy": s} for e, s in enumerate(shares, start=2)]
    return [row | {"train_accuracy": 0.99} for row in rows]


VARIANTS = [
    VariantMeasurement(f"margin {margin}", {"margin": margin}, margin == 5, measured(by_seed, f"ablations/margin/{i}"))
    for i, (margin, by_seed) in enumerate({1: {1: 70.0, 2: 70.2, 3: 70.1}, 5: {1: 75.0, 2: 75.1, 3: 75.2}}.items())
]
LOST = measured({}, "ablations/margin/2", failed={1: "loss is inf"})
VARIANTS.append(VariantMeasurement("margin 20", {"margin": 20}, False, LOST))


def results(**changes: Any) -> comparison.Results:
    methods = [name for name in MEASURED if name != "teacher"]
    made: dict[str, Any] = {"suite": "cifar10", "about": "A sentence & more", "split": "test", "measured": MEASURED}
    made |= {"histories": dict.fromkeys(methods, HISTORY), "maps": {name: [POINT] for name in methods}}
    made |= {"claims": CLAIMS, "published": PUBLISHED, "ablations": {"margin": ablation.lines(VARIANTS)}}
    curve = [{"epoch": 1, "test_accuracy": 50.0}, {"epoch": 2, "test_accuracy": 60.0}]
    made |= {"published_curves": {"triplet": curve}, "ablation_split": "validation", "in_common": {"margin": {}}}
    return comparison.Results(**(made | changes))


@cache
def drawn() -> dict[str, str]:
    """The figures of these results."""
    return page.pictures(results())
