"""Rows of the table, verdicts, what bars them, and lines of an ablation: from measurements whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
from measurements import CLAIMS, HISTORY, IMAGES, MEASURED, PUBLISHED, VARIANTS, measured

from tripletkd.analysis import ablation, comparison, statistics
from tripletkd.analysis.comparison import PublishedComparison
from tripletkd.config.schema import Claim

WHOLE = replace(MEASURED["triplet"], failed={})


def test_rows_in_order_with_differences_paired_by_seed_and_published_figures_held_against_one_further_run() -> None:
    table = {row.method: row for row in comparison.rows(MEASURED, PUBLISHED)}
    assert {name: row.n for name, row in table.items()} == {"teacher": 1, "scratch": 5, "kd": 5, "triplet": 4}
    triplet, gap = table["triplet"], table["triplet"].over_points["scratch"]
    assert gap.n == 4 and gap.mean == pytest.approx((1.0 + 1.1 + 0.9 + 1.1) / 4)
    assert table["kd"].over_points.keys() == {"scratch"} and table["scratch"].over_points.keys() == {"kd"}
    assert triplet.best_test_accuracy_percent == pytest.approx(triplet.test_accuracy_percent.mean + 1)
    assert triplet.published == PublishedComparison(81.0, "one run", inside_one_run_interval=True)
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


def test_training_from_scratch_can_be_claimed_to_beat_a_method() -> None:
    """Its own claim is not barred by what it claims: that the method is below scratch."""
    cells = {name: MEASURED[name] for name in ("teacher", "scratch")}
    cells |= {"kd": measured({seed: 70.0 + 0.1 * seed for seed in range(1, 6)})}
    [answer] = comparison.verdicts(cells, [Claim("scratch", ["kd"])])
    assert (answer.verdict, answer.barred) == ("reproduced", None)


def test_a_baseline_that_cannot_be_compared_with_scratch_decides_nothing() -> None:
    """The verdict does not depend on who is listed: leaving scratch out makes no baseline of a method."""
    cells = {"kd": measured({1: 70.0, 2: 70.2, 3: 70.1, 4: 70.3}), "triplet": WHOLE}
    claims = [Claim("triplet", ["kd"]), Claim("kd", ["triplet"])]
    for scratch in ({}, {"scratch": measured({1: 79.0, 2: 79.2})}):  # not run, too few seeds
        found = [(answer.verdict, answer.barred) for answer in comparison.verdicts(cells | scratch, claims)]
        assert found == [("undecided", "unknown baseline"), ("contradicted", None)]


def test_a_method_is_not_called_better_by_the_seeds_that_came_through() -> None:
    spread = {1: 0.1, 2: -0.1, 3: 0.0, 4: 0.2}
    scratch = measured(dict.fromkeys(spread, 80.0))
    better, worse = (measured({seed: 80.0 + by + more for seed, more in spread.items()}) for by in (1.0, -1.0))
    for method, base, expected in (
        (replace(better, failed={5: "nan"}), scratch, ("undecided", "failed seeds")),
        (better, replace(scratch, failed={5: "nan"}), ("reproduced", None)),
        (replace(worse, failed={5: "nan"}), scratch, ("contradicted", None)),
        (worse, replace(scratch, failed={5: "nan"}), ("undecided", "failed seeds")),
    ):
        cells = {"scratch": base, "triplet": method}
        [answer] = comparison.verdicts(cells, [Claim("triplet", ["scratch"])])
        assert (answer.verdict, answer.barred) == expected


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
    accuracies = np.array([[81.0, 81.3, 81.0, 81.1], [82.1, 82.2, 82.0, 82.1]]) / 100
    hits = 100.0 * (np.arange(IMAGES) < np.round(accuracies * IMAGES)[..., None])
    half_width, gap = answer.half_width_over_images_too_points, answer.difference_points
    assert half_width is not None and gap is not None and gap.half_width is not None and gap.std is not None
    assert half_width == pytest.approx(statistics.over_images_too(hits[0] - hits[1])) and half_width > gap.half_width
    assert answer.detectable_points == statistics.detectable(4, gap.std, tests=1)


def test_curves_are_means_with_a_band() -> None:
    points = comparison.curves({"kd": HISTORY, "triplet": [*HISTORY, {"seed": 1, "epoch": 3}]})
    assert len(points) == 4
    assert points[0] == comparison.CurvePoint("kd", 1, 65.0, 60.0, 70.0, 90.0)


def test_variants_are_compared_with_what_is_configured_or_with_the_first() -> None:
    lines = ablation.lines(VARIANTS)
    assert [line.reference for line in lines] == [False, True, False]
    gap = lines[0].over_reference_points
    assert gap is not None and gap.mean == pytest.approx(-5.0)
    assert lines[0].corrected_p == gap.p  # the only test: margin 20 has no seed
    assert (lines[1].over_reference_points, lines[1].corrected_p) == (None, None)
    assert lines[1].violated_triplets_percent.mean == pytest.approx(10.0) and lines[2].accuracy_percent.n == 0
    lines = ablation.lines([replace(variant, configured=False) for variant in VARIANTS])
    assert [line.reference for line in lines] == [True, False, False]
