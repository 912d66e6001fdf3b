"""The tables and the sentences, from made-up measurements whose answers are known."""

import csv
import io
import re
from dataclasses import replace

import pytest
from measurements import CLAIMS, MEASURED, VARIANTS, Published, changed, measured, of_seed, results

from tripletkd.analysis import ablation, comparison
from tripletkd.evaluation.measurement import Environment, VariantMeasurement
from tripletkd.reporting import page, tables


def test_the_text_says_it_all() -> None:
    text = tables.markdown(results())
    assert "| triplet | 4 | 81.10 ± 0.14 | ± 0.23 | **+1.02 ± 0.15** | **-1.00 ± 0.13** | 81.00 |" in text
    assert (
        "- **triplet** is worse than kd; is not distinguishable from triplet; is not judged against scratch (" in text
    )
    assert re.search(r"\| triplet over scratch \| \*\*undecided\*\* ‡ \| \+1.02 ± 0.15 \| ± 0.\d\d \| 4 \|", text)
    assert re.search(r"\| triplet over kd \| \*\*contradicted\*\* \| -1.00 ± 0.13 \| ± 0.\d\d \| 4 \|", text)
    assert "- triplet, seed 4: triplet is nan at epoch 3, step 7" in text
    assert "OUTSIDE our 95 % prediction interval of one run" in text
    assert "75.50" in text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1


def test_a_verdict_without_a_difference_has_no_numbers() -> None:
    other_seeds = {"triplet": measured({1: 80.0}), "scratch": measured({2: 79.0})}
    undecided = results(verdicts=comparison.verdicts(other_seeds, CLAIMS[:1]))
    assert tables.verdicts(undecided).rows == [["triplet over scratch", "**undecided**", "", "", "", "", ""]]


def test_a_failed_baseline_is_marked_and_said() -> None:
    cells = MEASURED | {"kd": measured({seed: 70.0 + 0.1 * seed for seed in range(1, 6)})}
    cells["triplet"] = changed(MEASURED["triplet"], failed={})
    text = tables.markdown(results(verdicts=comparison.verdicts(cells, CLAIMS[:1])))
    assert "| triplet over kd | **undecided** † |" in text
    assert "- **triplet** is better than scratch; is above kd (not judged: below scratch)." in text


def test_failed_seeds_of_the_better_one_are_said() -> None:
    barred = comparison.verdicts(MEASURED, CLAIMS[:1])
    sentence = "is not judged against scratch (seeds of the better one failed)"
    assert sentence in tables.in_short(results(verdicts=barred))[0]
    whole = MEASURED | {"triplet": changed(MEASURED["triplet"], failed={})}
    assert sentence not in tables.in_short(results(verdicts=comparison.verdicts(whole, CLAIMS[:1])))[0]


def test_runs_of_different_environments_are_said() -> None:
    assert tables.mixed(results()) == []
    assert "environments" not in tables.markdown(results())
    other = Environment((1, 2, 3, 4, 5), {"torch": "3", "deterministic": True, "cuda": None})
    made = results(measured=MEASURED | {"kd": changed(MEASURED["kd"], environments=(other,))})
    line = "kd 1, 2, 3, 4, 5: torch 3"
    assert f"\n- {line}\n" in tables.markdown(made).partition("## Cells of different environments or code\n")[2]
    assert line in page.html(made, {})


def test_seeds_of_one_run_in_different_environments_are_said() -> None:
    [common] = MEASURED["kd"].environments
    shared = (replace(common, seeds=(1, 2, 3)), Environment((4, 5), common.values | {"torch": "3", "cuda": "13"}))
    made = results(measured=MEASURED | {"kd": changed(MEASURED["kd"], environments=shared)})
    common_line, other = tables.mixed(made)
    assert "; kd 1, 2, 3; " in common_line and common_line.endswith(": torch 2")
    assert other == "kd 4, 5: torch 3, cuda 13"


def test_columns_are_of_what_was_measured() -> None:
    head = tables.measures(results()).head
    assert "violated triplets, %" in head and "top 5, %" not in head
    many = changed(MEASURED["kd"], seeds=(of_seed(1, 82.0, test_top5_accuracy=0.9),))
    made = tables.measures(results(measured=MEASURED | {"kd": many}))
    row = dict(zip(made.head, next(row for row in made.rows if row[0] == "kd"), strict=True))
    assert (row["top 5, %"], row["cross-entropy"], row["parameters"]) == ("90.00", "0.50", "1,000")


def test_an_ablation_is_told_against_what_is_configured() -> None:
    assert tables.outcome(ablation.lines(VARIANTS)) == (
        "Best: **margin 5**, the reference; significantly below it: margin 1."
    )
    text = tables.markdown(results())
    assert "| margin 1 | 3 | 70.10 ± 0.10 | ± 0.25 | **-5.00 ± 0.25** | 10.00 ± 0.00 |" in text
    assert "| margin 20 | 0 |  |  |  |  |" in text
    assert "- margin, margin 20, seed 1: loss is inf" in text


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        (
            [{1: 70.0, 2: 70.5, 3: 71.0}, {1: 75.0, 2: 75.6, 3: 76.2}],
            "**b**, +5.10 ± 0.25 points over a (corrected p = 0.00013): sig",
        ),
        (
            [{1: 70.0, 2: 75.0, 3: 72.0}, {1: 75.0, 2: 71.0, 3: 74.5}],
            "**b**, +1.17 ± 11.54 points over a (corrected p = 0.71): not sig",
        ),
        ([{1: 70.0}, {1: 71.0}], "**b**, not tested against a: too few seeds, or no scatter."),
        ([{1: 71.0}, {1: 70.0}], "**a**, the reference; no other differs significantly."),
    ],
)
def test_what_an_ablation_comes_to(accuracies: list[dict[int, float]], expected: str) -> None:
    variants = [
        VariantMeasurement(label, {}, False, measured(values)) for label, values in zip("ab", accuracies, strict=True)
    ]
    assert tables.outcome(ablation.lines(variants)).startswith(f"Best: {expected}")


def test_csv_has_plain_numbers() -> None:
    lines = list(csv.DictReader(io.StringIO(tables.table_csv(results()))))
    assert float(lines[-1]["over_kd"]) == pytest.approx(-1.0, abs=1e-3)
    assert lines[0]["over_scratch"] == ""


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
