"""Parameters, stores and sources that anyone may have made: what is wrong is named, and nothing else happens.

Each attempt is counted (conftest.trial), see test_reliability.py.
"""

import ast
import copy
import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import BATCHES, Server, address, cifar_from, mnist_from, serving, small
from shrunk import ENVIRONMENT, command, shrink, with_faults

from tripletkd.config.load import load
from tripletkd.data import dataset as data
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


def dumped(params: Any) -> str:
    """As yaml.safe_dump writes it, by the library in C if there is one."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump(params, Dumper=dumper, sort_keys=False, allow_unicode=True)
    return text


@st.composite
def files(draw: st.DrawFn) -> tuple[str, Path_ | None, Any]:
    """A params.yaml with one thing changed; where, and to what, if its values are still known."""
    kind, path, value = draw(st.sampled_from(KINDS)), draw(st.sampled_from(PLACES)), draw(st.sampled_from(VALUES))
    params = copy.deepcopy(PARAMS)
    block = params
    for key in path[:-1]:
        block = block[key]
    if kind == "text":
        text = TEXT
        at = draw(st.integers(0, len(text)))
        odd = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
        inserted = draw(st.sampled_from(["{", "[", ": ", "\n", "\t", "- ", "&a ", "*a", "'", '"', "|", "? "]) | odd)
        return text[:at] + inserted + text[at + draw(st.integers(0, 3)) :], None, None
    if kind == "twice" and isinstance(path[-1], str):
        return dumped(params) + dumped({path[0]: {}}) + dumped({path[-1]: value}), None, None
    if kind == "remove":
        del block[path[-1]]
        return dumped(params), path, KeyError
    if kind == "add" and isinstance(block, dict):
        path = (
            *path[:-1],
            draw(st.sampled_from(UNKNOWN)),
        )
    block[path[-1]] = value
    return dumped(params), path, value


def loaded(settings: Any, path: Path_) -> Any:
    for key in path:
        settings = settings[key] if isinstance(settings, list | dict) else getattr(settings, key)
    return settings


def assert_one_message(problem: str, path: Path_ | None) -> None:
    assert "\n" not in problem
    assert len(problem) < 6000
    if path is not None:
        last = next(key for key in reversed(path) if isinstance(key, str))
        assert last.strip() in problem, problem


@pytest.mark.slow
@DERANDOMIZED
@given(mutated=files())
def test_changed_files(mutated: tuple[str, Path_ | None, Any], tmp_path: Path) -> None:
    text, path, value = mutated
    folder = tmp_path / str(time.time_ns())
    folder.mkdir()
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    with trial(
        "a changed params.yaml: wrong, missing, unknown, twice, NaN, huge, unicode, broken YAML", running=False
    ) as fault:
        started = time.process_time()  # a busy machine makes anything wait
        try:
            settings = load(folder)
        except UserError as problem:
            assert_one_message(str(problem), path)
            fault.seen = "the key, what was found and what is expected; or that the file is valid"
        else:
            if path is not None and value is not KeyError and not isinstance(value, dict | list):
                assert same(loaded(settings, path), value), (path, value)
        assert time.process_time() - started < 10
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
    sign = draw(st.sampled_from(["", "", "", "+", "++", "~", "~~", "-"]))
    equals = draw(st.sampled_from(["=", "=", "=", ""]))
    key = draw(st.sampled_from(KEYS) | st.sampled_from(KEYS) | st.sampled_from(ODD_KEYS))
    return f"{sign}{key}{equals}{draw(st.sampled_from(TEXTS) | ODD_TEXTS)}"


@pytest.mark.slow
@DERANDOMIZED
@given(override=overrides())
def test_changed_command_lines(override: str, tmp_path: Path) -> None:
    with trial("a changed command line: the same, and what Hydra has a grammar for", running=False) as fault:
        started, message = time.process_time(), ""
        try:
            load(ROOT, [override])
        except UserError as problem:
            message = str(problem)
        if message:
            assert_one_message(message, None)
            key = override.lstrip("+~-").partition("=")[0].split(".")[-1][:40]
            assert " ".join(key.split()) in message or repr(key)[1:-1] in message, message
            fault.seen = "the key or the text itself, what was found and what is expected; or that it is valid"
        assert time.process_time() - started < 10


LAUGHS = "a: &a0 [x, x]\n" + "".join(f"a{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
PROCESSES: dict[str, tuple[str, str, list[str]]] = {  # params.yaml's text replaced, by what, the command line
    "billion laughs": ("run:\n", LAUGHS + "run:\n", []),
    "an alias to itself": ("run:\n", "x: &x [*x]\nrun:\n", []),
    "deep": ("run:\n", "x: " + "[" * 5000 + "]" * 5000 + "\nrun:\n", []),
    "python object": ("device: auto", "device: !!python/object/apply:os.system ['touch owned']", []),
    "environment": ("device: auto", "device: ${oc.env:HOME}", []),
    "key twice": ("  split: test", "  split: test\n  split: validation", []),
    "not UTF-8": ("run:\n", "run:\n", []),
    "empty": ("", "", []),
    "a megabyte": ("run:\n", "#" * 2**20 + "\nrun:\n", []),
    "another suite's folder": ("  digits:\n", "  ../../x:\n", ["suite=../../x"]),
    "NaN": ("", "", ["suites.digits.recipe.optimizer.lr=nan"]),
    "huge": ("", "", ["suites.digits.seeds=[99999999999999999999]"]),
    "unknown": ("", "", ["run.nope=1"]),
    "no such suite": ("", "", ["suite=nope"]),
    "no key": ("", "", ["nonsense"]),
    "a list for a name": ("", "", ["claims=[{method:triplet,over:[[]]}]"]),
    "no suite": ("", "", ["suite=null"]),
    "option": ("", "", ["--nope"]),
    "minutes": ("", "", ["--max-minutes", "nan"]),
    "negative minutes": ("", "", ["--max-minutes=-1"]),
    "no results yet": ("", "", []),
}


@pytest.mark.slow
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
        assert {file.name for file in tmp_path.iterdir()} - {".locks"} == {"dvc.yaml", "params.yaml"}
        fault.seen = f"for example `{next(line for line in reversed(lines) if line)[:110]}`"


# --- downloads --------------------------------------------------------------------------------------------------------

DOWNLOAD = (
    "import json, runpy, sys, torchvision.datasets as library\n"
    "name, known = sys.argv[1], json.loads(sys.argv[2])\n"
    "for key, value in known.items(): setattr(getattr(library, name), key, value)\n"
    "sys.argv = ['fetch.py', 'suite=digits', 'suites.digits.data.source=torchvision', *sys.argv[3:]]\n"
    "runpy.run_module('stages.fetch', run_name='__main__')\n"
)


@contextmanager
def a_data_set_of(name: str, folder: Path) -> Iterator[tuple[Server, list[str]]]:
    """A server of CIFAR10 or MNIST, small, and the command that fetches it."""
    with serving() as server:
        if name == "MNIST":
            known, channels = mnist_from(server), 1
        else:
            known, channels = cifar_from(server, folder, BATCHES), 3
        inputs = [f"suites.digits.inputs.{key}={[1] * channels}".replace(" ", "") for key in ("mean", "std")]
        yield server, ["python", "-c", DOWNLOAD, name, json.dumps(known), f"++suites.digits.data.name={name}", *inputs]


def project_in(folder: Path) -> tuple[Path, dict[str, str]]:
    """A project with an earlier data set, and variables: a temporary folder of its own, no proxy, no MLflow."""
    project = folder / "project"
    project.mkdir()
    (folder / "temporary").mkdir()
    (folder / "mlflow.py").write_text("raise ImportError('no MLflow in this test')\n")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, project)
    path = os.pathsep.join(map(str, (ROOT, folder)))
    variables = {"TMPDIR": str(folder / "temporary"), "no_proxy": "*", "PYTHONPATH": path}
    (project / "data/digits").mkdir(parents=True)
    data.save(small(), project / "data/digits", "earlier")
    return project, variables


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sound", "share"), [("CIFAR10", 0, 0), ("CIFAR10", 0, 0.5), ("CIFAR10", 0, 0.99), ("MNIST", 2, 0.5)]
)
def test_killed_in_a_download_that_stalls(name: str, sound: int, share: float, tmp_path: Path) -> None:
    """share: of the file that comes after `sound` whole ones."""
    project, variables = project_in(tmp_path)
    with a_data_set_of(name, tmp_path) as (server, words):
        before = files_of(project)
        with trial("kill -9 in fetch, while a download stalls") as attempt:
            server.fault, server.sound, server.share = "silence", sound, share
            with subprocess.Popen(words, cwd=project, env=ENVIRONMENT | variables) as process:
                assert server.silent.wait(60)
                time.sleep(0.2)  # until it has arrived
                process.kill()
            assert process.returncode == -9
            left = set(files_of(project)) - set(before)
            assert {".locks/fetch.digits"} <= left
            assert all(name.startswith((".locks/fetch.digits", "data/.digits.partial/")) for name in left)
            server.fault = ""
            command(project, *words, check=True, **variables)
            assert not any(".partial" in name for name in files_of(project))
            assert not files_of(tmp_path / "temporary")
            killed = files_of(project)
            shutil.rmtree(project / "data")
            command(project, *words, check=True, **variables)
            assert files_of(project) == killed and killed != before
            attempt.seen = "nothing; the same command again ends with the undisturbed bytes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sound", "share"), [("CIFAR10", 0, 0), ("CIFAR10", 0, 0.5), ("MNIST", 0, 0.99), ("MNIST", 3, 0.5)]
)
def test_a_server_that_closes_midway_gives_one_message(name: str, sound: int, share: float, tmp_path: Path) -> None:
    project, variables = project_in(tmp_path)
    with a_data_set_of(name, tmp_path) as (server, words):
        before = files_of(project)
        with trial("a server that closes partway through a file") as attempt:
            server.fault, server.sound, server.share = "cut off", sound, share
            printed = command(project, *words, check=False, **variables).splitlines()[-1]
            assert printed.startswith(f"error: {name}: {address(server)}")
            assert "try again, take another source" in printed
            assert files_of(project) == before and not files_of(tmp_path / "temporary")
            attempt.seen = f"`{printed[:150]}...`"


# --- tracking ---------------------------------------------------------------------------------------------------------

LOG = (
    "from pathlib import Path; from tripletkd.tracking.logger import Logger\n"
    "with Logger(Path.cwd()) as logger: logger.runs([Path('runs/digits/test/triplet')])"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run records of a teacher and two methods, and no store."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    shrink(folder)
    for stage in ("fetch", "train_teacher", "distill method=scratch", "distill method=triplet"):
        name, *words = stage.split()
        python(folder, "-m", f"stages.{name}", "suite=digits", *words, MLFLOW_TRACKING_URI="nonsense://")
    return folder


@pytest.fixture
def records(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "project"))


def python(folder: Path, *words: str, **variables: str) -> str:
    return command(folder, sys.executable, *words, check=True, PYTHONPATH=str(ROOT), **variables)


def runs_of(folder: Path) -> list[str]:
    """The names of the runs in the store that are not deleted, each with its status."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        query = "SELECT name, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY name"
        return [f"{name} {status}" for name, status in database.execute(query)]


