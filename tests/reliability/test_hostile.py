"""Parameters and command lines that anyone may have made: what is wrong is named, and nothing else happens.

Each attempt is counted (conftest.trial), see test_reliability.py.
"""

import copy
import math
import shutil
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
from shrunk import LOGGED, command, shrink

from tripletkd.config.load import load
from tripletkd.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.fault]

TEXT = (ROOT / "params.yaml").read_text()
PARAMS = yaml.safe_load(TEXT)
Keys = tuple[Any, ...]


def places(block: Any, path: Keys = ()) -> Iterator[Keys]:
    """Of every value in params.yaml; of the suites the first and the third, the others being alike."""
    if path:
        yield path
    for key, value in block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ():
        if path != ("suites",) or key in ("digits", "cifar10"):
            yield from places(value, (*path, key))


PLACES = list(places(PARAMS))
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3.5, -0.0, 1e-320, 1e308, 10**18, 2**63, 10**30, -(10**30), math.nan, math.inf,
    "", " ", "0", "1e3", "nan", "auto", "digits", "triplet", "学生", "\u202e", "\x85", "a" * 5000, "a\nb",
    "../../etc", "/", "$(touch x)", "${oc.env:HOME}", "${run}", "???", "=", "*", "&a", "!!python/object:os.system",
    [], [1], [[1]], [None], ["stage1"], [0.1, 0.2], list(range(300)), {}, {"a": 1}, {"": {}}, {"digits": None},
    "1,2", "range(1,9)", "choice(a)", "[", "{a:", "'", '"',
]  # fmt: skip
UNKNOWN = ["nope", "é", "", " ", "a b", "../x", "_target_", "defaults", "hydra", "run[0]", "x@y"]
INSERTED = ["{", "[", ": ", "\n", "\t", "- ", "&a ", "*a", "'", '"', "|", "? "]


def read(folder: Path, words: list[str]) -> tuple[Any, str]:
    """The settings, or the one line that says what is wrong; soon, and nothing is written."""
    before, started = sorted(folder.iterdir()), time.process_time()  # a busy machine makes anything wait
    try:
        found, message = load(folder, words), ""
    except UserError as problem:
        found, message = None, str(problem)
        assert "\n" not in message and 0 < len(message) < 6000
    assert time.process_time() - started < 10 and sorted(folder.iterdir()) == before
    return found, message


@settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    path=st.sampled_from(PLACES),
    value=st.sampled_from(VALUES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    unknown=st.none() | st.sampled_from(UNKNOWN),
    sign=st.sampled_from(["", "", "+", "++", "~", "-"]),
    text=st.tuples(st.integers(0, len(TEXT)), st.sampled_from(INSERTED), st.integers(0, 3)),
)
def test_changed_parameters(
    path: Keys, value: Any, unknown: str | None, sign: str, text: tuple[int, str, int], tmp_path: Path
) -> None:
    path = path if unknown is None else (*path[:-1], unknown)
    last = next((key for key in reversed(path) if isinstance(key, str)), "").strip()
    params = copy.deepcopy(PARAMS)
    block = params
    for key in path[:-1]:
        block = block[key]
    with trial("a changed params.yaml: wrong, unknown, NaN, huge, unicode, broken YAML") as fault:
        if not isinstance(block, list) or unknown is None:
            block[path[-1]] = value
            (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True))
            found, message = read(tmp_path, [])
            assert found or last in message
            if found and isinstance(value, int | float) and not isinstance(value, bool):
                for key in path:
                    found = found[key] if isinstance(found, list | dict) else getattr(found, key)
                assert found == value  # what is accepted is what counts
        at, inserted, removed = text
        (tmp_path / "params.yaml").write_text(TEXT[:at] + inserted + TEXT[at + removed :])
        read(tmp_path, [])
        fault.seen = "the key, what was found and what is expected; or that the file is valid"
    with trial("a changed command line: the same, and what Hydra has a grammar for") as fault:
        keys = ".".join(map(str, path))
        found, message = read(ROOT, [f"{sign}{keys}={value}"])
        assert found or str(path[0]) in message or last in message or repr(last)[1:-1] in message, message
        fault.seen = "the key or the text itself, what was found and what is expected; or that it is valid"


def test_no_environment_variable_is_recorded(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shrink(tmp_path)
    hidden = "hunter2-3f1c9a"
    variables = {"AWS_SECRET_ACCESS_KEY": hidden, "TOKEN": hidden, "PYTHONPATH": str(ROOT)}
    with trial("a secret in an environment variable, looked for in every file that a run writes") as attempt:
        for stage in ("fetch", "train_teacher", "distill method=triplet"):
            command(tmp_path, sys.executable, "-m", *f"stages.{stage} suite=digits".split(), check=True, **variables)
        command(tmp_path, sys.executable, "-m", "tripletkd.tracking", check=True, **variables, **LOGGED)
        written = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert {"mlflow.db", "record.json", "seed-1.json"} <= {file.name for file in written}
        assert not [file for file in written if hidden.encode() in file.read_bytes()]
        attempt.seen = "nothing: it is in no file"
