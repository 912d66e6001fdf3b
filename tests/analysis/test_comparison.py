"""Rows of the table, verdicts, what bars them, and lines of an ablation: from measurements whose answers are known."""

import dataclasses

import numpy as np
import pytest
from measurements import CLAIMS, HISTORY, IMAGES, MEASURED, PUBLISHED, VARIANTS, Claim, changed, measured

from tripletkd.analysis import ablation, comparison, statistics
from tripletkd.analysis.comparison import PublishedComparison

WHOLE = changed(MEASURED["triplet"], failed={})


def test_rows_in_order_with_differences_paired_by_seed() -> None:
    table = comparison.rows(MEASURED, PUBLISHED)
    assert [row.method for row in table] == ["teacher", "scratch", "kd", "triplet"]
    assert [row.n for row in table] == [1, 5, 5, 4]
    triplet = table[-1]
    assert triplet.over_points["scratch"].n == 4
    assert triplet.over_points["scratch"].mean == pytest.approx((1.0 + 1.1 + 0.9 + 1.1) / 4)
    assert "kd" not in table[2].over_points and table[1].over_points.keys() == {"kd"}
    assert triplet.best_test_accuracy_percent == pytest.approx(triplet.test_accuracy_percent.mean + 1)


def test_published_figures_are_held_against_one_further_run() -> None:
    table = {row.method: row for row in comparison.rows(MEASURED, PUBLISHED)}
    assert table["triplet"].published == PublishedComparison(81.0, "one run", inside_one_run_interval=True)
    assert table["kd"].published == PublishedComparison(70.0, "elsewhere <script>", inside_one_run_interval=False)
    [single] = comparison.rows({"kd": measured({1: 82.0})}, PUBLISHED)
    assert single.published == PublishedComparison(70.0, "elsewhere <script>", inside_one_run_interval=None)


def test_verdicts_only_for_what_was_run() -> None:
    answers = comparison.verdicts(MEASURED, CLAIMS)
    assert {answer.claim: answer.verdict for answer in answers} == {
        "triplet over scratch": "undecided",  # without the seed that failed it would look better
        "triplet over kd": "contradicted",
        "triplet over triplet": "undecided",
    }
    assert comparison.left_out(MEASURED, CLAIMS) == (1, ["pair"])
    one_seed = {name: measured({1: 80.0 + i}) for i, name in enumerate(MEASURED)}
    assert {answer.verdict for answer in comparison.verdicts(one_seed, CLAIMS)} == {"undecided"}
    other_seeds = {"triplet": measured({1: 80.0}), "scratch": measured({2: 79.0})}
    [answer] = comparison.verdicts(other_seeds, CLAIMS[:1])
    found = (answer.verdict, answer.difference_points, answer.half_width_over_images_too_points)
    assert found == ("undecided", None, None)


def test_a_method_worse_than_scratch_is_no_baseline() -> None:
    """A kd that had gone wrong would let anything look good."""
    cells = MEASURED | {"kd": measured({seed: 70.0 + 0.1 * seed for seed in range(1, 6)}), "triplet": WHOLE}
    answers = {answer.over: answer for answer in comparison.verdicts(cells, CLAIMS[:1])}
    gap, p = answers["kd"].difference_points, answers["kd"].corrected_p
    assert gap is not None and gap.mean > 10 and p is not None and p < 1e-4
    assert (answers["kd"].verdict, answers["kd"].barred) == ("undecided", "failed baseline")
    assert (answers["scratch"].verdict, answers["scratch"].barred) == ("reproduced", None)
    worse = cells | {"triplet": measured({seed: 60.0 + 0.1 * seed for seed in range(1, 6)} | {1: 60.5})}
    assert {answer.verdict for answer in comparison.verdicts(worse, CLAIMS[:1])} == {"contradicted"}


@pytest.mark.parametrize("scratch", [None, {1: 79.0, 2: 79.2}], ids=["not run", "too few seeds"])
def test_a_baseline_that_cannot_be_compared_with_scratch_decides_nothing(scratch: dict[int, float] | None) -> None:
    """The verdict does not depend on who is listed: leaving scratch out makes no baseline of a method."""
    cells = {"kd": measured({1: 70.0, 2: 70.2, 3: 70.1, 4: 70.3}), "triplet": WHOLE}
    cells |= {} if scratch is None else {"scratch": measured(scratch)}
    [answer] = comparison.verdicts(cells, [Claim("triplet", ["kd"])])
    assert (answer.verdict, answer.barred) == ("undecided", "unknown baseline")
    [answer] = comparison.verdicts(cells, [Claim("kd", ["triplet"])])
    assert (answer.verdict, answer.barred) == ("contradicted", None)


