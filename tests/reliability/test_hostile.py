"""Parameters, command lines and sources that anyone may have made: what is wrong is named, and nothing else happens.

Each attempt is counted (conftest.trial), see test_reliability.py.
"""

import ast
import copy
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import BATCHES, cifar_from, mnist_from, serving
from shrunk import ENVIRONMENT, LOGGED, command, shrink

from tripletkd.config.load import load
from tripletkd.errors import UserError

DERANDOMIZED = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = (ROOT / "params.yaml").read_text()
PARAMS = yaml.safe_load(TEXT)
Keys = tuple[Any, ...]


def hard(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test of faults that takes minutes."""
    return pytest.mark.slow(pytest.mark.fault(test))


# --- parameters -------------------------------------------------------------------------------------------------------


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
    -math.inf, "", " ", "0", "1e3", "nan", "auto", "digits", "triplet", "é", "学生", "\u202e", "\x85",
    "a" * 5000, "a\nb",
    "../../etc", "/", ".", "$(touch x)", "${oc.env:HOME}", "${run}", "???", "=", "*", "&a", "!!python/object:os.system",
    [], [1], [[1]], [None], ["stage1"], [0.1, 0.2], list(range(300)), {}, {"a": 1}, {"": {}}, {"digits": None},
]  # fmt: skip
ODD_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INSERTED = ["{", "[", ": ", "\n", "\t", "- ", "&a ", "*a", "'", '"', "|", "? "]
UNKNOWN = ["nope", "é", "", " ", "a b", "../x", "_target_", "defaults", "hydra"]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, Keys | None, Any]:
    """A params.yaml with one thing changed; where, and to what, if its values are still known."""
    kind = draw(st.sampled_from(["change", "remove", "add", "text"]))
    path, value = draw(st.sampled_from(PLACES)), draw(st.sampled_from(VALUES))
    if kind == "text":
        at, inserted = draw(st.integers(0, len(TEXT))), draw(st.sampled_from(INSERTED) | ODD_TEXTS)
        return TEXT[:at] + inserted + TEXT[at + draw(st.integers(0, 3)) :], None, None
    params = copy.deepcopy(PARAMS)
    block = params
    for key in path[:-1]:
        block = block[key]
    if kind == "add" and isinstance(block, dict):
        path = (*path[:-1], draw(st.sampled_from(UNKNOWN)))
    if kind == "remove":
        del block[path[-1]]
    else:
        block[path[-1]] = value
    text: str = yaml.dump(params, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    return text, path, KeyError if kind == "remove" else value


def same(found: Any, given: Any) -> bool:
    """A value that was accepted is the one that counts: 1 for "1", yes for true."""
    if isinstance(found, bool) or found == given or str(found) == str(given):
        return True
    return isinstance(found, int | float) and float(found) == float(given)


@hard
@DERANDOMIZED
@given(mutated=files())
def test_changed_files(mutated: tuple[str, Keys | None, Any], tmp_path: Path) -> None:
    text, path, value = mutated
    folder = tmp_path / str(time.time_ns())
    folder.mkdir()
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    kinds = "wrong, missing, unknown, NaN, huge, unicode, broken YAML"
    with trial(f"a changed params.yaml: {kinds}", running=False) as fault:
        started = time.process_time()  # a busy machine makes anything wait
        try:
            found: Any = load(folder)
        except UserError as problem:
            message = str(problem)
            assert "\n" not in message and len(message) < 6000
            assert path is None or next(key for key in reversed(path) if isinstance(key, str)).strip() in message
            fault.seen = "the key, what was found and what is expected; or that the file is valid"
        else:
            if path is not None and value is not KeyError and not isinstance(value, dict | list):
                for key in path:
                    found = found[key] if isinstance(found, list | dict) else getattr(found, key)
                assert same(found, value), (path, value)
        assert time.process_time() - started < 10
        assert [file.name for file in folder.iterdir()] == ["params.yaml"]


KEYS = [".".join(path) for path in PLACES if all(isinstance(key, str) for key in path)]
ODD_KEYS = ["run.nope", "nope", "", ".", "run[0]", "é", "hydra.run.dir", "a/b", "x@y"]
TEXTS = [*map(str, VALUES), "1,2", "range(1,9)", "choice(a)", "[", "{a:", "'", '"']


@hard
@DERANDOMIZED
@given(
    sign=st.sampled_from(["", "", "", "+", "++", "~", "~~", "-"]),
    key=st.sampled_from(KEYS) | st.sampled_from(KEYS) | st.sampled_from(ODD_KEYS),
    equals=st.sampled_from(["=", "=", "=", ""]),
    value=st.sampled_from(TEXTS) | ODD_TEXTS,
)
def test_changed_command_lines(sign: str, key: str, equals: str, value: str) -> None:
    override = f"{sign}{key}{equals}{value}"
    with trial("a changed command line: the same, and what Hydra has a grammar for", running=False) as fault:
        started = time.process_time()
        try:
            load(ROOT, [override])
        except UserError as problem:
            message = str(problem)
            assert "\n" not in message and len(message) < 6000
            parts = override.lstrip("+~-").partition("=")[0].split(".")
            # The last one, or the first where that is unknown
            named = [" ".join(part.split()) in message or repr(part)[1:-1] in message for part in parts]
            assert named[-1] or (parts[0] not in PARAMS and named[0]), message
            fault.seen = "the key or the text itself, what was found and what is expected; or that it is valid"
        assert time.process_time() - started < 10


LAUGHS = "a: &a0 [x, x]\n" + "".join(f"a{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
PROCESSES: dict[str, tuple[str, str, list[str]]] = {  # params.yaml's text replaced, by what, the command line
    "billion laughs": ("run:\n", LAUGHS + "run:\n", []),
    "deep": ("run:\n", "x: " + "[" * 5000 + "]" * 5000 + "\nrun:\n", []),
    "python object": ("device: auto", "device: !!python/object/apply:os.system ['touch owned']", []),
    "environment": ("device: auto", "device: ${oc.env:HOME}", []),
    "another suite's folder": ("  digits:\n", "  ../../x:\n", ["suite=../../x"]),
    "NaN": ("", "", ["suites.digits.recipe.optimizer.lr=nan"]),
    "option": ("", "", ["--nope"]),
    "no results yet": ("", "", []),
}


@hard
@pytest.mark.parametrize("name", PROCESSES)
def test_a_stage_with_wrong_parameters_says_one_thing_and_writes_nothing(name: str, tmp_path: Path) -> None:
    old, new, words = PROCESSES[name]
    assert old in TEXT
    (tmp_path / "params.yaml").write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    with trial("wrong parameters to a stage, as a process") as fault:
        ended = subprocess.run(
            [sys.executable, "-m", "stages.tabulate", "suite=digits", *words],
            cwd=tmp_path,
            env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        lines = ended.stderr.splitlines()
        assert ended.returncode == (2 if name == "option" else 1)
        assert "error: " in lines[-1]
        assert len(lines) == 1 or ended.returncode == 2  # argparse adds the usage
        assert {file.name for file in tmp_path.iterdir()} - {".locks"} == {"dvc.yaml", "params.yaml"}
        fault.seen = f"for example `{lines[-1][:110]}`"


# --- downloads --------------------------------------------------------------------------------------------------------

DOWNLOAD = (
    "import json, runpy, sys, torchvision.datasets as library\n"
    "name, known = sys.argv[1], json.loads(sys.argv[2])\n"
    "for key, value in known.items(): setattr(getattr(library, name), key, value)\n"
    "sys.argv = ['fetch.py', 'suite=digits', 'suites.digits.data.source=torchvision', *sys.argv[3:]]\n"
    "runpy.run_module('stages.fetch', run_name='__main__')\n"
)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@hard
@pytest.mark.parametrize(("name", "sound", "share"), [("CIFAR10", 0, 0.5), ("MNIST", 2, 0.99)])
def test_killed_in_a_download_that_stalls(name: str, sound: int, share: float, tmp_path: Path) -> None:
    """share: of the file that comes after `sound` whole ones."""
    project, temporary = tmp_path / "project", tmp_path / "temporary"
    for folder in (project, temporary):
        folder.mkdir()
    for file in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / file, project)
    variables = {"TMPDIR": str(temporary), "no_proxy": "*", "PYTHONPATH": str(ROOT)}
    with serving() as server, trial("kill -9 in fetch, while a download stalls") as attempt:
        known = mnist_from(server) if name == "MNIST" else cifar_from(server, tmp_path, BATCHES)
        channels = 1 if name == "MNIST" else 3
        inputs = [f"suites.digits.inputs.{key}={[1] * channels}".replace(" ", "") for key in ("mean", "std")]
        words = ["python", "-c", DOWNLOAD, name, json.dumps(known), f"++suites.digits.data.name={name}", *inputs]
        server.fault, server.sound, server.share = "silence", sound, share
        with subprocess.Popen(words, cwd=project, env=ENVIRONMENT | variables) as process:
            assert server.silent.wait(60)
            time.sleep(0.2)  # until it has arrived
            process.kill()
        left = set(files_of(project)) - {"params.yaml", "dvc.yaml"}
        assert all(place.startswith((".locks/fetch.digits", "data/.digits.partial/")) for place in left)
        server.fault = ""
        command(project, *words, check=True, **variables)
        killed = files_of(project)
        assert not any(".partial" in place for place in killed) and not files_of(temporary)
        shutil.rmtree(project / "data")
        command(project, *words, check=True, **variables)
        assert files_of(project) == killed
        attempt.seen = "nothing; the same command again ends with the undisturbed bytes"


# --- what a reader of the sources, or of the results, may rely on -----------------------------------------------------

SOURCES = [path for folder in ("tripletkd", "stages", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
EXECUTING = ("eval", "exec", "torch.load", "os.system", "os.popen", "np.load", "yaml.load", "yaml.unsafe_load")
CHECKED = ROOT / "tripletkd/data/sources.py"  # has pickle, for CIFAR's batches, whose md5 torchvision has checked


def test_no_unchecked_bytes_are_executed() -> None:
    """No pickle of unknown md5, no torch.load, no eval, no shell, and YAML by its safe loader only."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                found = {module.split(".")[0] for module in modules} & FORBIDDEN
                assert found <= ({"pickle"} if path == CHECKED else set()), path
            if isinstance(node, ast.Call):
                called, named = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert called not in EXECUTING, path
                assert named.get("shell", "False") == "False", path
                assert called != "YAML" or named.get("typ") == "'safe'", path


@hard
def test_no_environment_variable_is_recorded(tmp_path: Path) -> None:
    with trial("a secret in an environment variable, looked for in every file that a run writes") as attempt:
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / name, tmp_path)
        shrink(tmp_path)
        secret, words = "hunter2-3f1c9a", [sys.executable, "-m"]
        variables = {"AWS_SECRET_ACCESS_KEY": secret, "TOKEN": secret, "PYTHONPATH": str(ROOT)}
        for stage in ("fetch", "train_teacher", "distill method=triplet"):
            asked = [*words, *f"stages.{stage} suite=digits".split()]
            command(tmp_path, *asked, check=True, **variables)
        command(tmp_path, *words, "tripletkd.tracking", check=True, **variables, **LOGGED)
        written = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert {"mlflow.db", "record.json", "seed-1.json"} <= {file.name for file in written}
        assert not [file for file in written if secret.encode() in file.read_bytes()]
        attempt.seen = "nothing: it is in no file"
