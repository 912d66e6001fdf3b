"""The table, the verdicts, the ablations and the page from made-up measurements whose answers are known."""

import csv
import dataclasses
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from stages import tabulate
from tripletkd.analysis import ablation, statistics
from tripletkd.analysis import comparison as report
from tripletkd.config.load import Claim, Published
from tripletkd.errors import UserError
from tripletkd.files import write_csv
from tripletkd.reporting import figures, page, tables

CLAIMS = [Claim("triplet", ["scratch", "kd"]), Claim("pair", ["scratch"]), Claim("triplet", ["triplet"])]
IMAGES = 1003  # no multiple of eight
PUBLISHED = {
    "triplet": Published(81.0, "one run"),
    "kd": Published(70.0, "elsewhere <script>"),
    "crd": Published(75.5, "README"),
}


def measured(accuracies: dict[int, float], **changes: Any) -> dict[str, Any]:
    """What evaluate writes, as far as it is read; accuracies in percent by seed."""
    bins = {"share": [0.5, 0.5], "confidence": [0.3, 0.45], "accuracy": [0.3, 0.45]}
    seeds = [
        {
            "seed": seed,
            "test_accuracy": accuracy / 100,
            "test_correct": np.packbits(np.arange(IMAGES) < round(accuracy / 100 * IMAGES)).tobytes().hex(),
            "train_accuracy": 0.99,
            "best_test_accuracy": accuracy / 100 + 0.01,
            "test_accuracy_by_class": [accuracy / 100, 1.0],
            "test_calibration": bins,
            "test_calibration_error": 0.05,
            "violated_triplets": 0.1,
        }
        for seed, accuracy in accuracies.items()
    ]
    block = {"seeds": seeds, "parameters": 1000, "multiply_adds": 2000, "weights_bytes": 4000, "failed": {}}
    block |= {"test_images": IMAGES}
    origin = {"network": "paper_student", "data_sha256": "d" * 64, "environment": {"torch": "2"}, "params": {"ce": 1}}
    return block | origin | {"weights_sha256": {str(seed): "a" * 64 for seed in accuracies}} | changes


CELLS = {
    "teacher": measured({1: 90.0}, parameters=9000, class_names=["a cat & $dog$ of $x", "猫"]),
    "scratch": measured({1: 80.0, 2: 80.2, 3: 80.1, 4: 79.9, 5: 80.0}),
    "kd": measured({1: 82.1, 2: 82.2, 3: 82.0, 4: 82.1, 5: 82.1}),
    "triplet": measured({1: 81.0, 2: 81.3, 3: 81.0, 5: 81.1}, failed={"4": "triplet is nan at epoch 3, step 7"}),
}
HISTORY = [
    {"seed": seed, "epoch": epoch, "test_accuracy": 0.5 + 0.1 * seed, "train_accuracy": 0.9, "violated_triplets": 0.1}
    | {"anchor_positive": 1.0, "anchor_negative": 2.0}
    for seed in (1, 2)
    for epoch in (1, 2)
]
MAPPED = [f"{who}_{axis}" for who in ("teacher", "before", "after") for axis in "xy"]
VARIANTS = [
    {"label": "margin 1", "changed": {"margin": 1}, "configured": False} | measured({1: 70.0, 2: 70.2, 3: 70.1}),
    {"label": "margin 5", "changed": {"margin": 5}, "configured": True} | measured({1: 75.0, 2: 75.1, 3: 75.2}),
    {"label": "margin 20", "changed": {"margin": 20}, "configured": False} | measured({}, failed={"1": "loss is inf"}),
]


def results(**changes: Any) -> report.Results:
    methods = [name for name in CELLS if name != "teacher"]
    point = {"label": 1, **dict.fromkeys(MAPPED, 0.5)}
    made = report.Results(
        suite="cifar10",
        about="A sentence & more",
        split="test",
        measured=CELLS,
        histories=dict.fromkeys(methods, HISTORY),
        maps={name: [point] for name in methods},
        rows=report.rows(CELLS, PUBLISHED),
        verdicts=report.verdicts(CELLS, CLAIMS),
        published=PUBLISHED,
        published_curves={"triplet": [{"epoch": 1, "test_accuracy": 50.0}, {"epoch": 2, "test_accuracy": 60.0}]},
        ablation_split="validation",
        ablations={"margin": ablation.lines(VARIANTS)},
    )
    return dataclasses.replace(made, **changes)


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
        "triplet over scratch": "undecided",  # without the seed that failed it would look better
        "triplet over kd": "contradicted",
        "triplet over triplet": "undecided",
    }
    assert answers["triplet over scratch"]["corrected_p"] > answers["triplet over scratch"]["difference"]["p"]
    one_seed = {name: measured({1: 80.0 + i}) for i, name in enumerate(CELLS)}
    assert {answer["verdict"] for answer in report.verdicts(one_seed, CLAIMS)} == {"undecided"}
    other_seeds = {"triplet": measured({1: 80.0}), "scratch": measured({2: 79.0})}
    undecided = results(verdicts=report.verdicts(other_seeds, CLAIMS[:1]))
    assert tables.verdicts(undecided).rows == [["triplet over scratch", "**undecided**", "", "", "", "", ""]]


