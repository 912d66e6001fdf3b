"""README.md says what is so: its tables and first numbers are the committed ones, its targets and links exist."""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from conftest import ROOT, committed
from guides import leads_somewhere

from tripletkd.analysis import ablation
from tripletkd.analysis.statistics import Difference, difference
from tripletkd.evaluation.measurement import read_ablation
from tripletkd.reporting import tables

README = (ROOT / "README.md").read_text()
TEXTS = README + "".join((ROOT / f"docs/{name}.md").read_text() for name in ("ablation", "paper", "results"))
TABLES = re.findall(r"<!-- table: (\S+) (.+?) -->\n(.*?)<!-- end -->", TEXTS, re.DOTALL)
RIVALS = ("scratch", "kd", "triplet")
FIRST = {  # the rows of the first table -> where its numbers come from
    "| CIFAR-10,": "results/cifar10/table.json",
    "| `digits`:": "results/digits/table.json",
    "| `digits_resnet`:": "results/digits_resnet/table.json",
}


@pytest.mark.parametrize(("source", "title", "shown"), TABLES, ids=[f"{source} {title}" for source, title, _ in TABLES])
def test_tables_are_the_committed_ones(source: str, title: str, shown: str) -> None:
    """To mend one: copy the table under that title from its source between the two marks."""
    section = committed(source).split(f"# {title}\n", 1)[1]
    table = next(block for block in section.split("\n\n") if block.strip().startswith("|"))
    assert shown.strip() == table.strip()


def test_the_revised_losses_tables_are_those_of_their_measurements() -> None:
    text = (ROOT / "docs/revised/table.md").read_text()
    for file, split, name in (
        ("validation", "validation", "revised"),
        ("test", "test", "final"),
        ("standardize", "test", "standardize"),
    ):
        measured = read_ablation(ROOT / f"docs/revised/{file}.json", "digits_resnet", name)
        assert "\n".join(tables.ablation(split, ablation.lines(measured)).markdown()) in text


def test_there_are_tables() -> None:
    assert len(TABLES) >= 4


@pytest.mark.parametrize(("begin", "source"), FIRST.items(), ids=FIRST.values())
def test_the_first_numbers_are_the_tables(begin: str, source: str) -> None:
    """n, and over scratch and over kd: in bold where the verdict is not undecided."""
    [line] = [line for line in README.splitlines() if line.startswith(begin)]
    found = json.loads(committed(source))["verdicts"]
    expected = []
    for base in ("scratch", "kd"):
        [answer] = [answer for answer in found if answer["claim"] == f"triplet over {base}"]
        gap = answer["difference"]
        text = f"{gap['mean']:+.1f} ± {gap['half_width']:.1f}".replace("-", "−")
        expected.append(text if answer["verdict"] == "undecided" else f"**{text}**")
    n, *shown = [cell.strip() for cell in line.split("|")[2:-1]]
    assert int(n) == gap["n"]
    assert [cell.split(",")[0] for cell in shown] == expected


def test_the_papers_experiment_is_its_table() -> None:
    rows = {row["method"]: row["test"] for row in json.loads(committed("results/cifar10/table.json"))["rows"]}
    text = " ".join(README.split())
    said = {"triplet": "with the triplet loss", "kd": "by Hinton's distillation", "scratch": "alone"}
    assert all(f"{rows[method]['mean']:.2f} % {words}" in text for method, words in said.items())
    low, high = rows["triplet"]["one_run"]
    assert f"of one run of ours, {low:.2f} to {high:.2f}." in text and low <= 80.91 <= high


def test_the_papers_experiment_by_seed_is_what_was_measured() -> None:
    read = {name: json.loads(committed(f"results/cifar10/measured/test/{name}.json")) for name in RIVALS}
    found = {name: {seed["seed"]: 100 * seed["test_accuracy"] for seed in read[name]["seeds"]} for name in RIVALS}
    machines = {seed: block["device"] for block in read["kd"]["environments"] for seed in block["seeds"]}
    lines = ["| seed | on | scratch | kd | triplet | over scratch | over kd |", f"| ---: | --- |{' ---: |' * 5}"]
    for seed, machine in machines.items():
        scratch, kd, triplet = (found[name][seed] for name in RIVALS)
        gaps = f"{triplet - scratch:+.2f} | {triplet - kd:+.2f}"
        lines.append(f"| {seed} | {machine} | {scratch:.2f} | {kd:.2f} | {triplet:.2f} | {gaps} |")
    text = "\n".join(lines)
    assert f"<!-- by seed -->\n{text}\n<!-- end -->" in TEXTS


