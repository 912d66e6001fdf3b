"""The variations of the triplet: equal to the published methods where they should be, else to plain loops."""

import dataclasses
import math
import statistics
from itertools import product
from typing import Any

import pytest
import torch
from conftest import fill
from torch import Tensor

from tripletkd import methods
from tripletkd.methods import triplet_family
from tripletkd.types import Batch, Outputs, total

IMAGES, CLASSES = 7, 4
LABELS = torch.tensor([0, 1, 1, 3, 0, 1, 2])
LOGITS = {
    name: Outputs(fill((IMAGES, CLASSES), 10 + i, 3.0), {})
    for i, name in enumerate(["student", "teacher", "negative", "teacher_negative"])
}
AS_PUBLISHED = {"anchor": "teacher", "negatives": "drawn", "outputs": "logits"}


def batch(params: triplet_family.Params, labels: Tensor = LABELS) -> Batch:
    """With no more than what the variant says that it needs."""
    seen: dict[str, Any] = {name: LOGITS[name] for name in triplet_family.needs(params)}
    return Batch(labels, LOGITS["student"], **seen)


def value(labels: Tensor = LABELS, **changes: Any) -> float:
    settings: dict[str, Any] = {"ce": 0, "kl": 0, "temperature": 1, "triplet": 1, "margin": 2, **AS_PUBLISHED} | changes
    params = triplet_family.Params(**settings)
    return total(triplet_family.loss(batch(params, labels), params)).item()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("triplet", {"ce": 1, "kl": 0, "temperature": 1, "triplet": 2, "margin": 5}),
        ("kd_triplet", {"ce": 1, "kl": 1, "temperature": 1, "triplet": 2, "margin": 5}),
        ("kd", {"ce": 0.1, "kl": 0.9, "temperature": 4, "triplet": 0, "margin": 5}),
        ("scratch", {"ce": 1, "kl": 0, "temperature": 1, "triplet": 0, "margin": 5}),
    ],
)
@pytest.mark.parametrize("standardize", [False, True])
def test_it_holds_the_published_methods(name: str, weights: dict[str, float], standardize: bool) -> None:
    module, settings = methods.load(name), {**weights, "standardize": standardize}
    own = module.Params(**{key: settings[key] for key in module.Params.__dataclass_fields__})
    everything = Batch(LABELS, LOGITS["student"], LOGITS["teacher"], LOGITS["negative"])
    params = triplet_family.Params(**settings, **AS_PUBLISHED)  # type: ignore[arg-type]
    expected = module.loss(everything, own)
    found = triplet_family.loss(batch(params), params)
    assert found.keys() == expected.keys()
    assert total(found).item() == pytest.approx(total(expected).item(), rel=1e-12)
    assert triplet_family.needs(params) == methods.needs(module, own)


COMPARED: dict[str, dict[str, Any]] = {  # parameters of what is compared
    "logits": {},
    "unit": {"outputs": "unit"},
    "z-scores": {"standardize": True},
    "probabilities": {"outputs": "probabilities", "temperature": 3},
}


@pytest.mark.parametrize(
    ("epoch", "expected"), [(1, 4.0), (2, 3.5), (5, 2.0), (6, 2.0), (torch.tensor(3), 3.0)], ids=str
)
def test_the_margin_goes_from_the_first_to_the_last_in_its_epochs(epoch: Any, expected: float) -> None:
    changing = triplet_family.Params(1, 0, 1, 1, 2, **AS_PUBLISHED, margin_epochs=4, first_margin=4)  # type: ignore[arg-type]
    constant = triplet_family.Params(1, 0, 1, 1, expected, **AS_PUBLISHED)  # type: ignore[arg-type]
    at = dataclasses.replace(batch(changing), epoch=epoch)
    found, same = (total(triplet_family.loss(at, params)) for params in (changing, constant))
    assert found.item() == pytest.approx(same.item(), rel=1e-7) and found.item() > 0


def length(x: list[float]) -> float:
    return math.sqrt(math.fsum(v * v for v in x))


def rows(name: str, outputs: str) -> list[list[float]]:
    found: list[list[float]] = LOGITS[name].logits.tolist()
    if outputs == "z-scores":
        return [[(v - statistics.mean(row)) / (1e-7 + statistics.stdev(row)) for v in row] for row in found]
    if outputs == "probabilities":
        return [[math.exp(v / 3) / math.fsum(math.exp(w / 3) for w in row) for v in row] for row in found]
    return [[v / length(row) for v in row] for row in found] if outputs == "unit" else found


def candidates(kind: str, i: int, far: list[float]) -> list[int]:
    """The negatives of image i."""
    others = [j for j in range(IMAGES) if LABELS[j] != LABELS[i]]
    if kind == "batch":
        return [next(j % IMAGES for j in range(i + 1, i + IMAGES) if j % IMAGES in others)]
    if kind == "hardest":
        return [min(others, key=lambda j: far[j])]
    return [i] if kind == "drawn" else others


@pytest.mark.parametrize(
    ("anchor", "outputs", "kind"),
    product(("teacher", "student"), COMPARED, ("drawn", "batch", "hardest", "all")),
)
def test_every_variant_equals_plain_loops(anchor: str, outputs: str, kind: str) -> None:
    margin = 0.4 if outputs in ("unit", "probabilities") else 2.0
    other = "student" if anchor == "teacher" else "teacher"
    drawn = "negative" if anchor == "teacher" else "teacher_negative"
    a, p = rows(anchor, outputs), rows(other, outputs)
    n = rows(drawn, outputs) if kind == "drawn" else p
    hinges = []
    for i in range(IMAGES):
        near = length([x - y + 1e-6 for x, y in zip(a[i], p[i], strict=True)])
        far = [length([x - y + 1e-6 for x, y in zip(a[i], row, strict=True)]) for row in n]
        chosen = candidates(kind, i, far)
        hinges.append(math.fsum(max(0.0, near - far[j] + margin) for j in chosen) / len(chosen))
    expected = math.fsum(hinges) / IMAGES
    found = value(anchor=anchor, negatives=kind, margin=margin, **COMPARED[outputs])
    assert found == pytest.approx(expected, rel=1e-10)
    assert expected > 0


@pytest.mark.parametrize("kind", triplet_family.IN_BATCH)
def test_a_batch_of_one_class_has_no_negatives(kind: str) -> None:
    assert value(torch.zeros(IMAGES, dtype=torch.int64), negatives=kind) == 0


def test_the_next_of_another_class_is_a_uniform_draw() -> None:
    """Over random orders of a batch, as the loop's are, every image of another class is as likely."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(IMAGES)
    for _ in range(4000):
        order = torch.randperm(IMAGES, generator=generator)
        weight = triplet_family.in_batch("batch", LABELS[order], torch.zeros(IMAGES, IMAGES))
        counts[order] += weight[(order == 0).nonzero().item()]  # type: ignore[index]
    others = (LABELS[0] != LABELS).float()
    assert counts[others == 0].sum() == 0
    assert torch.allclose(counts / 4000, others / others.sum(), atol=0.03)
