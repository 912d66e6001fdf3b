"""The guides in docs/, each followed to the letter in a clean copy of the project."""

from pathlib import Path

import pytest
from conftest import ROOT
from guides import BLOCK, bash, follow
from shrunk import pretend_environment

NOT_FOLLOWED = {"methods", "reliability", "results"}  # they say what is
# Followed where dvc.lock is; the others make their own
WITH_RESULTS = {"as-data", "own-method", "sharing", "trace", "working"}
GUIDES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem not in NOT_FOLLOWED)


@pytest.mark.smoke
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_works_as_it_says(guide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    files = bash(ROOT, "git ls-files -co --exclude-standard").splitlines()
    left = () if guide.stem in WITH_RESULTS else ("results/", "dvc.lock")
    kept = [name for name in files if (ROOT / name).is_file() and not name.startswith(left)]
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    bash(folder, "git init -q && git config user.name test && git config user.email test@localhost")
    bash(folder, "git add -A && git commit -qm start")
    pretend_environment(folder)
    if guide.stem == "working":
        bash(folder, "make pull && dvc repro")
    follow(folder, guide.read_text())


def test_there_is_something_to_follow_in_each_guide() -> None:
    assert len(GUIDES) >= 6
    for guide in GUIDES:
        blocks = BLOCK.findall(guide.read_text())
        assert any(language == "console" for language, *_ in blocks), guide
        assert guide.read_text().count("```") == 2 * len(blocks), guide
