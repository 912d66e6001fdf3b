"""README.md says what is so: its table is the committed one, its targets and links exist."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


TABLES = re.findall(r"<!-- table: (\S+) (.+?) -->\n(.*?)<!-- end -->", README, re.DOTALL)


@pytest.mark.parametrize(("source", "title", "shown"), TABLES, ids=[f"{source} {title}" for source, title, _ in TABLES])
def test_tables_are_the_committed_ones(source: str, title: str, shown: str) -> None:
    """To mend one: copy the table under that title from its source between the two marks."""
    section = (ROOT / source).read_text().split(f"# {title}\n", 1)[1]
    table = next(block for block in section.split("\n\n") if block.strip().startswith("|"))
    assert shown.strip() == table.strip()


def test_there_are_tables() -> None:
    assert len(TABLES) >= 2


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z]+)`", README))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
