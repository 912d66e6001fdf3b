"""Measurements -> the rows of a suite's table, its verdicts, its curves: the numbers behind all that people read.

Units, here and in all files that are made of it: what is called ..._percent is in percent, what is called ..._points is
a difference of two such, in percentage points. Every other share lies in [0, 1], as in measured/ and in histories.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tripletkd.analysis.ablation import Line
from tripletkd.analysis.statistics import (
    Difference,
    Summary,
    detectable,
    difference,
    holm,
    over_images_too,
    significant,
    summarise,
    verdict,
)
from tripletkd.evaluation.measurement import Measurement

BASELINES = ("scratch", "kd")

Barred = Literal["failed baseline", "unknown baseline", "failed seeds"]  # why a difference decides nothing, see `bar`


class Claim(Protocol):
    """What the paper says: one method's test accuracy is above that of each of the others."""

    @property
    def method(self) -> str:
        """Return the method's name."""

    @property
    def over(self) -> Sequence[str]:
        """Return the names of the methods that it is claimed to be above."""


class Published(Protocol):
    """A figure from the literature."""

    @property
    def accuracy(self) -> float:
        """Return the test accuracy in percent."""

    @property
    def source(self) -> str:
        """Return where it is published."""


@dataclass(frozen=True)
class PublishedComparison:
    """A published figure beside ours; the fields are in the order of table.json."""

    accuracy_percent: float
    source: str
    inside_one_run_interval: bool | None  # whether it lies in our prediction interval of one run, where there is one


@dataclass(frozen=True)
class Row:
    """One method's line of the table, measured on the table's split."""

    method: str
    n: int
    test_accuracy_percent: Summary
    train_accuracy_percent: Summary
    best_test_accuracy_percent: float  # mean over seeds of the best epoch's: optimistic, and marked so
    over_points: dict[str, Difference]  # baseline -> difference paired by seed
    corrected_p: dict[str, float]  # Holm, over all comparisons of the table
    published: PublishedComparison | None
    parameters: int
    failed: dict[int, str]


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim; the fields are in the order of table.json."""

    claim: str  # for example "triplet over kd"
    method: str
    over: str
    verdict: str  # reproduced, contradicted or undecided
    barred: Barred | None
    difference_points: Difference | None  # None where the two share no seed
    half_width_over_images_too_points: float | None
    corrected_p: float | None  # Holm, over all claims that can be tested
    corrected_together: int  # their number
    detectable_points: float | None  # the true difference that would be found with 80 % power


@dataclass(frozen=True)
class CurvePoint:
    """One method's accuracy after one epoch; the fields are in the order of curves.csv."""

    method: str
    epoch: int
    test_accuracy_percent: float  # mean over seeds
    lowest_percent: float
    highest_percent: float
    train_accuracy_percent: float


@dataclass(frozen=True)
class Results:
    """All there is to say of a suite, for tables, figures and the report."""

    suite: str
    about: str
    split: str
    measured: Mapping[str, Measurement]  # by method, the teacher first
    histories: Mapping[str, Sequence[Mapping[str, float]]]  # by method, a row for each seed and epoch
    maps: Mapping[str, Sequence[Mapping[str, float]]]  # by method, what measure.output_map found
    claims: Sequence[Claim]  # all that params.yaml has, whether or not their methods were run
    published: Mapping[str, Published]  # none where the split is not the test split: that is what they are of
    published_curves: Mapping[str, Sequence[Mapping[str, float]]]
    ablation_split: str
    ablations: Mapping[str, Sequence[Line]]
    in_common: Mapping[str, Mapping[str, object]]  # by ablation, what all variants change alike
    starts_elsewhere: bool = False  # whether a network starts from weights that were trained elsewhere

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table, see `rows`."""
        return rows(self.measured, self.published)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The answers to the claims, see `verdicts`."""
        return verdicts(self.measured, self.claims)

    @cached_property
    def curves(self) -> list[CurvePoint]:
        """The accuracy of each method by epoch, see `curves`."""
        return curves(self.histories)

    @property
    def students(self) -> dict[str, Measurement]:
        """The measurements of all methods but the teacher."""
        return {name: each for name, each in self.measured.items() if name != "teacher"}

    def bases(self) -> list[str]:
        """List the baselines that were run."""
        return [base for base in BASELINES if any(base in row.over_points for row in self.rows)]


