"""The variations of the triplet: equal to the published methods where they should be, else to plain loops."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fill
from numpy.linalg import norm
from numpy.typing import NDArray

from tripletkd import methods
from tripletkd.methods import triplet_family
from tripletkd.types import Batch, Outputs, total

IMAGES, CLASSES = 7, 4
LABELS = torch.tensor([0, 1, 1, 3, 0, 1, 2])
LOGITS = {
    name: Outputs(fill((IMAGES, CLASSES), 10 + i, 3.0), {})
    for i, name in enumerate(["student", "teacher", "negative", "teacher_negative"])
}
DEFAULTS = triplet_family.Params(0, 0, 1, 1, 2, anchor="teacher", negatives="drawn", outputs="logits")


def batch(params: triplet_family.Params, labels: torch.Tensor = LABELS) -> Batch:
    """With no more than what the variant says that it needs."""
    seen: dict[str, Any] = {name: LOGITS[name] for name in triplet_family.needs(params)}
    return Batch(labels, LOGITS["student"], **seen)


def value(labels: torch.Tensor = LABELS, epoch: Any = 1.0, **changes: Any) -> float:
    params = replace(DEFAULTS, **changes)
    return total(triplet_family.loss(replace(batch(params, labels), epoch=epoch), params)).item()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("triplet", {"ce": 1, "triplet": 2, "margin": 5}),
        ("kd_triplet", {"ce": 1, "kl": 1, "triplet": 2, "margin": 5}),
        ("kd", {"ce": 0.1, "kl": 0.9, "temperature": 4, "triplet": 0}),
        ("kl", {"ce": 1, "kl": 1, "temperature": 1, "triplet": 0}),
        ("scratch", {"ce": 1, "triplet": 0}),
    ],
)
def test_it_holds_the_published_methods(name: str, weights: dict[str, Any]) -> None:
    module, params = methods.load(name), replace(DEFAULTS, standardize=name == "kd", **weights)
    own = module.Params(**{key: getattr(params, key) for key in module.Params.__dataclass_fields__})
    expected = module.loss(Batch(LABELS, LOGITS["student"], LOGITS["teacher"], LOGITS["negative"]), own)
    found = triplet_family.loss(batch(params), params)
    assert found.keys() == expected.keys() and triplet_family.needs(params) == methods.needs(module, own)
    assert total(found).item() == pytest.approx(total(expected).item(), rel=1e-12)


def test_the_margin_goes_from_the_first_to_the_last_in_its_epochs() -> None:
    for epoch, expected in ((1, 4.0), (torch.tensor(2), 3.5), (5, 2.0), (6, 2.0)):
        found = value(epoch=epoch, margin_epochs=4, first_margin=4)
        assert found == pytest.approx(value(margin=expected), rel=1e-7) and found > 0


COMPARED: dict[str, dict[str, Any]] = {  # parameters of what is compared
    "logits": {},
    "unit": {"outputs": "unit"},
    "z-scores": {"standardize": True},
    "probabilities": {"outputs": "probabilities", "temperature": 3},
}


def compared(outputs: str, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the distances of one image are of."""
    found = {"logits": logits, "unit": logits / norm(logits), "probabilities": np.exp(logits / 3)}
    found["probabilities"] /= found["probabilities"].sum()
    return (found | {"z-scores": (logits - logits.mean()) / (1e-7 + logits.std(ddof=1))})[outputs]


@pytest.mark.parametrize(("anchor", "kind"), product(("teacher", "student"), ("drawn", "batch", "hardest", "all")))
def test_every_variant_equals_plain_loops(anchor: str, kind: str) -> None:
    other = "student" if anchor == "teacher" else "teacher"
    drawn = {"student": "teacher_negative", "teacher": "negative"}[anchor] if kind == "drawn" else other
    for outputs, changes in COMPARED.items():
        margin = 0.4 if outputs in ("unit", "probabilities") else 2.0
        a, p, n = ([compared(outputs, x.numpy()) for x in LOGITS[name].logits] for name in (anchor, other, drawn))
        hinges = []
        for i in range(IMAGES):
            others = [j % IMAGES for j in range(i, i + IMAGES) if LABELS[j % IMAGES] != LABELS[i]]
            far = {j: norm(a[i] - n[j] + 1e-6) for j in ([i] if kind == "drawn" else others)}
            chosen = {"batch": others[:1], "hardest": [min(far, key=far.__getitem__)]}.get(kind, list(far))
            near = norm(a[i] - p[i] + 1e-6)
            hinges.append(np.mean([max(0.0, float(near - far[j]) + margin) for j in chosen]))
        found = value(anchor=anchor, negatives=kind, margin=margin, **changes)
        assert found == pytest.approx(np.mean(hinges), rel=1e-10) and found > 0, outputs


def test_a_batch_of_one_class_has_no_negatives() -> None:
    for kind in triplet_family.IN_BATCH:
        assert value(torch.zeros(IMAGES, dtype=torch.int64), negatives=kind) == 0
