"""The table's rows, the verdicts and what bars them, from made-up measurements whose answers are known."""

import numpy as np
import pytest
from measurements import CLAIMS, HISTORY, IMAGES, MEASURED, PUBLISHED, Claim, changed, measured

from tripletkd.analysis import comparison, statistics
from tripletkd.analysis.comparison import PublishedComparison


def test_rows_in_order_with_differences_paired_by_seed() -> None:
    table = comparison.rows(MEASURED, PUBLISHED)
    assert [row.method for row in table] == ["teacher", "scratch", "kd", "triplet"]
    assert [row.n for row in table] == [1, 5, 5, 4]
    triplet = table[-1]
    assert triplet.over["scratch"].n == 4
    assert triplet.over["scratch"].mean == pytest.approx((1.0 + 1.1 + 0.9 + 1.1) / 4)
    assert "kd" not in table[2].over
    assert table[1].over.keys() == {"kd"}
    assert triplet.best_on_test == pytest.approx(triplet.test.mean + 1)


def test_published_figures_are_held_against_one_further_run() -> None:
    table = {row.method: row for row in comparison.rows(MEASURED, PUBLISHED)}
    assert table["triplet"].published == PublishedComparison(81.0, "one run", inside_one_run_interval=True)
    assert table["kd"].published == PublishedComparison(70.0, "elsewhere <script>", inside_one_run_interval=False)
    [single] = comparison.rows({"kd": measured({1: 82.0})}, PUBLISHED)
    assert single.published == PublishedComparison(70.0, "elsewhere <script>", inside_one_run_interval=None)


def test_verdicts_only_for_what_was_run() -> None:
    answers = {answer.claim: answer for answer in comparison.verdicts(MEASURED, CLAIMS)}
    assert {claim: answer.verdict for claim, answer in answers.items()} == {
        "triplet over scratch": "undecided",  # without the seed that failed it would look better
        "triplet over kd": "contradicted",
        "triplet over triplet": "undecided",
    }
    over_scratch = answers["triplet over scratch"]
    assert over_scratch.corrected_p is not None and over_scratch.difference is not None
    assert over_scratch.difference.p is not None
    assert over_scratch.corrected_p > over_scratch.difference.p
    one_seed = {name: measured({1: 80.0 + i}) for i, name in enumerate(MEASURED)}
    assert {answer.verdict for answer in comparison.verdicts(one_seed, CLAIMS)} == {"undecided"}


def test_without_a_common_seed_there_is_no_difference() -> None:
    other_seeds = {"triplet": measured({1: 80.0}), "scratch": measured({2: 79.0})}
    [answer] = comparison.verdicts(other_seeds, CLAIMS[:1])
    assert (answer.verdict, answer.difference, answer.half_width_over_images_too) == ("undecided", None, None)


def test_a_method_worse_than_no_teacher_is_no_baseline() -> None:
    """scratch is nearly two points below kd; a kd that had gone wrong would let anything look good."""
    cells = MEASURED | {"kd": measured({seed: 70.0 + 0.1 * seed for seed in range(1, 6)})}
    cells["triplet"] = changed(MEASURED["triplet"], failed={})
    answers = {answer.over: answer for answer in comparison.verdicts(cells, CLAIMS[:1])}
    gap, p = answers["kd"].difference, answers["kd"].corrected_p
    assert gap is not None and gap.mean > 10
    assert p is not None and p < 1e-4
    assert (answers["kd"].verdict, answers["kd"].barred) == ("undecided", "failed baseline")
    assert (answers["scratch"].verdict, answers["scratch"].barred) == ("reproduced", None)
    worse = cells | {"triplet": measured({seed: 60.0 + 0.1 * seed for seed in range(1, 6)} | {1: 60.5})}
    assert {answer.verdict for answer in comparison.verdicts(worse, CLAIMS[:1])} == {"contradicted"}


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
    """scratch over kd is kd over scratch: three pairs, so the smallest p is tripled."""
    table = comparison.rows({name: MEASURED[name] for name in ("scratch", "kd", "triplet")}, {})
    smallest = min(gap.p for row in table for gap in row.over.values() if gap.p is not None)
    assert min(p for row in table for p in row.corrected_p.values()) == pytest.approx(3 * smallest)
    assert sum(len(row.over) for row in table) == 4


def test_other_images_are_weighed_by_which_images_each_seed_got_right() -> None:
    """By hand: a seed's hits are its first images, as many as its accuracy says; seed 4 of triplet failed."""
    [answer] = comparison.verdicts(MEASURED, [Claim("triplet", ["kd"])])
    rows = []
    for triplet, kd in ((81.0, 82.1), (81.3, 82.2), (81.0, 82.0), (81.1, 82.1)):
        first, second = round(triplet / 100 * IMAGES), round(kd / 100 * IMAGES)
        rows.append([100.0 * (i < first) - 100.0 * (i < second) for i in range(IMAGES)])
    half_width = answer.half_width_over_images_too
    assert half_width is not None and answer.difference is not None and answer.difference.half_width is not None
    assert half_width == pytest.approx(statistics.over_images_too(np.array(rows)))
    assert half_width > answer.difference.half_width


def test_what_would_be_found_counts_the_claims() -> None:
    answer = comparison.verdicts(MEASURED, CLAIMS[:1])[0]  # over scratch, and over kd
    assert answer.difference is not None and answer.difference.std is not None and answer.detectable is not None
    assert answer.detectable == pytest.approx(statistics.detectable(4, answer.difference.std, tests=2))
    assert answer.detectable > statistics.detectable(4, answer.difference.std)


@pytest.mark.fault
def test_a_claim_stated_the_other_way_round_is_no_further_test() -> None:
    stated = [Claim("triplet", ["scratch", "kd"])]
    alone = comparison.verdicts(MEASURED, stated)
    both = comparison.verdicts(MEASURED, [*stated, Claim("kd", ["triplet"])])
    assert both[:2] == alone
    assert (both[2].corrected_p, both[2].detectable) == (alone[1].corrected_p, alone[1].detectable)
    assert (alone[1].verdict, both[2].verdict) == ("contradicted", "reproduced")


def test_curves_are_means_with_a_band() -> None:
    points = comparison.curves({"kd": HISTORY, "triplet": [*HISTORY, {"seed": 1, "epoch": 3}]})
    assert len(points) == 4
    first = points[0]
    assert (first.method, first.epoch) == ("kd", 1)
    assert (first.test_accuracy, first.lowest, first.highest) == pytest.approx((65.0, 60.0, 70.0))
