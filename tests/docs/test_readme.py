"""README.md says what is so: its tables and first numbers are the committed ones, its targets and links exist."""

import json
import re

import pytest
from conftest import ROOT, committed

from tripletkd.analysis import ablation
from tripletkd.evaluation.measurement import read_ablation
from tripletkd.reporting import tables

README = (ROOT / "README.md").read_text()
TEXTS = README + "".join((ROOT / f"docs/{name}.md").read_text() for name in ("ablation", "paper", "results"))
TABLES = re.findall(r"<!-- table: (\S+) (.+?) -->\n(.*?)<!-- end -->", TEXTS, re.DOTALL)
FIRST = {  # the rows of the first table -> where its numbers come from
    "| `digits`:": "results/digits/table.json",
    "| `digits_resnet`:": "results/digits_resnet/table.json",
    "| CIFAR-10,": "docs/cifar10_partial/short/table.json",
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
    """To a file, and to a heading of it where one is named."""
    name, _, anchor = link.partition("#")
    assert (ROOT / name).exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text(), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_inside_names_every_part_of_the_library() -> None:
    inside = README.partition("## Inside")[2].split("```")[1]
    named = re.findall(r"^(\w+)/|\b(\w+\.py)\b", inside, re.MULTILINE)
    parts = [path for path in (ROOT / "tripletkd").iterdir() if path.name not in ("__init__.py", "__pycache__")]
    code = {path.name for path in parts if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(folder or file for folder, file in named) == sorted(code)
