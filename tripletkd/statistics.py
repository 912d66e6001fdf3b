"""From measurements to intervals, tests and verdicts. One number a seed; methods are paired by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import nan, sqrt

import numpy as np
from scipy import integrate, optimize, special, stats

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Cell:
    """A table's cell: n seeds' mean, their standard deviation, and half the width of the mean's 95 % interval."""

    n: int
    mean: float  # not a number with no seed
    std: float | None  # None, as the interval, with fewer than two seeds
    half_width: float | None
    one_run: tuple[float, float] | None  # the 95 % prediction interval of one further run


def cell(values: Sequence[float]) -> Cell:
    """Student's t intervals: mean +- t s / sqrt(n), and for one further run mean +- t s sqrt(1 + 1/n)."""
    n, mean = len(values), float(np.mean(values)) if values else nan
    if n < 2:
        return Cell(n, mean, None, None, None)
    std = float(np.std(values, ddof=1))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    spread = t * std * sqrt(1 + 1 / n)
    return Cell(n, mean, std, t * std / sqrt(n), (mean - spread, mean + spread))


@dataclass(frozen=True)
class Difference:
    """Of two methods paired by seed: mean of the differences, half the width of its 95 % interval, p-value."""

    n: int
    mean: float
    half_width: float | None  # None, as p, with fewer than two pairs
    p: float | None
    detectable: float | None  # the smallest true difference that so many seeds find with 80 % power


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """first - second over the seeds that both have; two-sided paired t-test. None if they share no seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    gaps = np.array([first[seed] - second[seed] for seed in seeds])
    if len(gaps) < 2:
        return Difference(len(gaps), float(gaps.mean()), None, None, None)
    n, std = len(gaps), float(gaps.std(ddof=1))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    # Where every seed differs by the same amount there is no variance to test against.
    p = float(stats.ttest_1samp(gaps, 0).pvalue) if std > 0 else float(gaps[0] == 0)
    return Difference(n, float(gaps.mean()), t * std / sqrt(n), p, detectable(n, std))


def detectable(n: int, std: float) -> float:
    """The smallest true mean difference that a two-sided paired t-test at 5 % finds with 80 % power."""
    return _noncentrality(n) * std / sqrt(n)


@cache
def _noncentrality(n: int) -> float:
    """d with P(T > t) = 0.8 for T = (Z + d) / (U / sqrt(n - 1)), Z normal, U chi with n - 1 degrees of freedom.

    Integrated over U, since SciPy's noncentral t fails at small n; P(T < -t) is negligible at that power.
    """
    freedom = n - 1
    critical = float(stats.t.ppf(1 - ALPHA / 2, freedom))

    def shortfall(noncentrality: float) -> float:
        def found(u: float) -> float:
            return float(special.ndtr(noncentrality - critical * u / sqrt(freedom)) * stats.chi.pdf(u, freedom))

        return integrate.quad(found, 0, np.inf)[0] - POWER

    return float(optimize.brentq(shortfall, 0.1, 100.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p_(i) becomes max over j <= i of (m - j + 1) p_(j), at most 1."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return [float(p) for p in corrected]


def verdict(found: Difference | None, corrected_p: float | None) -> str:
    """The rule of README.md: reproduced, contradicted or undecided, from a difference and its corrected p-value."""
    if found is None or corrected_p is None or corrected_p >= ALPHA:
        return "undecided"
    return "reproduced" if found.mean > 0 else "contradicted"
