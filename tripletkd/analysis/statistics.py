"""From measurements to intervals, tests and verdicts. One number a seed; methods are paired by seed."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import nan, sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize, special, stats

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
FEWEST = 3  # pairs to test: two may agree by chance, for accuracies are counts of images

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """The mean of n seeds, their scatter, and 95 % intervals."""

    n: int
    mean: float  # not a number with no seed
    std: float | None  # None, as the intervals, with fewer than two seeds
    half_width: float | None  # of the mean's interval
    one_run: tuple[float, float] | None  # the 95 % prediction interval of one further run


def summarise(values: Sequence[float]) -> Summary:
    """Summarise one value a seed, with Student's t intervals.

    The mean's interval is mean +- t s / sqrt(n); that of one further run is mean +- t s sqrt(1 + 1/n).
    """
    n, mean = len(values), float(np.mean(values)) if values else nan
    if n < 2:
        return Summary(n, mean, None, None, None)
    std = float(np.std(values, ddof=1))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    spread = t * std * sqrt(1 + 1 / n)
    return Summary(n, mean, std, t * std / sqrt(n), (mean - spread, mean + spread))


@dataclass(frozen=True)
class Difference:
    """The mean difference of two methods paired by seed, its scatter, its 95 % interval and its p-value."""

    n: int  # pairs
    mean: float
    std: float | None  # of the differences; None with fewer than two pairs
    half_width: float | None  # likewise
    # None with fewer than FEWEST pairs, and where all differ by the same: there is no scatter to test by.
    p: float | None


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Compare two methods by a two-sided paired t-test.

    Args:
        first: a value a seed.
        second: likewise of the other method.

    Returns:
        The difference first - second over the seeds that both have; None if they share no seed.
    """
    gaps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not gaps:
        return None
    found = summarise(gaps)
    # Equal differences of percentages differ by rounding.
    is_testable = found.n >= FEWEST and found.std is not None and found.std > 1e-9
    p = float(stats.ttest_1samp(gaps, 0).pvalue) if is_testable else None
    return Difference(found.n, found.mean, found.std, found.half_width, p)


def over_images_too(gaps: NDArray[np.float64]) -> float | None:
    """Compute half the width of the 95 % interval of a mean difference, were images as well as seeds drawn anew.

    See `crossed_half_widths`, whose experiment is one here.

    Args:
        gaps: [S, I], the first method's hit minus the second's for each seed and image.

    Returns:
        The half width; None with fewer than two seeds or images.
    """
    return float(crossed_half_widths(gaps)) if min(gaps.shape) > 1 else None


def crossed_half_widths(gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute half the width of the 95 % interval of the mean of each experiment with S seeds and I images, both drawn.

    With seeds and images as crossed random effects, the variance of the mean is

        V = s_seeds^2 / S + s_images^2 / I - s_rest^2 / (S I)

    with the variances of the seeds' means, of the images' means, and of what both leave over; t has Satterthwaite's
    degrees of freedom. Those of a sum of variances are never fewer than its smallest part's, S - 1 where there are more
    images than seeds; by the part that is subtracted the formula falls below it, to where t has no bound.

    Args:
        gaps: [..., S, I], two seeds and two images or more.

    Returns:
        The half widths, [...], never less than for the seeds alone, as the formula can be where the images' part is
        small. docs/verdicts.md says how often the intervals hold what they should.

    Source: Cornfield, Tukey, "Average values of mean squares in factorials", 1956; Satterthwaite 1946.
    """
    count, images = gaps.shape[-2:]
    of_seeds, of_images = gaps.mean(-1, keepdims=True), gaps.mean(-2, keepdims=True)
    rest = gaps - of_seeds - of_images + gaps.mean((-2, -1), keepdims=True)
    freedom = np.array([count - 1, images - 1, (count - 1) * (images - 1)])
    parts = np.stack(
        [
            of_seeds.var((-2, -1), ddof=1) / count,
            of_images.var((-2, -1), ddof=1) / images,
            (rest**2).sum((-2, -1)) / freedom[2] / (count * images),
        ],
        axis=-1,
    )
    variance = np.maximum(parts @ [1, 1, -1], 0)
    spread = (parts**2 / freedom).sum(-1)
    satterthwaite = np.divide(variance**2, spread, out=np.zeros_like(spread), where=spread > 0)
    t = stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(satterthwaite, freedom.min()))
    seeds_alone = stats.t.ppf((1 + CONFIDENCE) / 2, freedom[0]) * np.sqrt(parts[..., 0])
    return np.maximum(seeds_alone, t * np.sqrt(variance))


def detectable(n: int, std: float, tests: int = 1) -> float:
    """Compute the smallest true mean difference that a two-sided paired t-test at 5 % / tests finds with 80 % power.

    Args:
        n: pairs.
        std: the standard deviation of the differences.
        tests: how many tests Holm's procedure corrects for, of which this is the first; for the later ones, whose
            levels are higher, less is needed.
    """
    return _noncentrality(n, ALPHA / tests) * std / sqrt(n)


@cache
def _noncentrality(n: int, alpha: float) -> float:
    """Solve P(T > t) = 0.8 for d, where T = (Z + d) / (U / sqrt(n - 1)), Z normal, U chi with n - 1 degrees of freedom.

    The probability is integrated over U, since SciPy's noncentral t fails at small n; P(T < -t) is negligible at that
    power.
    """
    freedom = n - 1
    critical = float(stats.t.ppf(1 - alpha / 2, freedom))

    def shortfall(noncentrality: float) -> float:
        def found(u: float) -> float:
            return float(special.ndtr(noncentrality - critical * u / sqrt(freedom)) * stats.chi.pdf(u, freedom))

        return integrate.quad(found, 0, np.inf)[0] - POWER

    return float(optimize.brentq(shortfall, 0.1, 10 * critical))


def holm(gaps: Mapping[Key, Difference | None]) -> dict[Key, float]:
    """Correct the p-values of the differences that have one for their number, by Holm's step-down procedure.

    The i-th smallest of m becomes max over j <= i of (m - j + 1) p_(j), at most 1.

    Returns:
        The corrected p-values by the differences' keys.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics, 1979.
    """
    p_values = {key: gap.p for key, gap in gaps.items() if gap is not None and gap.p is not None}
    corrected, highest = dict[Key, float](), 0.0
    for rank, key in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = min(max(highest, (len(p_values) - rank) * p_values[key]), 1.0)
        corrected[key] = highest
    return corrected


def significant(corrected_p: float | None) -> bool:
    """Tell whether a p-value is below ALPHA; None, where nothing could be tested, is not."""
    return corrected_p is not None and corrected_p < ALPHA


def verdict(found: Difference | None, corrected_p: float | None) -> str:
    """Apply step 3 of docs/verdicts.md to a difference and its corrected p; `comparison.bar` applies steps 4 and 5."""
    if found is None or not significant(corrected_p):
        return "undecided"
    return "reproduced" if found.mean > 0 else "contradicted"
