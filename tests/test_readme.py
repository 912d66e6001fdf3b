"""README.md says what is so: its table is the committed one, its targets and links exist."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_table_is_the_committed_one() -> None:
    """To mend it: copy the table's lines from results/digits/table.md between the two marks."""
    shown = README.split("<!-- table: results/digits/table.md -->\n")[1].split("<!-- end -->")[0]
    lines = (ROOT / "results/digits/table.md").read_text().splitlines()
    assert shown.splitlines() == [line for line in lines if line.startswith("|")]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z]+)`", README))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