def test_a_method_worse_than_no_teacher_is_no_baseline() -> None:
    """scratch is nearly two points below kd; a kd that had gone wrong would let anything look good."""
    cells = CELLS | {"kd": measured({seed: 70.0 + 0.1 * seed for seed in range(1, 6)})}
    cells["triplet"] = CELLS["triplet"] | {"failed": {}}
    answers = {answer["over"]: answer for answer in report.verdicts(cells, CLAIMS[:1])}
    assert answers["kd"]["difference"]["mean"] > 10
    assert answers["kd"]["corrected_p"] < 1e-4
    assert (answers["kd"]["verdict"], answers["kd"]["barred"]) == ("undecided", "failed baseline")
    assert (answers["scratch"]["verdict"], answers["scratch"]["barred"]) == ("reproduced", None)
    text = tables.markdown(results(verdicts=list(answers.values())))
    assert "| triplet over kd | **undecided** † |" in text
    assert "- **triplet** is better than scratch; is above kd (not judged: below scratch)." in text
    worse = cells | {"triplet": measured({seed: 60.0 + 0.1 * seed for seed in range(1, 6)} | {1: 60.5})}
    assert {answer["verdict"] for answer in report.verdicts(worse, CLAIMS[:1])} == {"contradicted"}


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
    cells[failed] |= {"failed": {"5": "loss is nan"}}
    [answer] = report.verdicts(cells, [Claim("triplet", ["scratch"])])
    assert (answer["verdict"], answer["barred"]) == (verdict, barred)
    said = tables.in_short(results(verdicts=[answer]))[0]
    assert ("is not judged against scratch (seeds of the better one failed)" in said) == (barred is not None)


def test_one_comparison_is_corrected_for_once() -> None:
    """scratch over kd is kd over scratch: three pairs, so the smallest p is tripled."""
    measured_too = CELLS | {"pair": CELLS["triplet"]}
    table = report.rows({name: measured_too[name] for name in ("scratch", "kd", "triplet")}, {})
    smallest = min(gap.p for row in table for gap in row.over.values() if gap.p is not None)
    assert min(p for row in table for p in row.corrected_p.values()) == pytest.approx(3 * smallest)
    assert sum(len(row.over) for row in table) == 4


def test_other_images_are_weighed_by_which_images_each_seed_got_right() -> None:
    """By hand: a seed's hits are its first images, as many as its accuracy says; seed 4 of triplet failed."""
    [answer] = report.verdicts(CELLS, [Claim("triplet", ["kd"])])
    rows = []
    for triplet, kd in ((81.0, 82.1), (81.3, 82.2), (81.0, 82.0), (81.1, 82.1)):
        first, second = round(triplet / 100 * IMAGES), round(kd / 100 * IMAGES)
        rows.append([100.0 * (i < first) - 100.0 * (i < second) for i in range(IMAGES)])
    assert answer["half_width_over_images_too"] == pytest.approx(statistics.over_images_too(np.array(rows)))
    assert answer["half_width_over_images_too"] > answer["difference"]["half_width"]


def test_what_would_be_found_counts_the_claims() -> None:
    answer = report.verdicts(CELLS, CLAIMS[:1])[0]  # over scratch, and over kd
    std = answer["difference"]["std"]
    assert answer["detectable"] == pytest.approx(statistics.detectable(4, std, tests=2))
    assert answer["detectable"] > statistics.detectable(4, std)


def test_cells_of_different_environments_are_said() -> None:
    assert tables.mixed(results()) == []
    assert "environments" not in tables.markdown(results())
    other = CELLS | {"kd": CELLS["kd"] | {"environment": {"torch": "3"}}}
    made = results(measured=other)
    assert "## Cells of different environments\n\n- torch: 2, 3" in tables.markdown(made)
    assert "torch: 2, 3" in page.html(made, {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"data_sha256": "e" * 64}, "measured with images of sha256 eee"), ({"teacher_sha256": "b" * 64}, "a teacher of")],
)
def test_a_table_of_strangers_is_refused(changed: dict[str, str], message: str) -> None:
    student = CELLS["kd"] | {"suite": "digits", "cell": "kd", "teacher_sha256": "a" * 64}
    tabulate.refuse_strangers(CELLS["teacher"], [student])
    with pytest.raises(UserError, match=message):
        tabulate.refuse_strangers(CELLS["teacher"], [student, student | changed])


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


def test_an_ablation_is_told_against_what_is_configured() -> None:
    lines = ablation.lines(VARIANTS)
    assert [line.reference for line in lines] == [False, True, False]
    assert lines[0].over_reference is not None
    assert lines[0].over_reference.mean == pytest.approx(-5.0)
    assert lines[1].over_reference is None
    assert lines[2].accuracy.n == 0
    assert tables.outcome(lines) == "Best: **margin 5**, the reference; significantly below it: margin 1."
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
        {"label": label, "changed": {}, "configured": False} | measured(values)
        for label, values in zip("ab", accuracies, strict=True)
    ]
    assert tables.outcome(ablation.lines(variants)).startswith(f"Best: {expected}")


