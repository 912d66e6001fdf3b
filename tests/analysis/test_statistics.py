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
    assert found.n == 5
    assert found.std == pytest.approx(np.std(SAMPLE, ddof=1))
    assert found.half_width is not None
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


@pytest.mark.parametrize(("seeds", "gap"), [(3, 0.0), (5, 100 * 3 / 899)])
def test_identical_differences_are_not_tested(seeds: int, gap: float) -> None:
    """Accuracies are counts of images, and few seeds may all differ by the same: that is no certainty."""
    first = {seed: 100 * (800 + seed) / 899 for seed in range(seeds)}
    found = difference(first, {seed: value - gap for seed, value in first.items()})
    assert found is not None
    assert found.mean == pytest.approx(gap)
    assert found.p is None


@pytest.mark.parametrize(("n", "effect"), [(2, 11.55), (5, 1.685), (10, 0.996), (20, 0.660)])
def test_detectable_difference(n: int, effect: float) -> None:
    """Effect sizes of a paired t-test, alpha 0.05, power 0.8: tabulated values (G*Power)."""
    assert detectable(n, 1.0) == pytest.approx(effect, abs=0.006)


@pytest.mark.parametrize(("n", "tests"), [(3, 1), (5, 33), (10, 6)])
def test_detectable_difference_by_simulation(n: int, tests: int) -> None:
    samples = np.random.default_rng(n).normal(detectable(n, 2.0, tests), 2.0, (20000, n))
    power = (stats.ttest_1samp(samples, 0, axis=1).pvalue < ALPHA / tests).mean()
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
    [(1.0, 0.01, "reproduced"), (-1.0, 0.01, "contradicted"), (1.0, 0.05, "undecided"), (-1.0, 0.2, "undecided"),
     (1.0, None, "undecided")],
)  # fmt: skip
def test_verdict(mean: float, p: float | None, expected: str) -> None:
    assert verdict(Difference(5, mean, 0.2, 0.1, p), p) == expected
    assert verdict(None, p) == "undecided"


@pytest.mark.parametrize("of_images", [0, 2])  # without an effect of the image the degrees of freedom are the fewest
def test_interval_over_images_too_in_a_plain_loop(of_images: int) -> None:
    random = np.random.default_rng(3)
    gaps = random.integers(-1, 2, (4, 7)) + of_images * random.normal(size=7)
    seeds, images = gaps.shape
    mean = gaps.mean()
    by_seed = sum((gaps[s].mean() - mean) ** 2 for s in range(seeds)) / (seeds - 1)
    by_image = sum((gaps[:, i].mean() - mean) ** 2 for i in range(images)) / (images - 1)
    left = sum(
        (gaps[s, i] - gaps[s].mean() - gaps[:, i].mean() + mean) ** 2 for s in range(seeds) for i in range(images)
    ) / ((seeds - 1) * (images - 1))
    parts = [by_seed / seeds, by_image / images, left / (seeds * images)]
    variance = parts[0] + parts[1] - parts[2]
    freedom = variance**2 / sum(
        part**2 / n for part, n in zip(parts, [seeds - 1, images - 1, (seeds - 1) * (images - 1)], strict=True)
    )
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


@pytest.mark.fault
@pytest.mark.parametrize(("seeds", "images", "random_seed"), [(3, 40, 8), (2, 200, 0)])
def test_interval_over_images_too_has_a_bound_without_effects(seeds: int, images: int, random_seed: int) -> None:
    """The degrees of freedom of a sum of variances are never fewer than its smallest part's; the first was 3.6e150."""
    random = np.random.default_rng(random_seed)
    for _ in range(200):
        gaps = random.integers(-1, 2, (seeds, images)).astype(float)
        alone = summarise(list(gaps.mean(1))).half_width
        width = over_images_too(gaps)
        assert width is not None and alone is not None
        bound = stats.t.ppf(0.975, seeds - 1) * math.sqrt(
            gaps.mean(1).var(ddof=1) / seeds + gaps.mean(0).var() / images
        )
        assert alone - 1e-12 <= width <= bound * 1.02


@pytest.mark.parametrize(
    "seeds",
    [pytest.param([2, 3], id="few"), pytest.param(list(simulated_coverage.SEEDS), id="all", marks=pytest.mark.slow)],
)
def test_docs_verdicts_has_the_coverage_that_is_simulated(seeds: list[int]) -> None:
    """The same random numbers, so the same table."""
    documented = (ROOT / "docs/verdicts.md").read_text().splitlines()
    assert [line for line in simulated_coverage.table(seeds) if line not in documented] == []
