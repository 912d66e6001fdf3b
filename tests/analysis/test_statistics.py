"""Intervals, tests and verdicts against SciPy's own routines, simulation, and numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from analysis import simulated_coverage
from conftest import ROOT
from scipy import stats

from tripletkd.analysis.statistics import (
    ALPHA,
    Difference,
    Summary,
    detectable,
    difference,
    holm,
    over_images_too,
    summarise,
    verdict,
)

SAMPLE = [80.1, 80.9, 81.3, 79.8, 80.6]


def test_cell_is_the_t_interval() -> None:
    found = summarise(SAMPLE)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(SAMPLE), scale=stats.sem(SAMPLE))
    assert found.n == 5 and found.std == pytest.approx(np.std(SAMPLE, ddof=1)) and found.half_width is not None
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))


def test_prediction_interval_holds_one_further_run_in_95_of_100() -> None:
    inside = 0
    for *sample, further in np.random.default_rng(1).normal(80, 0.5, (1000, 6)):
        interval = summarise(sample).one_run
        assert interval is not None
        inside += interval[0] <= further <= interval[1]
    assert inside / 1000 == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 1000))


def test_one_seed_has_a_mean_and_two_are_too_few_to_test() -> None:
    assert summarise([80.0]) == Summary(1, 80.0, None, None, None)
    assert difference({1: 80.0}, {1: 79.0}) == Difference(1, 1.0, None, None, None)
    found = difference({1: 80.0, 2: 81.0}, {1: 79.0, 2: 80.01})
    assert found is not None and (found.n, found.p) == (2, None)
    assert found.half_width == pytest.approx(12.706 * 0.01 / 2, rel=1e-3)


def test_difference_is_paired_by_seed() -> None:
    first = dict(enumerate(SAMPLE))
    second = {seed: value - 0.5 - 0.1 * (seed % 2) for seed, value in first.items()} | {99: 0.0}  # 99 has no partner
    found = difference(first, second)
    assert found is not None
    assert found.n == 5
    assert found.mean == pytest.approx(0.54)
    assert found.p == pytest.approx(stats.ttest_rel(list(first.values()), [second[s] for s in first]).pvalue)
    assert difference(first, {7: 1.0}) is None


def test_identical_differences_are_not_tested() -> None:
    """Accuracies are counts of images, and few seeds may all differ by the same: that is no certainty."""
    first = {seed: 100 * (800 + seed) / 899 for seed in range(5)}
    found = difference(first, {seed: value - 100 * 3 / 899 for seed, value in first.items()})
    assert found is not None and found.mean == pytest.approx(100 * 3 / 899) and found.p is None


@pytest.mark.parametrize(("n", "effect"), [(2, 11.55), (5, 1.685), (20, 0.660)])
def test_detectable_difference(n: int, effect: float) -> None:
    """Effect sizes of a paired t-test, alpha 0.05, power 0.8: tabulated values (G*Power)."""
    assert detectable(n, 1.0) == pytest.approx(effect, abs=0.006)


def test_detectable_difference_by_simulation_of_the_first_of_several_tests() -> None:
    samples = np.random.default_rng(5).normal(detectable(5, 2.0, tests=33), 2.0, (20000, 5))
    power = (stats.ttest_1samp(samples, 0, axis=1).pvalue < ALPHA / 33).mean()
    assert power == pytest.approx(0.8, abs=0.012)


def corrected(*p_values: float) -> list[float]:
    found = holm(dict(enumerate(Difference(3, 1.0, 1.0, 1.0, p) for p in p_values)))
    return [found[i] for i in range(len(p_values))]


def test_holm_is_the_closed_bonferroni_procedure() -> None:
    """An independent definition: a hypothesis' p is the largest Bonferroni p of all the sets that hold it."""
    assert corrected(0.01, 0.04, 0.03, 0.005) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    assert corrected(0.9, 0.8) == [1.0, 1.0] and holm({"a": None, "b": Difference(1, 1.0, None, None, None)}) == {}
    p = np.random.default_rng(3).uniform(0, 0.2, 6)
    for i, found in enumerate(corrected(*p)):
        sets = [c for size in range(1, 7) for c in itertools.combinations(range(6), size) if i in c]
        assert found == pytest.approx(min(1, max(len(c) * min(p[j] for j in c) for c in sets)))


@pytest.mark.parametrize(
    ("mean", "p", "expected"),
    [(1.0, 0.01, "reproduced"), (-1.0, 0.01, "contradicted"), (1.0, 0.05, "undecided"), (1.0, None, "undecided")],
)
def test_verdict(mean: float, p: float | None, expected: str) -> None:
    assert verdict(Difference(5, mean, 0.2, 0.1, p), p) == expected


@pytest.mark.parametrize("of_images", [0, 2])  # without an effect of the image the degrees of freedom are the fewest
def test_interval_over_images_too_in_a_plain_loop(of_images: int) -> None:
    random = np.random.default_rng(3)
    gaps = random.integers(-1, 2, (4, 7)) + of_images * random.normal(size=7)
    seeds, images = gaps.shape
    of_rest = (seeds - 1) * (images - 1)
    mean, of_seed, of_image = gaps.mean(), gaps.mean(1), gaps.mean(0)
    rest = [(gaps[s, i] - of_seed[s] - of_image[i] + mean) ** 2 for s in range(seeds) for i in range(images)]
    parts = [
        sum((of_seed - mean) ** 2) / (seeds - 1) / seeds,
        sum((of_image - mean) ** 2) / (images - 1) / images,
        sum(rest) / of_rest / (seeds * images),
    ]
    variance = parts[0] + parts[1] - parts[2]
    freedom = variance**2 / sum(p**2 / n for p, n in zip(parts, [seeds - 1, images - 1, of_rest], strict=True))
    assert (freedom > seeds - 1) == (of_images > 0)
    alone = stats.t.ppf(0.975, seeds - 1) * math.sqrt(parts[0])
    expected = max(alone, stats.t.ppf(0.975, max(freedom, seeds - 1)) * math.sqrt(variance))
    assert over_images_too(gaps) == pytest.approx(expected)


def test_interval_over_images_too_at_its_limits() -> None:
    gaps = np.random.default_rng(3).integers(-1, 2, (4, 7)).astype(float)
    alike = np.array([[3.0, 3.0, 3.0], [1.0, 1.0, 1.0]])  # no effect of the image: as for the seeds alone
    assert over_images_too(alike) == pytest.approx(stats.t.ppf(0.975, 1) * 1.0)
    assert over_images_too(gaps[:1]) is None
    assert over_images_too(np.zeros((3, 5))) == 0


@pytest.mark.parametrize(
    "seeds",
    [pytest.param([2], id="few"), pytest.param(list(simulated_coverage.SEEDS), id="all", marks=pytest.mark.slow)],
)
def test_docs_verdicts_has_the_coverage_that_is_simulated(seeds: list[int]) -> None:
    """The same random numbers, so the same table."""
    documented = (ROOT / "docs/verdicts.md").read_text().splitlines()
    assert [line for line in simulated_coverage.table(seeds) if line not in documented] == []
