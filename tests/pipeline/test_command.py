"""The command line that all stages share: what it takes, and what it says when something is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from tripletkd.cli import push_pull, verify
from tripletkd.config.load import load
from tripletkd.errors import Paused, UserError
from tripletkd.pipeline import stage
from tripletkd.pipeline.arguments import parse
from tripletkd.pipeline.stage import EX_TEMPFAIL, errors_for_people


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["distill.py", *words])


def test_options_may_stand_between_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments(monkeypatch, "suite=digits", "--quiet", "split=validation", "--only-seeds", "11,12")
    overrides, options = parse("distill", None, ["suite"], trains=True)
    assert overrides == ["suite=digits", "split=validation"]
    assert options.quiet and [*options.only_seeds] == [11, 12] and not options.retrain


def test_help_ends_with_an_example_that_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments(monkeypatch, "--help")
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse("ablate", None, ("suite", "method", "ablation", "split"), trains=False)
    program, *overrides = capsys.readouterr().out.strip().rpartition("for example: python -m ")[2].split()
    assert program == "stages.ablate"
    settings = load(ROOT, overrides)
    assert None not in (settings.suite, settings.method, settings.ablation)


def test_an_option_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--only-seeds", "11,x"], ["--max-minutes", "nan"], ["--processes", "0"]):
        arguments(monkeypatch, "suite=digits", *words)
        with pytest.raises(SystemExit) as ended:
            parse("distill", None, ["suite"], trains=True)
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and words[0] in printed and words[1] in printed


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), 1, "error: .*run.fuse_seeds"),
        (RuntimeError("f_cuda does not have a deterministic implementation"), 1, "error: run.deterministic"),
        (RuntimeError("[alloc_cpu.cpp:121] can't allocate memory: you tried"), 1, "error: .*memory"),
        (OSError(28, "No space left on device", "runs/x"), 1, "error: runs/x: No space left on device"),
        (Paused("stopped at epoch 2 of 3"), EX_TEMPFAIL, "paused: stopped at epoch 2 of 3"),
    ],
)
def test_what_a_person_can_mend_is_said(
    error: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped run has a code of its own, 75: nothing is wrong, and a scheduler starts it again."""
    with pytest.raises(SystemExit) as ended, errors_for_people():
        raise error
    assert ended.value.code == code
    assert re.match(message, capsys.readouterr().err)
    with pytest.raises(RuntimeError, match="shapes differ"), errors_for_people():
        raise RuntimeError("shapes differ")


def test_a_commit_is_dirty_where_code_was_changed_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*words: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *author, *words], capture_output=True, text=True, check=True).stdout.strip()

    def commit() -> str | None:
        stage.commit.cache_clear()
        return stage.commit()

    monkeypatch.chdir(tmp_path)
    assert commit() is None
    (tmp_path / ".git").mkdir()
    assert commit() is None and "warning: git names no commit for the logs (fatal: not a" in capsys.readouterr().err
    git("init", "-q")
    for name in ("dvc.lock", "params.yaml"):
        (tmp_path / name).write_text("one")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    (tmp_path / "dvc.lock").write_text("two")
    assert commit() == head
    (tmp_path / "tripletkd").mkdir()
    (tmp_path / "tripletkd/mine.py").touch()  # a method's file that git does not know
    assert commit() == f"{head}-dirty"
    shutil.rmtree(tmp_path / "tripletkd")
    assert commit() == head
    (tmp_path / "params.yaml").write_text("two")
    assert commit() == f"{head}-dirty"


def test_code_that_was_edited_within_a_second_is_the_code_that_runs(tmp_path: Path) -> None:
    """Python takes a compiled file for current if size and time, in seconds, of the source are what they were."""
    package, words = tmp_path / "tripletkd", [sys.executable, "-c", "import tripletkd.probe"]
    package.mkdir()
    shutil.copy(ROOT / "tripletkd/__init__.py", package)
    for text in ("one", "two"):
        (package / "probe.py").write_text(f"print('{text}')")
        os.utime(package / "probe.py", (1e9, 1e9))
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        for _ in range(2):
            done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
            assert done.stdout == f"{text}\n"
    assert list(package.glob("__pycache__/probe.*"))


def test_an_ablation_is_of_its_own_split_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert stage.open_stage("ablate", ["suite=digits", "ablation=margin"]).config.split == "validation"
    assert stage.open_stage("distill", ["suite=digits", "method=kd"]).config.split == "test"


def test_a_table_is_verified_whatever_splits_params_yaml_names_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make paper` leaves one split, and the digits' ablations are of another."""
    monkeypatch.chdir(ROOT)
    words = ["run.splits=[test]", "run.methods=[scratch]", *verify.as_tabulated("digits"), "suite=digits"]
    tabulated = stage.open_stage("tabulate", words).config
    assert (
        tabulated.run.ablation_split == "validation" and tabulated.split == "test" and "pair" in tabulated.run.methods
    )


def test_a_suite_whose_name_begins_like_another_is_left_to_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    names = {"digits": "runs/digits/test/kd", "digits-small": "runs/digits-small/test/kd"}
    stages = {f"distill@{suite}-kd": {"outs": [{"path": path, "md5": "a.dir"}]} for suite, path in names.items()}
    stages |= {f"fetch@{suite}": {"outs": []} for suite in names}
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    for suite, path in names.items():
        assert [str(output.path) for output in push_pull.outputs(suite)[0]] == [path]
    stages["distill@digits-kd"]["outs"][0]["path"] = "runs/elsewhere/test/kd"
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    with pytest.raises(UserError, match="expected a path in runs/digits; do not share it"):
        push_pull.outputs("digits")