def rows(measured: Mapping[str, Measurement], published: Mapping[str, Published]) -> list[Row]:
    """Compute the table's rows: a method each, in the order given.

    Args:
        measured: by method, the teacher first.
        published: figures from the literature, by method.
    """
    pairs = [(method, base) for method in measured for base in BASELINES if method not in ("teacher", base)]
    gaps, corrected = _compare(measured, pairs)
    table = []
    for method, measurement in measured.items():
        test, train, best = (
            summarise(list(measurement.percent(figure).values()))
            for figure in ("test_accuracy", "train_accuracy", "best_test_accuracy")
        )
        table.append(
            Row(
                method=method,
                n=test.n,
                test_accuracy_percent=test,
                train_accuracy_percent=train,
                best_test_accuracy_percent=best.mean,
                over_points={base: gap for base in BASELINES if (gap := gaps.get((method, base)))},
                corrected_p={base: corrected[method, base] for base in BASELINES if (method, base) in corrected},
                published=_beside_published(test, published.get(method)),
                parameters=measurement.parameters,
                failed=measurement.failed,
            )
        )
    return table


def _compare(
    measured: Mapping[str, Measurement], pairs: Iterable[tuple[str, str]]
) -> tuple[dict[tuple[str, str], Difference | None], dict[tuple[str, str], float]]:
    """Compute the difference of each pair of methods that were run, and its p-value corrected for all of them.

    One method over another and that one over it are one comparison.
    """
    gaps = {
        (method, base): difference(measured[method].percent(), measured[base].percent())
        for method, base in pairs
        if method in measured and base in measured
    }
    corrected = holm({frozenset(pair): gap for pair, gap in gaps.items()})
    return gaps, {pair: corrected[frozenset(pair)] for pair in gaps if frozenset(pair) in corrected}


def _beside_published(test: Summary, figure: Published | None) -> PublishedComparison | None:
    if figure is None:
        return None
    inside = None if test.one_run is None else test.one_run[0] <= figure.accuracy <= test.one_run[1]
    return PublishedComparison(figure.accuracy, figure.source, inside)


def verdicts(measured: Mapping[str, Measurement], claims: Sequence[Claim]) -> list[Verdict]:
    """Answer each claim whose two methods were run by the rule of docs/verdicts.md, corrected by Holm's procedure.

    Args:
        measured: by method.
        claims: those of params.yaml.
    """
    gaps, corrected = _compare(measured, [(claim.method, base) for claim in claims for base in claim.over])
    tests, answers = len({frozenset(pair) for pair in corrected}), []
    for (method, base), gap in gaps.items():
        p, barred = corrected.get((method, base)), bar(measured, method, base)
        answers.append(
            Verdict(
                claim=f"{method} over {base}",
                method=method,
                over=base,
                verdict="undecided" if barred else verdict(gap, p),
                barred=barred,
                difference_points=gap,
                half_width_over_images_too_points=over_images_too(_gaps_by_image(measured[method], measured[base])),
                corrected_p=p,
                corrected_together=tests,
                detectable_points=detectable(gap.n, gap.std, tests) if gap and gap.std and gap.p is not None else None,
            )
        )
    return answers


def left_out(measured: Mapping[str, Measurement], claims: Sequence[Claim]) -> tuple[int, list[str]]:
    """Count the claims that are not answered because a method was not run, and name these methods."""
    pairs = dict.fromkeys((claim.method, base) for claim in claims for base in claim.over)
    missing = [pair for pair in pairs if not all(name in measured for name in pair)]
    return len(missing), list(dict.fromkeys(name for pair in missing for name in pair if name not in measured))


