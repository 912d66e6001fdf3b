"""What an ablation says: its variants against the one that params.yaml has, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

from tripletkd.analysis.statistics import Difference, Summary, difference, holm, summarise
from tripletkd.evaluation.measurement import VariantMeasurement


@dataclass(frozen=True)
class Line:
    """One variant."""

    label: str
    changed: dict[str, object]  # parameters and their values, as in params.yaml
    reference: bool  # what the others are compared with
    seeds_percent: dict[int, float]  # accuracy on the split, by seed
    accuracy_percent: Summary
    over_reference_points: Difference | None
    corrected_p: float | None  # Holm, over the ablation's comparisons
    violated_triplets_percent: Summary
    failed: dict[int, str]


def lines(variants: Sequence[VariantMeasurement]) -> list[Line]:
    """Compare the variants, in their order, with the one marked `configured`, or with the first where none is."""
    reference = next((i for i, variant in enumerate(variants) if variant.configured), 0)
    accuracies = [variant.measurement.percent() for variant in variants]
    gaps = [difference(each, accuracies[reference]) if i != reference else None for i, each in enumerate(accuracies)]
    corrected = holm(dict(enumerate(gaps)))
    return [
        Line(
            label=variant.label,
            changed=variant.changed,
            reference=i == reference,
            seeds_percent=accuracies[i],
            accuracy_percent=summarise(list(accuracies[i].values())),
            over_reference_points=gaps[i],
            corrected_p=corrected.get(i),
            violated_triplets_percent=summarise(list(variant.measurement.percent("violated_triplets").values())),
            failed=variant.measurement.failed,
        )
        for i, variant in enumerate(variants)
    ]
