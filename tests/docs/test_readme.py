"""README.md and the pages: what is computed is what the committed results give, and links and targets exist."""

import re
from pathlib import Path

import pytest
from blocks import BLOCK, PAGES, text_of
from conftest import ROOT, committed
from guides import leads_somewhere

BLOCKS = [(page, *block) for page in PAGES for block in BLOCK.findall(page.read_text())]
LINKING = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"))]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(("page", "name", "shown"), BLOCKS, ids=[f"{named(page)}: {name}" for page, name, _ in BLOCKS])
def test_computed_parts_are_what_the_results_give(page: Path, name: str, shown: str) -> None:
    """To mend one: python -m tests.blocks."""
    assert shown.strip() == text_of(name, committed).strip()


def test_the_pages_have_what_they_are_read_for() -> None:
    assert {"answer", "by seed", "against the authors", "bfloat16", "longer"} <= {name for _, name, _ in BLOCKS}


@pytest.mark.parametrize("page", LINKING, ids=named)
def test_links_lead_somewhere_and_make_targets_exist(page: Path) -> None:
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    links = re.findall(r"\]\(((?!http)[^)]+)\)", text)
    assert not [link for link in links if not leads_somewhere(page, link)]
    targets = set(re.findall(r"(?:`|\$ |^)make ([a-z]+)\b", text, re.MULTILINE))
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_readme_names_every_package_of_the_library() -> None:
    text = (ROOT / "README.md").read_text()
    packages = [path.parent.name for path in (ROOT / "tripletkd").glob("*/__init__.py")]
    assert [name for name in packages if f"`{name}`" not in text] == []
