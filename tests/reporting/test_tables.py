"""The tables and the sentences, from made-up measurements whose answers are known."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from measurements import CLAIMS, MEASURED, VARIANTS, drawn, measured, of_seed, results

from tripletkd.analysis import ablation
from tripletkd.config.schema import Claim, Published
from tripletkd.evaluation.measurement import VariantMeasurement
from tripletkd.reporting import figures, folder, tables
from tripletkd.reporting.text import p_value


def test_the_text_says_it_all() -> None:
    text = tables.markdown(results())
    assert re.search(r"\| triplet over scratch \| \*\*undecided\*\* ‡ \| \+1.02 ± 0.15 \| ± 0.\d\d \| 4 \|", text)
    assert re.search(r"\| triplet over kd \| \*\*contradicted\*\* \| -1.00 ± 0.13 \| ± 0.\d\d \| 4 \|", text)
    assert "the table's 3 comparisons" in text and "the 2 claims that can be tested" in text
    assert "Left out are 1 more, because of methods that were not run here: pair." in text
    assert "environment.json beside this file" in text
    assert "- triplet, seed 4: triplet is nan at epoch 3, step 7" in text
    assert "OUTSIDE our 95 % prediction interval of one run" in text and "75.50" in text
    assert "Best: **margin 5**, the reference; significantly below it: margin 1." in text
    assert "| margin 1 | 3 | 70.10 ± 0.10 | ± 0.25 | **-5.00 ± 0.25** | 10.00 ± 0.00 |" in text
    assert "| margin 20 | 0 |  |  |  |  |" in text and "- margin, margin 20, seed 1: loss is inf" in text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4 and all(len({line.count("|") for line in block}) == 1 for block in blocks)


def test_why_a_claim_is_not_judged_is_marked_and_said() -> None:
    """And without a difference there are no numbers."""
    whole = replace(MEASURED["triplet"], failed={})
    failed_baseline = MEASURED | {"kd": measured({s: 70.0 + 0.1 * s for s in range(1, 6)}), "triplet": whole}
    no_scratch = {name: each for name, each in failed_baseline.items() if name != "scratch"}
    other_seeds = {"triplet": measured({1: 80.0}), "scratch": measured({2: 79.0})}
    for cells, row, sentence in (
        (MEASURED, "triplet over scratch | **undecided** ‡ |", "not judged against scratch (seeds of the better one"),
        (failed_baseline, "triplet over kd | **undecided** † |", "is above kd (not judged: below scratch)."),
        (no_scratch, "triplet over kd | **undecided** § |", "is above kd (not judged: not compared with scratch)."),
        (other_seeds, "triplet over scratch | **undecided** |  |  |  |  |  |", "is not distinguishable from scratch."),
    ):
        text = tables.markdown(results(measured=cells, claims=CLAIMS[:1], published={}))
        assert f"| {row}" in text and sentence in text


def test_claims_are_counted_over_the_seeds_that_both_have() -> None:
    """Of two methods that lost a seed each, the pairs are fewer than the seeds of either; without a pair they are 0."""
    cells = {
        "scratch": measured({1: 80.0, 2: 80.2, 3: 80.1}, failed={4: "loss is nan"}),
        "kd_triplet": measured({2: 82.0, 3: 82.2, 4: 82.1}, failed={1: "loss is nan"}),
        "pair": measured({9: 80.0}),
        "cosine": measured({1: 80.1, 2: 80.0, 3: 80.3}),
    }
    both, own = [Claim("kd_triplet", ["scratch"]), Claim("pair", ["kd_triplet"])], Claim("cosine", ["scratch"])
    found = tables.finding(results(measured=cells, claims=[*both, own]))
    assert found.startswith("Of 2 claims, each compared over 0 to 2 seeds: ")
    none = "0 reproduced, 0 contradicted, 1 undecided."
    assert found.endswith(f" Of 1 claim for cosine, not the paper's, each compared over 3 seeds: {none}")


def test_students_at_chance_level_are_warned_of() -> None:
    assert tables.warnings(results()) == []
    classes = {"test_accuracy_by_class": (0.0, 1.0)}  # one answer for every image
    guessing = measured({}, seeds=tuple(of_seed(seed, 50.1, **classes) for seed in (1, 2)))
    [line] = tables.warnings(results(measured=MEASURED | {"kd": guessing}))
    assert "At chance level (50.00 %): kd" in line
    one = measured({1: 90.0}, seeds=(of_seed(1, 90.0), of_seed(2, 50.1, **classes)))
    [line] = tables.warnings(results(measured=MEASURED | {"kd": one}))
    assert "At chance level (50.00 %): kd (seed 2)" in line
    all_of_them = {name: each if name == "teacher" else guessing for name, each in MEASURED.items()}
    assert "All students are at chance level (50.00 %)" in tables.markdown(results(measured=all_of_them))


def test_columns_are_of_what_was_measured() -> None:
    head = tables.measures(results()).head
    assert "violated triplets, %" in head and "top 5, %" not in head
    many = replace(MEASURED["kd"], seeds=(of_seed(1, 82.0, test_top5_accuracy=0.9),))
    made = tables.measures(results(measured=MEASURED | {"kd": many}))
    row = dict(zip(made.head, next(row for row in made.rows if row[0] == "kd"), strict=True))
    assert (row["top 5, %"], row["cross-entropy"], row["parameters"]) == ("90.00", "0.50", "1,000")


LOSING = {1: 60.0, 2: 90.0, 3: 90.3, 4: 90.1, 5: 90.2}  # the mean is low because of seed 1
LOST = {seed: value - 2 for seed, value in LOSING.items() if seed != 1}  # below it on each, with a higher mean


@pytest.mark.parametrize(
    ("first", "second", "failed", "expected"),
    [
        ({1: 70.0, 2: 70.5, 3: 71.0}, {1: 75.0, 2: 75.6, 3: 76.2}, "", "Best: **b**, +5.10 ± 0.25 points over a (corr"),
        ({1: 70.0}, {1: 71.0}, "", "Best: **b**, not tested against a: too few seeds, or identical differences."),
        ({1: 71.0}, {1: 70.0}, "", "Best: **a**, not tested: too few seeds, or identical differences."),
        ({1: 71.0, 2: 71.0, 3: 71.5}, {1: 70.0, 2: 71.5, 3: 71.2}, "", "Best: **a**, the reference; no other differs"),
        ({}, {1: 70.0}, "a", "Nothing to compare with: no seed of a came through."),
        (LOSING, {seed: value + 0.1 * seed for seed, value in LOST.items()}, "b", "Best: **a**, the reference; signif"),
        ({seed: value + 0.1 * seed for seed, value in LOST.items()}, LOSING, "a", "Best: **b**, +1.65 ± 0.21 points"),
        (
            LOSING,
            {s: v + 4 + 0.1 * s for s, v in LOST.items()},
            "b",
            "Best: **b**, which is not judged: seeds of",
        ),
    ],
)
def test_what_an_ablation_comes_to(
    first: dict[int, float], second: dict[int, float], failed: str, expected: str
) -> None:
    """Pairs of seeds decide which is best; the mean of a variant that lost a bad seed is above its pairs."""
    variants = [
        VariantMeasurement(label, {}, False, measured(values, failed={1: "nan"} if label in failed else {}))
        for label, values in {"a": first, "b": second}.items()
    ]
    assert tables.outcome(ablation.lines(variants)).startswith(expected)


def test_a_difference_that_decides_nothing_is_marked_and_says_its_seeds() -> None:
    text = tables.markdown(results())
    assert "| triplet | 4 | 81.10 ± 0.14 | ± 0.23 | +1.02 ± 0.15 ‡ | **-1.00 ± 0.13** | 81.00 |" in text
    assert "‡: decides nothing, because seeds of the better of the two failed." in text
    fewer = replace(MEASURED["kd"], seeds=MEASURED["kd"].seeds[:3])
    [row] = [row for row in tables.comparison(results(measured=MEASURED | {"kd": fewer})).rows if row[0] == "triplet"]
    assert row[5] == "**-1.00 ± 0.25** (n = 3)"


@pytest.mark.parametrize(
    ("p", "text"), [(0.0496, "0.0496"), (0.0504, "0.05"), (0.049999, "0.049999"), (0.0123, "0.012")]
)
def test_a_p_value_shows_on_which_side_of_the_level_it_lies(p: float, text: str) -> None:
    assert p_value(p) == text


def test_what_all_variants_of_an_ablation_have_in_common_is_said() -> None:
    text = tables.markdown(results(in_common={"margin": {"triplet": 0, "weight_decay": 0.01}}))
    assert "## Ablation: margin\n\nAll variants have triplet 0, weight_decay 0.01.\n\n| variant |" in text


def test_images_that_weights_from_elsewhere_may_have_seen_are_named() -> None:
    said = "Weights that were trained elsewhere may have seen these images."
    assert said in tables.markdown(results(split="validation", starts_elsewhere=True))
    assert said not in tables.markdown(results(split="validation")) + tables.markdown(results(starts_elsewhere=True))


def test_files_say_their_unit_and_have_no_uncorrected_p(tmp_path: Path) -> None:
    folder.write(tmp_path, results())
    line = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))[-1]
    assert float(line["over_points.kd.mean"]) == pytest.approx(-1.0, abs=1e-3)
    assert line["test_accuracy_percent.mean"] == "81.1" and "published" not in line
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["rows"][-1]["test_accuracy_percent"]["mean"] == pytest.approx(81.1)
    assert table["in_short"][0].startswith("Of 3 claims") and '"p":' not in json.dumps(table)
    assert json.loads((tmp_path / "summary.json").read_text())["kd_percent"] == pytest.approx(82.1)
    assert line["split"] == "test" and "test_accuracy_percent,lowest" in (tmp_path / "curves.csv").read_text()
    held_out = "under a teacher that has not seen them either"
    assert held_out in tables.markdown(results()) and held_out not in tables.markdown(results(starts_elsewhere=True))
    shown = {path.stem: path.read_text() for path in (tmp_path / "figures").iterdir()}  # drawn anew, the same bytes
    assert shown == {name: figures.standalone(svg) for name, svg in drawn().items()}


@pytest.mark.fault
def test_what_others_named_breaks_no_table() -> None:
    names = {"a|b\nc\x1b[31m": Published(70.0, "see <b>|\n# this"), "*kd*_x_": Published(71.0, "one run")}
    text = tables.markdown(results(published=names))
    assert "\n| a\\|b c�[31m |" in text and "\n| \\*kd\\*\\_x\\_ |" in text
    assert "- a\\|b c�[31m: published 70.00 (see \\<b>\\| # this); not run here" in text
    table = next(block.splitlines() for block in text.split("\n\n") if block.startswith("|"))
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    labelled = [replace(line, label=f"name a|b{i}") for i, line in enumerate(ablation.lines(VARIANTS))]
    text = tables.markdown(results(ablations={"margin": labelled}))
    assert "\n| name a\\|b0 | 3 |" in text and "| over name a\\|b1 |" in text
