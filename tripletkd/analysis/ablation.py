"""What an ablation says: its variants against the one that params.yaml has, seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tripletkd.analysis.comparison import accuracies
from tripletkd.analysis.statistics import Difference, Summary, difference, holm, summarise


@dataclass(frozen=True)
class Line:
    """One variant; accuracies and differences in percent."""

    label: str
    changed: dict[str, Any]
    reference: bool  # what the others are compared with
    seeds: dict[int, float]  # accuracy on the split
    accuracy: Summary
    train: Summary
    over_reference: Difference | None
    corrected_p: float | None  # Holm, over the ablation's comparisons
    violated_triplets: Summary
    failed: dict[str, str]


def lines(measured: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The variants in their order. measured: what evaluate.measure gives of each, its label and what it changes.

    The reference is the variant marked `configured`, the first one where none is.
    """
    reference = next((i for i, variant in enumerate(measured) if variant["configured"]), 0)
    base = accuracies(measured[reference])
    gaps = [difference(accuracies(variant), base) if i != reference else None for i, variant in enumerate(measured)]
    tested = {i: gap.p for i, gap in enumerate(gaps) if gap is not None and gap.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        Line(
            label=variant["label"],
            changed=variant["changed"],
            reference=i == reference,
            seeds=accuracies(variant),
            accuracy=summarise(list(accuracies(variant).values())),
            train=summarise(list(accuracies(variant, "train_accuracy").values())),
            over_reference=gaps[i],
            corrected_p=corrected.get(i),
            violated_triplets=summarise(list(accuracies(variant, "violated_triplets").values())),
            failed=variant["failed"],
        )
        for i, variant in enumerate(measured)
    ]
