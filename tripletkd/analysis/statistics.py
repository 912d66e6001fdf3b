"""From measurements to intervals, tests and verdicts. One number a seed; methods are paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special, stats

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
FEWEST = 3  # pairs to test: two may agree by chance, for accuracies are counts of images


@dataclass(frozen=True)
class Summary:
    """Of n seeds: their mean, their standard deviation, and half the width of the mean's 95 % interval."""

    n: int
    mean: float  # not a number with no seed
    std: float | None  # None, as the interval, with fewer than two seeds
    half_width: float | None
    one_run: tuple[float, float] | None  # the 95 % prediction interval of one further run


def summarise(values: Sequence[float]) -> Summary:
    """Student's t intervals: mean +- t s / sqrt(n), and for one further run mean +- t s sqrt(1 + 1/n)."""
    n, mean = len(values), float(np.mean(values)) if values else nan
    if n < 2:
        return Summary(n, mean, None, None, None)
    std = float(np.std(values, ddof=1))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    spread = t * std * sqrt(1 + 1 / n)
    return Summary(n, mean, std, t * std / sqrt(n), (mean - spread, mean + spread))


@dataclass(frozen=True)
class Difference:
    """Of two methods paired by seed: the differences' mean and standard deviation, the mean's interval, the p-value."""

    n: int
    mean: float
    std: float | None  # None with fewer than two pairs
    half_width: float | None  # likewise
    p: (
        float | None
    )  # None with fewer than FEWEST pairs, and where all differ by the same: there is no scatter to test by


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """First - second over the seeds that both have; two-sided paired t-test. None if they share no seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    gaps = np.array([first[seed] - second[seed] for seed in seeds])
    n, mean = len(gaps), float(gaps.mean())
    if n < 2:
        return Difference(n, mean, None, None, None)
    std = float(gaps.std(ddof=1))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    testable = n >= FEWEST and std > 1e-9  # equal differences of percentages differ by rounding
    p = float(stats.ttest_1samp(gaps, 0).pvalue) if testable else None
    return Difference(n, mean, std, t * std / sqrt(n), p)


def over_images_too(gaps: NDArray[np.float64]) -> float | None:
    """Half the width of the 95 % interval of a mean difference, were images as well as seeds drawn anew.

    gaps: [S, I], of each seed and image, the first method's hit minus the second's. With seeds and images as crossed
    random effects, the variance of the mean is

        V = s_seeds^2 / S + s_images^2 / I - s_rest^2 / (S I)

    of the seeds' means, of the images' means, and of what both leave over; t has Satterthwaite's degrees of freedom.
    Never less than for the seeds alone, as the formula can be where the images' part is small. None with fewer than two
    of either.
    Source: Cornfield, Tukey, "Average values of mean squares in factorials", 1956; Satterthwaite 1946.
    """
    count, images = gaps.shape
    if count < 2 or images < 2:
        return None
    of_seeds, of_images = gaps.mean(1, keepdims=True), gaps.mean(0, keepdims=True)
    rest = gaps - of_seeds - of_images + gaps.mean()
    freedom = np.array([count - 1, images - 1, (count - 1) * (images - 1)])
    parts = np.array([of_seeds.var(ddof=1) / count, of_images.var(ddof=1) / images, 0.0])
    parts[2] = (rest**2).sum() / freedom[2] / gaps.size
    seeds_alone = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom[0]) * sqrt(parts[0]))
    variance = parts[0] + parts[1] - parts[2]
    if variance <= 0:
        return seeds_alone
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, variance**2 / (parts**2 / freedom).sum()))
    return max(seeds_alone, t * sqrt(variance))


def detectable(n: int, std: float, tests: int = 1) -> float:
    """The smallest true mean difference that a two-sided paired t-test at 5 % / tests finds with 80 % power.

    std: of the differences. tests: how many Holm's procedure corrects for, of which this is the first; for the later
    ones, whose levels are higher, less is needed.
    """
    return _noncentrality(n, ALPHA / tests) * std / sqrt(n)


@cache
def _noncentrality(n: int, alpha: float) -> float:
    """D with P(T > t) = 0.8 for T = (Z + d) / (U / sqrt(n - 1)), Z normal, U chi with n - 1 degrees of freedom.

    Integrated over U, since SciPy's noncentral t fails at small n; P(T < -t) is negligible at that power.
    """
    freedom = n - 1
    critical = float(stats.t.ppf(1 - alpha / 2, freedom))

    def shortfall(noncentrality: float) -> float:
        def found(u: float) -> float:
            return float(special.ndtr(noncentrality - critical * u / sqrt(freedom)) * stats.chi.pdf(u, freedom))

        return integrate.quad(found, 0, np.inf)[0] - POWER

    return float(optimize.brentq(shortfall, 0.1, 10 * critical))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p_(i) becomes max over j <= i of (m - j + 1) p_(j), at most 1."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(p) for p in corrected]


def significant(corrected_p: float | None) -> bool:
    """None: nothing could be tested."""
    return corrected_p is not None and corrected_p < ALPHA


def verdict(found: Difference | None, corrected_p: float | None) -> str:
    """The rule of README.md: reproduced, contradicted or undecided, from a difference and its corrected p-value."""
    if found is None or not significant(corrected_p):
        return "undecided"
    return "reproduced" if found.mean > 0 else "contradicted"
