"""How a guide is followed to the letter.

A block ```console holds commands after `$ `, continued after `> `; the lines below one must be in what it prints, `...`
standing for anything. Whole numbers must be the same, others nearly: training gives others elsewhere. What `python -c`
computes must be the same to the digit. A command that is to fail has a line below it that begins with `error: `. A
block ```console on MACHINE is for such a machine only. A block ```LANGUAGE in FILE is written to that file; a block
```yaml under KEY: in params.yaml goes there.
"""

import re
from functools import partial
from pathlib import Path

import shrunk

NUMBER = r"[+-]?\d+(?:\.\d+)?"
BLOCK = re.compile(r"^```(\w+)(?: (in|on|under) ([^\n]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def bash(folder: Path, command: str, **variables: str) -> str:
    return shrunk.command(folder, "bash", "-c", command, check=True, **shrunk.LOGGED | variables)


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


def is_shown(line: str, printed: str, exact: bool = False) -> bool:
    """Whether a line of a guide is in what a command printed."""
    parts = re.split(rf"(\.\.\.|{NUMBER})", line)
    pattern = "".join(".*" if p == "..." else f"({NUMBER})" if i % 2 else re.escape(p) for i, p in enumerate(parts))
    pattern = re.sub(r"(?:\\ )+", " +", pattern)  # the width of a column depends on its numbers
    numbers = [part for part in parts[1::2] if part != "..."]
    return any(all(map(partial(_is_near, exact), numbers, found.groups())) for found in re.finditer(pattern, printed))


def _is_near(exact: bool, number: str, other: str) -> bool:
    if exact or "." not in number:
        return number == other
    return abs(float(number) - float(other)) <= 0.1 * abs(float(number)) + 0.5


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a page's link is to a file, and to a heading of it where one is named."""
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
    return anchor in ["", *(re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings)]


def follow(folder: Path, text: str, machine: str = "", **variables: str) -> None:
    """What a guide says; of commands, those for one kind of machine."""
    for language, relation, place, content in BLOCK.findall(text):
        if language == "console" and machine != place:
            continue
        if language == "console":
            for command, lines in commands(content):
                fails = any(line.startswith("error: ") for line in lines)
                printed = bash(folder, f"! {{ {command}\n}}" if fails else command, **variables)
                exact = command.startswith("python -c")
                for line in lines:
                    assert is_shown(line, printed, exact), f"$ {command}\nis to print: {line}\nprinted:\n{printed}"
        elif relation == "in":
            (folder / place).write_text(content)
        elif relation == "under":
            key, params = place.removesuffix(" in params.yaml"), folder / "params.yaml"
            head = re.compile(rf"^{key}(?: #.*)?\n", re.MULTILINE)
            found, count = head.subn(lambda line: line[0] + content, params.read_text())  # noqa: B023
            assert count == 1
            params.write_text(found)
