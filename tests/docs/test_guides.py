"""The guides in docs/, each followed to the letter in a clean copy of the project.

A block ```console holds commands after `$ `, continued after `> `; the lines below one must be in what it prints, `...`
standing for anything, and a number for any number: training gives others elsewhere. What `python -c` computes must be
the same to the digit. A block ```LANGUAGE in FILE is written to that file; a block
```yaml under KEY: in params.yaml goes there.
"""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from shrunk import ENVIRONMENT, GIT

NOT_FOLLOWED = {"methods", "reliability", "mended"}  # of formulas, and of faults
WITH_RESULTS = {"sharing"}  # followed where dvc.lock is; the others make their own
GUIDES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem not in NOT_FOLLOWED)
BLOCK = re.compile(r"^```(\w+)(?: (in|under) ([^\n]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def bash(folder: Path, command: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    return done.stdout


def commands(block: str) -> list[tuple[str, list[str]]]:
    """(command, the lines that are shown below it)."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("> ") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
        elif line:
            found[-1][1].append(line)
    return found


def shown(line: str, exact: bool = False) -> re.Pattern[str]:
    """What a line of a guide stands for; exact: its numbers stand for themselves."""
    parts = re.split(r"(\.\.\.)" if exact else r"(\.\.\.|[+-]?\d+(?:\.\d+)?)", line)
    return re.compile(
        "".join(".*" if p == "..." else r"[+-]?\d+(?:\.\d+)?" if i % 2 else re.escape(p) for i, p in enumerate(parts))
    )


def follow(folder: Path, text: str) -> None:
    for language, relation, place, content in BLOCK.findall(text):
        if language == "console":
            for command, lines in commands(content):
                printed, exact = bash(folder, command), command.startswith("python -c")
                for line in lines:
                    assert shown(line, exact).search(printed), f"$ {command}\nis to print: {line}\nprinted:\n{printed}"
        elif relation == "in":
            (folder / place).write_text(content)
        elif relation == "under":
            key = place.removesuffix(" in params.yaml")
            params = folder / "params.yaml"
            assert params.read_text().count(f"\n{key}\n") == 1
            params.write_text(params.read_text().replace(f"\n{key}\n", f"\n{key}\n{content}", 1))


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
    bash(folder, f"git init -q && git add -A && {' '.join(GIT)} commit -qm start")
    follow(folder, guide.read_text())


def test_there_is_something_to_follow_in_each_guide() -> None:
    assert len(GUIDES) >= 6
    for guide in GUIDES:
        blocks = BLOCK.findall(guide.read_text())
        assert any(language == "console" for language, *_ in blocks), guide
        assert guide.read_text().count("```") == 2 * len(blocks), guide


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_links_lead_somewhere(guide: Path) -> None:
    links = re.findall(r"\]\(((?!http)[^)]+)\)", guide.read_text())
    assert not [link for link in links if not (guide.parent / link).exists()]


def test_what_a_shown_line_matches() -> None:
    assert shown("| triplet | 2 | ... |").search("| triplet | 5 | 90.12 ± 1.00 |")
    assert not shown("| triplet | 2 | ... |").search("| pair | 2 | 1 |")
    assert shown("at ... 0.69", exact=True).search("at level 0.69")
    assert not shown("at ... 0.79", exact=True).search("at level 0.69")
    assert commands("$ a\n> b\nout\n$ c\n") == [("a\nb", ["out"]), ("c", [])]
