"""The report: what it says, and what a browser shows of it."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from measurements import HISTORY, MEASURED, POINT, drawn, measured, results

from tripletkd.config.schema import Claim, Published
from tripletkd.reporting import page


@pytest.fixture(scope="module")
def html() -> str:
    about = {name: replace(MEASURED[name], about=f"Trained as {name} is") for name in ("scratch", "kd")}
    return page.html(results(measured=MEASURED | about), drawn())


def test_the_report_is_in_the_order_of_a_paper(html: str) -> None:
    said = [
        "<h1>Do the claims hold on cifar10?</h1>",
        "A sentence &amp; more",
        "<b>triplet</b> is more accurate than scratch, kd and triplet.",
        "Of 3 claims, each compared over 4 seeds: 0 reproduced, 1 contradicted, 2 undecided",
        "<b>triplet</b> is worse than kd (-1.00 points); is not distinguishable from triplet; is not judged",
        "<figure>",
        "<table>",
        "The teacher is one paper_student.",
        "<dt><b>scratch</b></dt><dd>Trained as scratch is</dd>\n<dt><b>kd</b>",
        "One teacher, one set of 1,000 test images",
        "numbers for classes (0 a cat &amp; $dog$ of $x, 1 猫): the teacher",
        "environment.json beside this file",
        "<dt>recipe</dt><dd>epochs 28, optimizer.name sgd, optimizer.lr 0.01</dd>",
        "d" * 64,
    ]
    places = [html.find(text) for text in said]
    assert -1 not in places and places == sorted(places)
    assert not re.search(r'<script|(src|href)="(?!data:|#)', html)


def test_ones_own_method_is_claimed_defined_and_drawn() -> None:
    cosine = measured({1: 80.5, 2: 80.4, 3: 80.3}, "cosine", about="Cosine similarity")
    cells = {name: MEASURED[name] for name in ("teacher", "scratch")} | {"cosine": cosine}
    changes = {"histories": dict.fromkeys(("scratch", "cosine"), HISTORY), "ablations": {}, "published_curves": {}}
    made = results(measured=cells, claims=[Claim("cosine", ["scratch"])], maps={"cosine": [POINT]}, **changes)
    pictures = page.pictures(made)
    text = page.html(made, pictures)
    assert "<b>cosine</b> is more accurate than scratch." in text and "The paper:" not in text
    assert "<dt><b>cosine</b></dt><dd>Cosine similarity</dd>" in text and "after training by cosine." in text
    assert re.findall(r"(\w+) from [+-]", pictures["classes"].partition("<title>")[2]) == ["cosine"]


@pytest.mark.fault
def test_what_others_named_brings_no_control_character_into_the_report() -> None:
    teacher = replace(MEASURED["teacher"], class_names=("*a*\x00\x1b", "<script>"))
    published = {"<b>\x07": Published(70.0, "\x9bseen")}
    text = page.html(results(measured=MEASURED | {"teacher": teacher}, published=published), {"outputs": "<svg>"})
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", text)
    assert "(0 *a*��, 1 &lt;script&gt;)" in text and "&lt;b&gt;�: published 70.00 (�seen)" in text
    assert "<script" not in text


def test_a_report_without_claims_ablations_or_baselines() -> None:
    kd = {name: MEASURED[name] for name in ("teacher", "kd")}
    changes = {"published": {}, "published_curves": {}, "ablations": {}, "maps": {}, "histories": {"kd": HISTORY}}
    made = results(measured=kd, claims=[], **changes)
    assert set(page.pictures(made)) == {"curves", "triplets", "calibration"}
    text = page.html(made, {})
    assert "Nothing to judge" in text and "Ablations" not in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>document.querySelectorAll("details").forEach(each => each.open = true);
    const page = document.documentElement;
    document.title = `overflow ${page.scrollWidth - page.clientWidth}`</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_errors_requests_or_overflow(html: str, width: int, tmp_path: Path) -> None:
    """The report forbids itself every request: one that it made would be an error on the console."""
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html)
    assert policy and "default-src 'none'" in policy[0]

    def open_it(text: str) -> tuple[str, str]:
        place = tmp_path / "report.html"
        place.write_text(text)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
        words = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path}", "--dump-dom", place.as_uri()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    assert open_it(html)[1] == ""
    assert open_it(html.replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>'))[1] != ""
    shown, _ = open_it(html.replace(policy[0], "").replace("</body>", f"{PROBE}</body>"))
    assert "<title>overflow 0</title>" in shown
