"""Parameters, stores and sources that anyone may have made: what is wrong is named, and nothing else happens.

Each attempt is counted (conftest.trial), see test_reliability.py.
"""

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shrunk import ENVIRONMENT

from tripletkd import Problem, config

pytestmark = pytest.mark.slow

DERANDOMIZED = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
Path_ = tuple[Any, ...]


# --- parameters -------------------------------------------------------------------------------------------------------


def places(block: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Of every value in params.yaml; of the suites the first two, the others being alike."""
    if path:
        yield path
    for key, value in block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ():
        if path != ("suites",) or key in ("digits", "cifar10"):
            yield from places(value, (*path, key))


PLACES = list(places(PARAMS))
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3.5, -0.0, 1e-320, 1e308, 10**18, 2**63, 10**30, -(10**30), math.nan, math.inf,
    -math.inf, "", " ", "0", "1e3", "nan", "auto", "digits", "triplet", "é", "学生", "\u202e", "\x85",
    "a" * 5000, "a\nb",
    "../../etc", "/", ".", "$(touch x)", "${oc.env:HOME}", "${run}", "???", "=", "*", "&a", "!!python/object:os.system",
    [], [1], [[1]], [None], ["stage1"], [0.1, 0.2], list(range(300)), {}, {"a": 1}, {"": {}}, {"digits": None},
]  # fmt: skip
UNKNOWN = ["nope", "é", "", " ", "a b", "../x", "_target_", "defaults", "hydra"]
KINDS = ["change", "remove", "add", "twice", "text"]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, Path_ | None, Any]:
    """A params.yaml with one thing changed; where, and to what, if its values are still known."""
    kind, path, value = draw(st.sampled_from(KINDS)), draw(st.sampled_from(PLACES)), draw(st.sampled_from(VALUES))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    block = params
    for key in path[:-1]:
        block = block[key]
    if kind == "text":
        text = (ROOT / "params.yaml").read_text()
        at = draw(st.integers(0, len(text)))
        odd = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
        inserted = draw(st.sampled_from(["{", "[", ": ", "\n", "\t", "- ", "&a ", "*a", "'", '"', "|", "? "]) | odd)
        return text[:at] + inserted + text[at + draw(st.integers(0, 3)) :], None, None
    if kind == "twice" and isinstance(path[-1], str):
        line = yaml.safe_dump({path[-1]: value}, allow_unicode=True)
        return yaml.safe_dump(params, sort_keys=False) + yaml.safe_dump({path[0]: {}}) + line, None, None
    if kind == "remove":
        del block[path[-1]]
        return yaml.safe_dump(params, sort_keys=False), path, KeyError
    if kind == "add" and isinstance(block, dict):
        path = (
            *path[:-1],
            draw(st.sampled_from(UNKNOWN)),
        )
    block[path[-1]] = value
    return yaml.safe_dump(params, sort_keys=False, allow_unicode=True), path, value


def loaded(settings: Any, path: Path_) -> Any:
    for key in path:
        settings = settings[key] if isinstance(settings, list | dict) else getattr(settings, key)
    return settings


def assert_one_message(problem: str, path: Path_ | None) -> None:
    assert "\n" not in problem
    assert len(problem) < 6000
    names = ["params.yaml"] if path is None else ["params.yaml", *(str(key).strip() or ":" for key in path)]
    assert any(name in problem for name in names) or path is None, problem


@DERANDOMIZED
@given(mutated=files())
def test_changed_files(mutated: tuple[str, Path_ | None, Any], tmp_path: Path) -> None:
    text, path, value = mutated
    folder = tmp_path / str(time.time_ns())
    folder.mkdir()
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    with trial("a changed params.yaml: wrong, missing, unknown, twice, NaN, huge, unicode, broken YAML") as fault:
        started = time.monotonic()
        try:
            settings = config.load(folder)
        except Problem as problem:
            assert_one_message(str(problem), path)
            fault.seen = "the key, what was found and what is expected; or that the file is valid"
        else:
            if path is not None and value is not KeyError and not isinstance(value, dict | list):
                assert same(loaded(settings, path), value), (path, value)
        assert time.monotonic() - started < 10
        assert [file.name for file in folder.iterdir()] == ["params.yaml"]


def same(found: Any, given: Any) -> bool:
    """A value that was accepted is the one that counts: 1 for "1", yes for true."""
    if isinstance(found, bool) or found == given or str(found) == str(given):
        return True
    return isinstance(found, int | float) and float(found) == float(given)


KEYS = [".".join(path) for path in PLACES if all(isinstance(key, str) for key in path)]
ODD_KEYS = ["run.nope", "nope", "", ".", "run[0]", "é", "hydra.run.dir", "a/b", "x@y"]
TEXTS = [*map(str, VALUES), "1,2", "range(1,9)", "choice(a)", "[", "{a:", "'", '"']
ODD_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def overrides(draw: st.DrawFn) -> str:
    sign, equals = (
        draw(st.sampled_from(["", "", "", "+", "++", "~", "~~", "-"])),
        draw(st.sampled_from(["="] * 4 + [""])),
    )
    key = draw(st.sampled_from(KEYS) | st.sampled_from(KEYS) | st.sampled_from(ODD_KEYS))
    return f"{sign}{key}{equals}{draw(st.sampled_from(TEXTS) | ODD_TEXTS)}"


@DERANDOMIZED
@given(override=overrides())
def test_changed_command_lines(override: str, tmp_path: Path) -> None:
    with trial("a changed command line: the same, and what Hydra has a grammar for") as fault:
        started, message = time.monotonic(), ""
        try:
            config.load(ROOT, [override])
        except Problem as problem:
            message = str(problem)
        if message:
            assert_one_message(message, None)
            key = override.lstrip("+~-").partition("=")[0].split(".")[-1]
            assert " ".join(key.split()) in message or repr(key)[1:-1] in message, message
            fault.seen = "the key or the text itself, what was found and what is expected; or that it is valid"
        assert time.monotonic() - started < 10


LAUGHS = "a: &a0 [x, x]\n" + "".join(f"a{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
PROCESSES: dict[str, tuple[str, str, list[str]]] = {  # params.yaml's text replaced, by what, the command line
    "billion laughs": ("run:\n", LAUGHS + "run:\n", []),
    "an alias to itself": ("run:\n", "x: &x [*x]\nrun:\n", []),
    "deep": ("run:\n", "x: " + "[" * 5000 + "]" * 5000 + "\nrun:\n", []),
    "python object": ("device: auto", "device: !!python/object/apply:os.system ['touch owned']", []),
    "environment": ("device: auto", "device: ${oc.env:HOME}", []),
    "key twice": ("  holdout: 0", "  holdout: 0\n  holdout: 1", []),
    "not UTF-8": ("run:\n", "run:\n", []),
    "empty": ("", "", []),
    "a megabyte": ("run:\n", "#" * 2**20 + "\nrun:\n", []),
    "another suite's folder": ("  digits:\n", "  ../../x:\n", ["suite=../../x"]),
    "NaN": ("", "", ["suites.digits.student.recipe.lr=nan"]),
    "huge": ("", "", ["run.seeds=[99999999999999999999]"]),
    "unknown": ("", "", ["run.nope=1"]),
    "no such suite": ("", "", ["suite=nope"]),
    "no key": ("", "", ["nonsense"]),
    "no suite": ("", "", ["suite=null"]),
    "option": ("", "", ["--nope"]),
    "minutes": ("", "", ["--max-minutes", "nan"]),
    "negative minutes": ("", "", ["--max-minutes=-1"]),
    "no results yet": ("", "", []),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_stage_with_wrong_parameters_says_one_thing_and_writes_nothing(name: str, tmp_path: Path) -> None:
    old, new, words = PROCESSES[name]
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    content = text.replace(old, new, 1).encode() if old else text.encode()
    content = b"" if name == "empty" else content + b"\xff" if name == "not UTF-8" else content
    (tmp_path / "params.yaml").write_bytes(content)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    with trial("wrong parameters to a stage, as a process") as fault:
        ended = subprocess.run(
            [sys.executable, "-m", "stages.tabulate", "suite=digits", *words],
            cwd=tmp_path,
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
        lines = ended.stderr.splitlines()
        assert ended.returncode == (2 if (words and words[-1].startswith("-")) or "minutes" in name else 1)
        assert "error: " in lines[-1]
        assert len(lines) == 1 or ended.returncode == 2  # argparse adds the usage
        assert sorted(file.name for file in tmp_path.iterdir()) == ["dvc.yaml", "params.yaml"]
        fault.seen = f"for example `{next(line for line in reversed(lines) if line)[:110]}`"
