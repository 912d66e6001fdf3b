"""The table and the verdicts from made-up measurements whose answers are known."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tripletkd import report
from tripletkd.config import Claim, Published


def measured(accuracies: dict[int, float], **changes: Any) -> dict[str, Any]:
    """What evaluate writes, as far as the table reads it; accuracies in percent by seed."""
    seeds = [
        {"seed": s, "test_accuracy": a / 100, "train_accuracy": 0.99, "best_test_accuracy": a / 100 + 0.01}
        for s, a in accuracies.items()
    ]
    return {"seeds": seeds, "parameters": 1000, "failed": {}} | changes


CELLS = {
    "teacher": measured({1: 90.0}),
    "scratch": measured({1: 80.0, 2: 80.2, 3: 80.1, 4: 79.9, 5: 80.0}),
    "kd": measured({1: 82.1, 2: 82.2, 3: 82.0, 4: 82.1, 5: 82.1}),
    "triplet": measured({1: 81.0, 2: 81.3, 3: 81.0, 5: 81.1}, failed={"4": "triplet is nan at epoch 3, step 7"}),
}
CLAIMS = [Claim("triplet", "scratch"), Claim("triplet", "kd"), Claim("pair", "scratch"), Claim("triplet", "triplet")]
PUBLISHED = {
    "triplet": Published(81.0, "one run"),
    "kd": Published(70.0, "elsewhere"),
    "crd": Published(75.5, "README"),
}


def test_rows_in_order_with_differences_paired_by_seed() -> None:
    table = report.rows(CELLS, PUBLISHED)
    assert [row.method for row in table] == ["teacher", "scratch", "kd", "triplet"]
    assert [row.n for row in table] == [1, 5, 5, 4]
    triplet = table[-1]
    assert triplet.over["scratch"].n == 4
    assert triplet.over["scratch"].mean == pytest.approx((1.0 + 1.1 + 0.9 + 1.1) / 4)
    assert "kd" not in table[2].over
    assert table[1].over.keys() == {"kd"}
    assert triplet.best_on_test == pytest.approx(triplet.test.mean + 1)


def test_published_figures_are_held_against_one_further_run() -> None:
    table = {row.method: row for row in report.rows(CELLS, PUBLISHED)}
    assert table["triplet"].published == {"accuracy": 81.0, "source": "one run", "inside_one_run_interval": True}
    assert table["kd"].published is not None
    assert table["kd"].published["inside_one_run_interval"] is False
    single = report.rows({"kd": measured({1: 82.0})}, PUBLISHED)[0].published
    assert single is not None
    assert single["inside_one_run_interval"] is None


def test_verdicts_only_for_what_was_run() -> None:
    answers = {answer["claim"]: answer for answer in report.verdicts(CELLS, CLAIMS)}
    assert {claim: answer["verdict"] for claim, answer in answers.items()} == {
        "triplet over scratch": "reproduced",
        "triplet over kd": "contradicted",
        "triplet over triplet": "undecided",
    }
    assert answers["triplet over scratch"]["corrected_p"] > answers["triplet over scratch"]["difference"]["p"]
    one_seed = {name: measured({1: 80.0 + i}) for i, name in enumerate(CELLS)}
    assert {answer["verdict"] for answer in report.verdicts(one_seed, CLAIMS)} == {"undecided"}
    other_seeds = {"triplet": measured({1: 80.0}), "scratch": measured({2: 79.0})}
    answer = report.verdicts(other_seeds, CLAIMS[:1])[0]
    assert answer["verdict"] == "undecided"
    assert "fewer than two seeds" in report.sentence(answer)


def test_the_page_says_it_all() -> None:
    text = report.markdown("cifar10", report.rows(CELLS, PUBLISHED), report.verdicts(CELLS, CLAIMS), PUBLISHED)
    assert "| triplet | 4 | 81.10 ± 0.14 | ± 0.23 | **+1.02 ± 0.15** | **-1.00 ± 0.13** | 81.00 |" in text
    assert "- triplet over kd: **contradicted**, -1.00" in text
    assert "- triplet, seed 4: triplet is nan at epoch 3, step 7" in text
    assert "OUTSIDE our 95 % prediction interval of one run" in text
    assert "75.50" in text
    assert all(line.count("|") == text.splitlines()[2].count("|") for line in text.splitlines() if line.startswith("|"))


def test_csv_has_plain_numbers() -> None:
    lines = list(csv.DictReader(io.StringIO(report.table_csv(report.rows(CELLS, PUBLISHED)))))
    assert float(lines[-1]["over_kd"]) == pytest.approx(-1.0, abs=1e-3)
    assert lines[0]["over_scratch"] == ""


def test_curves_and_their_picture(tmp_path: Path) -> None:
    history = [
        {"seed": seed, "epoch": epoch, "test_accuracy": 0.5 + 0.1 * seed, "train_accuracy": 0.9}
        for seed in (1, 2)
        for epoch in (1, 2)
    ]
    lines = report.curves({"kd": history, "triplet": [*history, {"seed": 1, "epoch": 3}]})
    assert len(lines) == 4
    assert {key: lines[0][key] for key in ("test_accuracy", "lowest", "highest")} == pytest.approx(
        {"test_accuracy": 65.0, "lowest": 60.0, "highest": 70.0}
    )
    report.plot_curves(tmp_path / "a.png", "x", lines)
    report.plot_curves(tmp_path / "b.png", "x", lines)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