def bar(measured: Mapping[str, Measurement], method: str, base: str) -> Barred | None:
    """Say why a difference of two methods decides nothing, whatever its p-value.

    Args:
        measured: by method.
        method: the one that is claimed to be better.
        base: the other.

    Returns:
        None if the difference may decide, else

        - "failed seeds": seeds of the better method failed, and the remaining ones favor it.
        - "failed baseline": the method is better than a baseline that is itself worse than scratch (p < 0.05,
          uncorrected), which is no evidence.
        - "unknown baseline": that cannot be tested. Scratch was not run, shares fewer than three seeds with the
          baseline, or differs from it by the same on each.
    """
    gap = difference(measured[method].percent(), measured[base].percent())
    if gap is None or not gap.mean:
        return None
    if better_lost_seeds(measured, method, base, gap):
        return "failed seeds"
    if gap.mean < 0 or "scratch" in (method, base):
        return None
    below = difference(measured[base].percent(), measured["scratch"].percent()) if "scratch" in measured else None
    if below is None or below.p is None:
        return "unknown baseline"
    return "failed baseline" if significant(below.p) and below.mean < 0 else None


def better_lost_seeds(measured: Mapping[str, Measurement], method: str, base: str, gap: Difference) -> bool:
    """Tell whether seeds failed of the better of two methods, which the remaining ones favor."""
    return bool(gap.mean) and bool(measured[method if gap.mean > 0 else base].failed)


def _gaps_by_image(first: Measurement, second: Measurement) -> NDArray[np.float64]:
    """Compute first - second in percent, [S, I], for each seed that both have and each image."""
    images = first.test_images
    ours, theirs = (
        {s.seed: np.unpackbits(np.frombuffer(bytes.fromhex(s.test_correct), np.uint8), count=images) for s in of.seeds}
        for of in (first, second)
    )
    pairs = [100.0 * ours[seed] - 100.0 * theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return np.array(pairs).reshape(len(pairs), images)


def at_chance(measured: Mapping[str, Measurement]) -> tuple[float, list[str]]:
    """Name the students that are no better than guessing, or those of their seeds that are not.

    The mean over classes of the accuracy on each, which is one over their number for whoever gives every image the
    same class, however many images each has, is held against that plus three standard errors.

    Args:
        measured: by method.

    Returns:
        What guessing gives, in percent, and the methods, with the seeds where it is not all of them.
    """
    students = {name: each for name, each in measured.items() if name != "teacher" and each.seeds}
    classes = {len(each.seeds[0].test_accuracy_by_class) for each in students.values()}
    chance, found = 1 / max(classes, default=1), []
    for name, each in students.items():
        most = chance + 3 * (chance * (1 - chance) / each.test_images) ** 0.5
        seeds = [str(seed.seed) for seed in each.seeds if np.nanmean(seed.test_accuracy_by_class) <= most]
        if seeds:
            found.append(name if len(seeds) == len(each.seeds) else f"{name} (seed {', '.join(seeds)})")
    return 100 * chance, found


def curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> list[CurvePoint]:
    """Average over seeds the accuracies of each method and epoch in which they were measured.

    Args:
        histories: by method, a row for each seed and epoch.

    Returns:
        The points, to four decimals, with the lowest and the highest seed's test accuracy for the band.
    """
    points = []
    for method, history in histories.items():
        rows = [row for row in history if "test_accuracy" in row]
        for epoch in dict.fromkeys(int(row["epoch"]) for row in rows):
            group = [row for row in rows if row["epoch"] == epoch]
            test, train = ([100 * row[key] for row in group] for key in ("test_accuracy", "train_accuracy"))
            figures = (sum(test) / len(test), min(test), max(test), sum(train) / len(train))
            points.append(CurvePoint(method, epoch, *(round(figure, 4) for figure in figures)))
    return points
