"""The page: what it says, and what a browser shows of it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from measurements import HISTORY, MEASURED, Claim, Published, changed, measured, results

from tripletkd.analysis import comparison
from tripletkd.reporting import page


@pytest.fixture(scope="module")
def html() -> str:
    made = results()
    return page.html(made, page.pictures(made))


def test_the_map_says_which_number_is_which_class(html: str) -> None:
    assert "numbers for classes (0 a cat &amp; $dog$ of $x, 1 猫): the teacher" in html


def test_the_page_says_what_was_claimed_and_found(html: str) -> None:
    assert "3 claims, each compared over 4 seeds: 0 reproduced, 1 contradicted, 2 undecided" in html
    assert "<b>triplet</b> is worse than kd; is not distinguishable from triplet; is not judged" in html
    assert "<b>No.</b> Over Hinton&#39;s distillation (the paper&#39;s claim): -1.0" in html
    assert "<dt><b>scratch</b></dt><dd>trained on the labels alone</dd>\n<dt><b>kd</b>" in html
    assert html.index("The claim.") < html.index("What we found.") < html.index("<table>")
    assert "A sentence &amp; more" in html
    assert "<script" not in html
    assert "d" * 64 in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_the_page_has_the_parameters_of_each_run() -> None:
    params = {"recipe": {"epochs": 28, "optimizer": {"name": "sgd", "lr": 0.01}}, "inputs": {"mean": [0.5]}}
    made = results(measured=MEASURED | {"kd": changed(MEASURED["kd"], params=params)})
    text = page.html(made, {})
    assert "<dt>recipe</dt><dd>epochs 28, optimizer (name sgd, lr 0.01)</dd>" in text and "mean [0.5]" in text


def test_claims_are_counted_over_the_seeds_that_both_have() -> None:
    """Of two methods that lost a seed each, the pairs are fewer than the seeds of either; without a pair they are 0."""
    cells = {
        "scratch": measured({1: 80.0, 2: 80.2, 3: 80.1}, failed={4: "loss is nan"}),
        "kd_triplet": measured({2: 82.0, 3: 82.2, 4: 82.1}, failed={1: "loss is nan"}),
        "triplet": measured({1: 80.5, 2: 80.4, 3: 80.3, 4: 80.1}),
        "pair": measured({9: 80.0}),
        "cosine": measured({1: 80.1, 2: 80.0, 3: 80.3}),
    }
    both = [Claim("kd_triplet", ["scratch"]), Claim("triplet", ["kd_triplet"])]
    none = "0 reproduced, 0 contradicted, 1 undecided."
    for claims, expected in (
        (both[:1], f"Of 1 claim, each compared over 2 seeds: {none}"),
        (both, "Of 2 claims, each compared over 2 to 3 seeds: "),
        ([both[0], Claim("pair", ["kd_triplet"])], "Of 2 claims, each compared over 0 to 2 seeds: "),
        ([Claim("cosine", ["scratch"])], f"Of 1 claim for cosine, not the paper's, each compared over 3 seeds: {none}"),
        (
            [both[0], Claim("cosine", ["scratch", "kd_triplet"])],
            f"Of 1 claim, each compared over 2 seeds: {none} "
            "Of 2 claims for cosine, not the paper's, each compared over 2 to 3 seeds: ",
        ),
    ):
        made = results(measured=cells, rows=comparison.rows(cells, {}), verdicts=comparison.verdicts(cells, claims))
        assert page.finding(made).startswith(expected)


def test_ones_own_method_is_defined_and_drawn_where_it_has_a_claim() -> None:
    cosine = measured({1: 80.5, 2: 80.4, 3: 80.3}, name="cosine", method="cosine", about="Cosine similarity")
    cells = MEASURED | {"cosine": cosine}
    for claims, panels in (([], ["triplet"]), ([Claim("cosine", ["scratch"])], ["triplet", "cosine"])):
        made = results(measured=cells, rows=comparison.rows(cells, {}), verdicts=comparison.verdicts(cells, claims))
        drawn = page.pictures(made)
        assert "<dt><b>cosine</b></dt><dd>Cosine similarity</dd>" in page.html(made, drawn)
        title = drawn["classes"].partition("<title>")[2].partition("</title>")[0]
        assert re.findall(r"(\w+) from [+-]", title) == panels


@pytest.mark.fault
def test_what_others_named_brings_no_control_character_into_the_page() -> None:
    teacher = changed(MEASURED["teacher"], class_names=("*a*\x00\x1b", "<script>"))
    published = {"<b>\x07": Published(70.0, "\x9bseen")}
    made = results(measured=MEASURED | {"teacher": teacher}, published=published)
    text = page.html(made, page.pictures(made))
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
    assert "(0 *a*��, 1 &lt;script&gt;)" in text and "&lt;b&gt;�: published 70.00 (�seen)" in text
    assert "<script" not in text


def test_a_page_without_claims_ablations_or_baselines() -> None:
    kd = {name: MEASURED[name] for name in ("teacher", "kd")}
    rows = comparison.rows(kd, {})
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