def test_csv_has_plain_numbers() -> None:
    lines = list(csv.DictReader(io.StringIO(tables.table_csv(report.rows(CELLS, PUBLISHED)))))
    assert float(lines[-1]["over_kd"]) == pytest.approx(-1.0, abs=1e-3)
    assert lines[0]["over_scratch"] == ""


def test_curves_are_means_with_a_band() -> None:
    lines = report.curves({"kd": HISTORY, "triplet": [*HISTORY, {"seed": 1, "epoch": 3}]})
    assert len(lines) == 4
    assert {key: lines[0][key] for key in ("test_accuracy", "lowest", "highest")} == pytest.approx(
        {"test_accuracy": 65.0, "lowest": 60.0, "highest": 70.0}
    )


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_seed_that_failed_is_in_no_curve(tmp_path: Path) -> None:
    write_csv(tmp_path / "triplet.csv", [*HISTORY, {**HISTORY[0], "seed": 4}])
    assert tabulate.came_through(tmp_path / "triplet.csv", CELLS["triplet"]) == HISTORY


@pytest.fixture(scope="module")
def html() -> str:
    made = results()
    return page.html(made, page.pictures(made))


def test_pictures_are_svg_with_ids_of_their_own_and_the_same_every_time() -> None:
    drawn = page.pictures(results())
    assert drawn == page.pictures(results())
    assert {"curves", "forest", "triplets", "outputs", "classes", "calibration", "cost", "ablation-margin"} == set(
        drawn
    )
    ids: list[str] = []
    for name, svg in drawn.items():
        root = ElementTree.fromstring(figures.standalone(svg))  # noqa: S314
        assert root.get("role") == "img"
        assert len(root.get("aria-label") or "") > 40
        own = [element.get("id") or "" for element in root.iter() if element.get("id")]
        assert all(i.startswith(f"{name}-") for i in own)
        assert figures.INK not in svg
        assert "<style" not in svg
        ids += own
    assert len(ids) == len(set(ids))


def test_classes_are_called_by_their_names(html: str) -> None:
    drawn = page.pictures(results())["classes"]
    assert drawn.count("猫") > 2 and "a cat &amp; $dog$ of $x" in drawn
    assert "triplet from +0.0 (猫) to +1.1 (a cat &amp; $dog$ of $x)" in drawn
    assert "numbers for classes (0 a cat &amp; $dog$ of $x, 1 猫): the teacher" in html
    many = [f"class {i} of a longer name" for i in range(21)]
    rates = {"a": [0.5] * 20 + [0.9], "b": [0.5] * 21}
    cells = {name: {"seeds": [{"test_accuracy_by_class": values}]} for name, values in rates.items()}
    assert figures.by_class(cells, ["a"], "b", many).count("(class 20 of a longe…)") == 2  # label and title, no axis


def test_the_page_says_what_was_claimed_and_found(html: str) -> None:
    assert "3 claims, each compared over 4 to 5 seeds: 0 reproduced, 1 contradicted, 2 undecided" in html
    assert "<b>triplet</b> is worse than kd; is not distinguishable from triplet; is not judged" in html
    assert html.index("The claim.") < html.index("What we found.") < html.index("<table>")
    assert "A sentence &amp; more" in html
    assert "<script" not in html
    assert "d" * 64 in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_a_page_without_claims_ablations_or_baselines() -> None:
    kd = {"teacher": CELLS["teacher"], "kd": CELLS["kd"]}
    rows = report.rows({"teacher": CELLS["teacher"], "kd": CELLS["kd"]}, {})
    made = results(
        measured=kd,
        rows=rows,
        verdicts=[],
        published={},
        published_curves={},
        ablations={},
        maps={},
        histories={"kd": HISTORY},
    )
    drawn = page.pictures(made)
    assert set(drawn) == {"curves", "triplets", "calibration", "cost"}
    text = page.html(made, drawn)
    assert "Nothing to judge" in text
    assert "Ablations" not in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>document.title = "overflow " +
    (document.documentElement.scrollWidth - document.documentElement.clientWidth)</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_errors_requests_or_overflow(html: str, width: int, tmp_path: Path) -> None:
    """The page forbids itself every request: one that it made would be an error on the console."""
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html)
    assert policy
    assert "default-src 'none'" in policy[0]

    def open_it(text: str) -> tuple[str, str]:
        (tmp_path / "report.html").write_text(text)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
        words = [
            str(CHROMIUM),
            *flags,
            f"--user-data-dir={tmp_path}",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    assert open_it(html)[1] == ""
    assert open_it(html.replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>'))[1] != ""
    shown, _ = open_it(html.replace(policy[0], "").replace("</body>", f"{PROBE}</body>"))
    assert "<title>overflow 0</title>" in shown