def test_the_triplet_student_stands_beside_the_authors(tmp_path: Path) -> None:
    (tmp_path / "triplet.csv").write_text(committed("results/cifar10/measured/test/triplet.csv"))
    words = [sys.executable, "docs/cifar10_full/against_authors.py", str(tmp_path / "triplet.csv")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert f"<!-- against the authors -->\n{printed}<!-- end -->" in TEXTS


def shown(gap: Difference | None) -> str:
    assert gap is not None
    return f"{gap.mean:+.2f} ± {gap.half_width:.2f}"


@pytest.mark.parametrize("split", ["test", "train"])
def test_the_control_of_bfloat16_is_what_was_measured(split: str) -> None:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in csv.DictReader(committed("docs/cifar10_full/bfloat16.csv").splitlines()):
        accuracy = 100 * float(row[f"{split}_accuracy"])
        found.setdefault((row["method"], row["precision"]), {})[int(row["seed"])] = accuracy
    lines = [f"| {split} accuracy, % | n | float32 | bfloat16 | bfloat16 − float32 |", f"| --- |{' ---: |' * 4}"]
    for name in RIVALS:
        exact, rounded = found[name, "float32"], found[name, "bfloat16"]
        cells = f"{mean(exact.values()):.2f} | {mean(rounded.values()):.2f}"
        lines.append(f"| {name} | {len(exact)} | {cells} | {shown(difference(rounded, exact))} |")
    for base in ("scratch", "kd"):
        gaps = []
        for kind in ("float32", "bfloat16"):
            ours, theirs = found["triplet", kind], found[base, kind]
            gaps.append({seed: ours[seed] - theirs[seed] for seed in theirs})
        cells = " | ".join(shown(difference(gap, dict.fromkeys(gap, 0.0))) for gap in gaps)
        lines.append(f"| triplet over {base} | {len(gaps[0])} | {cells} | {shown(difference(gaps[1], gaps[0]))} |")
    assert "\n".join(lines) in TEXTS


def test_the_first_sentences_count_the_tables_verdicts() -> None:
    verdicts = [json.loads(committed(source))["verdicts"] for source in FIRST.values()]
    found = Counter((answer["claim"], answer["verdict"]) for table in verdicts for answer in table)
    in_words, text = ["none", "one", "two", "three"], " ".join(README.split())
    better = in_words[found["triplet over kd", "reproduced"]]
    assert f"in {better} of {in_words[len(verdicts)]} experiments, the paper's own among them" in text
    assert f"in {in_words[found['triplet over kd', 'contradicted']]} it is worse" in text
    assert f"beats a student trained alone in {in_words[found['triplet over scratch', 'reproduced']]} of them" in text
    assert f"undecided among {len(verdicts[-1])} claims" in text


@pytest.mark.parametrize(
    ("says", "source", "measured"),
    [
        (
            "at 2.7 times the pace of a plain loop",
            "benchmarks/README.md",
            "2.7 times as fast as a plain per-image loop",
        ),
        ("ten seeds of the digits at 12.", "benchmarks/README.md", "8 x 8 pixels, ten seeds | 12.4 times"),
        ("to ten digits, gradients and", "docs/verdicts.md", "that code's values to ten digits, and its gradients"),
        ("60 steps of training to eight.", "docs/verdicts.md", "to eight; so do 60 steps of training"),
    ],
)
def test_other_numbers_are_those_of_their_pages(says: str, source: str, measured: str) -> None:
    assert says in " ".join(README.split())
    assert measured in " ".join((ROOT / source).read_text().split())


def test_the_cpu_build_has_the_locked_versions() -> None:
    lock = (ROOT / "uv.lock").read_text()
    named = re.findall(r"\b(torch\w*)==([\d.]+\d)", README)
    assert [name for name, _ in named] == ["torch", "torchvision"]
    assert all(f'name = "{name}"\nversion = "{version}"\n' in lock for name, version in named)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z]+)`", README))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert leads_somewhere(ROOT / "README.md", link)


def test_inside_names_every_part_of_the_library() -> None:
    inside = README.partition("## Inside")[2].split("```")[3]  # the second block
    named = re.findall(r"^(\w+)/|\b(\w+\.py)\b", inside, re.MULTILINE)
    parts = [path for path in (ROOT / "tripletkd").iterdir() if path.name not in ("__init__.py", "__pycache__")]
    code = {path.name for path in parts if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(folder or file for folder, file in named) == sorted(code)