LOGGED = [f"digits/triplet{seed} FINISHED" for seed in ("", "/seed-1", "/seed-2")]


@contextmanager
def broken(fault: str, folder: Path) -> Iterator[dict[str, str]]:
    """A store that is at fault while the block runs; gives variables for the process that logs."""
    store, variables = folder / "mlflow.db", {}
    with ExitStack() as at_end:
        listener = at_end.enter_context(closing(socket.socket()))
        if fault in ("closed port", "silent server"):
            listener.bind(("127.0.0.1", 0))
            variables["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
            variables |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
            if fault == "silent server":
                listener.listen()
        elif fault == "garbage":
            store.write_bytes(b"garbage" * 1000)
        elif fault == "a folder in its place":
            store.mkdir()
        else:
            python(folder, "-m", "tripletkd.tracking.mlflow", "runs/digits/test/teacher")
        if fault == "locked by another process":
            other = at_end.enter_context(closing(sqlite3.connect(store, isolation_level=None)))
            other.execute("BEGIN EXCLUSIVE")
        if "schema" in fault:
            version = "451aebb31d03" if fault == "older schema" else "0123456789ab"  # MLflow's first, and nobody's
            with closing(sqlite3.connect(store)) as other:
                other.execute("UPDATE alembic_version SET version_num = ?", [version])
                other.commit()
        if fault == "no room":
            variables["FILE_LIMIT"] = str(store.stat().st_size)
        yield variables
    if fault != "no room" and fault != "locked by another process":
        shutil.rmtree(store) if store.is_dir() else store.unlink(missing_ok=True)


STORE_FAULTS = [
    "closed port",
    "silent server",
    "garbage",
    "a folder in its place",
    "locked by another process",
    "older schema",
    "unknown schema",
    "no room",
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", STORE_FAULTS)
def test_a_store_at_fault_costs_one_line(fault: str, records: Path) -> None:
    """And the record fills the store later, once."""
    with trial("an MLflow store at fault: out of reach, silent, locked, no room, another schema, garbage") as attempt:
        before = {file: file.read_bytes() for file in (records / "runs").rglob("*") if file.is_file()}
        with broken(fault, records) as variables:
            limit = f"import resource; resource.setrlimit(1, ({variables.pop('FILE_LIMIT', -1)},) * 2)\n"
            started = time.monotonic()
            printed = python(records, "-c", limit + LOG, **variables)
            assert time.monotonic() - started < 60
            assert printed.count("warning: not logged to MLflow (") == 1, printed
            assert len(printed.splitlines()) == 1, printed
            again = ["-m", "tripletkd.tracking.mlflow", "runs/digits/test/triplet"]
            if fault != "no room":
                refused = command(records, sys.executable, *again, check=False, PYTHONPATH=str(ROOT), **variables)
                assert refused.startswith("error: runs/digits/test/triplet: not logged") and "Traceback" not in refused
        assert {file: file.read_bytes() for file in (records / "runs").rglob("*") if file.is_file()} == before
        assert "logged" in python(records, *again)
        assert "already there" in python(records, *again)
        assert [name for name in runs_of(records) if "teacher" not in name] == LOGGED
        attempt.seen = f"one line, for example `{printed[:90].strip()}...`; `make relog` later leaves no double"


@pytest.mark.slow
def test_a_store_that_is_too_slow_is_given_up(records: Path, tmp_path: Path) -> None:
    """Training waits SECONDS_TO_LOG, here 20, for the process that logs, not as long as the store takes."""
    path = os.pathsep.join((with_faults(tmp_path), str(ROOT)))
    with trial("an MLflow store that answers too slowly") as attempt:
        words = [sys.executable, "-c", f"from tripletkd.tracking import logger\nlogger.SECONDS_TO_LOG = 20\n{LOG}"]
        variables = {"FAULT": "stall mlflow.tracking.client:MlflowClient.log_batch 2", "FAULT_IN": "-m tripletkd"}
        started = time.monotonic()
        printed = command(records, *words, check=True, PYTHONPATH=path, **variables)
        assert time.monotonic() - started < 90
        assert len(printed.splitlines()) == 1 and "(not done after 20 s)" in printed, printed
        assert "digits/triplet RUNNING" in runs_of(records)
        assert "logged" in python(records, "-m", "tripletkd.tracking.mlflow", "runs/digits/test/triplet")
        assert runs_of(records) == LOGGED
        attempt.seen = f"`{printed.strip()}`"


@pytest.mark.slow
def test_logging_killed_midway_leaves_no_double(records: Path, tmp_path: Path) -> None:
    path = os.pathsep.join((with_faults(tmp_path), str(ROOT)))
    for n in (1, 2):
        with trial("kill -9 of the process that logs, midway") as attempt:
            variables = {"FAULT": f"kill tripletkd.tracking.mlflow:_log_seed {n}", "FAULT_IN": "tracking"}
            words = [
                sys.executable,
                "-c",
                "from pathlib import Path; from tripletkd.tracking.mlflow import log_run; "
                "log_run(Path.cwd(), Path('runs/digits/test/triplet'))",
            ]
            command(records, *words, check=False, PYTHONPATH=path, **variables)
            assert "digits/triplet RUNNING" in runs_of(records)
            attempt.seen = "runs that never end, until `make relog` replaces them"
    assert "logged" in python(records, "-m", "tripletkd.tracking.mlflow", "runs/digits/test/triplet")
    assert runs_of(records) == LOGGED


@pytest.mark.slow
def test_four_processes_create_the_store_at_once(records: Path) -> None:
    with trial("four processes that create the MLflow store at once") as attempt:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", LOG.replace("triplet'", f"{name}'")],
                cwd=records,
                env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("triplet", "scratch", "teacher", "triplet")
        ]
        errors = [process.communicate()[1] for process in started]
        assert not [error for error in errors if "warning" in error or "Traceback" in error]
        names = [name.split()[0] for name in runs_of(records)]
        assert {"digits/triplet", "digits/scratch", "digits/teacher", "digits/triplet/seed-2"} <= set(names)
        assert len(names) == len(set(names)), names
        attempt.seen = "nothing: all are logged"


# --- what a reader of the sources, or of the results, may rely on -----------------------------------------------------

SOURCES = [path for folder in ("tripletkd", "stages", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
SAFE = 'LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)\n'
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CHECKED = {("tripletkd/data/sources.py", "pickle")}  # CIFAR's batches, whose md5 torchvision has checked


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_unchecked_bytes_are_executed(path: Path) -> None:
    """No pickle of unknown md5, no torch.load, no eval, no shell, and YAML by its safe loader only."""
    allowed = {module for place, module in CHECKED if ROOT / place == path}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {module.split(".")[0] for module in modules} & FORBIDDEN - allowed
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "os.system", "os.popen", "np.load")
            shell = [word.value for word in node.keywords if word.arg == "shell"]
            assert not shell or ast.unparse(shell[0]) == "False"
            if called in ("yaml.load", "yaml.parse", "yaml.compose"):
                assert ast.unparse(node.args[1]) == "LOADER" and SAFE in path.read_text()


@pytest.mark.slow
def test_no_environment_variable_is_recorded(records: Path) -> None:
    secret = "hunter2-3f1c9a"  # noqa: S105
    with trial("a secret in an environment variable, looked for in every file that a run writes") as attempt:
        shutil.rmtree(records / "runs/digits/test/triplet")
        command(
            records,
            *(sys.executable, "-m", "stages.distill", "suite=digits", "method=triplet"),
            PYTHONPATH=str(ROOT),
            AWS_SECRET_ACCESS_KEY=secret,
            TOKEN=secret,
        )
        written = [file for file in records.rglob("*") if file.is_file()]
        assert {"mlflow.db", "record.json", "seed-1.json"} <= {file.name for file in written}
        assert not [file for file in written if secret.encode() in file.read_bytes()]
        attempt.seen = "nothing: it is in no file"


def test_the_pages_are_served_to_this_machine_only() -> None:
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if "mlflow ui" in line and "##" not in line]
    assert "--host 127.0.0.1 " in line