@pytest.mark.parametrize(
    ("shift", "failed", "verdict", "barred"),
    [
        (1.0, "triplet", "undecided", "failed seeds"),
        (1.0, "scratch", "reproduced", None),
        (-1.0, "triplet", "contradicted", None),
        (-1.0, "scratch", "undecided", "failed seeds"),
    ],
)
def test_a_method_is_not_called_better_by_the_seeds_that_came_through(
    shift: float, failed: str, verdict: str, barred: str | None
) -> None:
    spread = {1: 0.1, 2: -0.1, 3: 0.0, 4: 0.05}
    cells = {
        "scratch": measured(dict.fromkeys(spread, 80.0)),
        "triplet": measured({seed: 80.0 + shift + more for seed, more in spread.items()}),
    }
    cells[failed] = changed(cells[failed], failed={5: "loss is nan"})
    [answer] = comparison.verdicts(cells, [Claim("triplet", ["scratch"])])
    assert (answer.verdict, answer.barred) == (verdict, barred)


def test_one_comparison_is_corrected_for_once() -> None:
    """scratch over kd is kd over scratch: three pairs, so the smallest p is tripled. So it is with claims."""
    table = comparison.rows({name: MEASURED[name] for name in ("scratch", "kd", "triplet")}, {})
    smallest = min(gap.p for row in table for gap in row.over_points.values() if gap.p is not None)
    assert min(p for row in table for p in row.corrected_p.values()) == pytest.approx(3 * smallest)
    stated = [Claim("triplet", ["scratch", "kd"])]
    alone = comparison.verdicts(MEASURED, stated)
    both = comparison.verdicts(MEASURED, [*stated, Claim("kd", ["triplet"])])
    assert both[:2] == alone and [answer.corrected_together for answer in both] == [2, 2, 2]
    assert (both[2].corrected_p, both[2].detectable_points) == (alone[1].corrected_p, alone[1].detectable_points)
    assert (alone[1].verdict, both[2].verdict) == ("contradicted", "reproduced")


def test_other_images_are_weighed_by_which_images_each_seed_got_right() -> None:
    """By hand: a seed's hits are its first images, as many as its accuracy says; seed 4 of triplet failed."""
    [answer] = comparison.verdicts(MEASURED, [Claim("triplet", ["kd"])])
    rows = []
    for triplet, kd in ((81.0, 82.1), (81.3, 82.2), (81.0, 82.0), (81.1, 82.1)):
        first, second = round(triplet / 100 * IMAGES), round(kd / 100 * IMAGES)
        rows.append([100.0 * (i < first) - 100.0 * (i < second) for i in range(IMAGES)])
    half_width, gap = answer.half_width_over_images_too_points, answer.difference_points
    assert half_width is not None and gap is not None and gap.half_width is not None
    assert half_width == pytest.approx(statistics.over_images_too(np.array(rows)))
    assert half_width > gap.half_width


def test_what_would_be_found_counts_the_claims() -> None:
    answer = comparison.verdicts(MEASURED, CLAIMS[:1])[0]  # over scratch, and over kd
    assert answer.difference_points is not None and answer.difference_points.std is not None
    expected = statistics.detectable(4, answer.difference_points.std, tests=2)
    assert answer.detectable_points == pytest.approx(expected)


def test_curves_are_means_with_a_band() -> None:
    points = comparison.curves({"kd": HISTORY, "triplet": [*HISTORY, {"seed": 1, "epoch": 3}]})
    assert len(points) == 4
    first = points[0]
    assert (first.method, first.epoch) == ("kd", 1)
    found = (first.test_accuracy_percent, first.lowest_percent, first.highest_percent)
    assert found == pytest.approx((65.0, 60.0, 70.0))


def test_variants_are_compared_with_what_is_configured_or_with_the_first() -> None:
    lines = ablation.lines(VARIANTS)
    assert [line.reference for line in lines] == [False, True, False]
    gap = lines[0].over_reference_points
    assert gap is not None and gap.mean == pytest.approx(-5.0)
    assert lines[0].corrected_p == gap.p  # the only test: margin 20 has no seed
    assert (lines[1].over_reference_points, lines[1].corrected_p) == (None, None)
    assert lines[1].violated_triplets_percent.mean == pytest.approx(10.0) and lines[2].accuracy_percent.n == 0
    lines = ablation.lines([dataclasses.replace(variant, configured=False) for variant in VARIANTS])
    assert [line.reference for line in lines] == [True, False, False]
