"""Pack weights, model cards, tables and hashes of suites into one archive, of the commit as anyone would clone it.

python -m stages.release digits; `make release` does it.
"""

import argparse
import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages._command import errors_for_people, read_paths, read_yaml

from tripletkd.errors import UserError
from tripletkd.files import whole, write_text
from tripletkd.provenance import sha256

FOLDER = Path("dist")
ABOUT = ("CITATION.cff", "LICENSE", "dvc.lock", "dvc.yaml", "params.yaml")
SUMS = "SHA256SUMS"


def main(suites: Sequence[str]) -> None:
    """Clone the commit, pull and check what dvc.lock says of each suite there, export its networks, pack all of it.

    Raises:
        UserError: If changes are not committed, or the commit's results are not those of its code and its weights.
    """
    if changed := _output(Path.cwd(), "git", "diff", "--name-only", "HEAD").split():
        raise UserError(f"{', '.join(changed)}: not committed; a release is of a commit: commit, or `git restore`")
    name = "-".join(["tripletkd", str(read_yaml(Path("CITATION.cff"))["version"]), *suites])
    archive = FOLDER / f"{name}.tar.gz"
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / name
        _output(Path.cwd(), "git", "clone", "--quiet", ".", str(clone))
        for suite in suites:
            _prepare(clone, suite)
        write_text(clone / "COMMIT", _output(clone, "git", "rev-parse", "HEAD"))
        _output(clone, "git", "restore", *ABOUT)
        files = sorted([*ABOUT, "COMMIT", *_files(clone, suites)])
        write_text(clone / SUMS, "".join(f"{sha256(clone / file)}  {file}\n" for file in files))
        with whole(archive) as beside:
            _pack(beside, clone, [*files, SUMS])
    print(f"{archive}: {len(files)} files and their hashes, sha256 {sha256(archive)}")


def _prepare(clone: Path, suite: str) -> None:
    """Pull a suite's runs, check that DVC would compute nothing again, and export the teacher and every student.

    Raises:
        UserError: If a stage would run, or anything is not there.
    """
    print(_output(clone, sys.executable, "-m", "stages.share", "pull", suite), end="", flush=True)
    stages, params = read_yaml(clone / "dvc.lock")["stages"], read_yaml(clone / "params.yaml")
    if f"tabulate@{suite}" not in stages:
        raise UserError(f"dvc.lock: no table of {suite!r}; expected a suite that `dvc repro` has made")
    made = stages[f"tabulate@{suite}"]["params"]["params.yaml"]
    splits = [stage.rpartition("-")[2] for stage in stages if stage.startswith(f"train_teacher@{suite}-")]
    methods, ablations = made["run.methods"], made["run.ablations"]
    params["run"] |= {"suites": [suite], "methods": methods, "ablations": ablations, "splits": splits, "export": []}
    _write_yaml(clone / "params.yaml", params)
    would = _run(clone, sys.executable, "-m", "dvc", "repro", "--allow-missing", "--dry")
    due = re.findall(r"^Running stage '(.+)':", would.stdout, re.MULTILINE)
    if due or would.returncode:  # where images are made again, the rest cannot be judged without them
        raise UserError(
            f"dvc.lock: `dvc repro` would run {', '.join(due) or would.stderr.strip()}; expected results of the code, "
            "the parameters and the weights of this commit: run it, `make push`, and commit"
        )
    for method in ("teacher", *methods):
        _output(clone, sys.executable, "-m", "stages.export", f"suite={suite}", f"method={method}")


def _files(clone: Path, suites: Sequence[str]) -> Iterator[str]:
    """Give what the archive holds of the suites; not their logs, which have times in them."""
    paths = read_paths()
    for suite in suites:
        for kind in ("runs", "exports", "results"):
            for path in (clone / paths[kind] / suite).rglob("*"):
                if path.is_file() and path.name != "log.json":
                    yield path.relative_to(clone).as_posix()


def _pack(archive: Path, folder: Path, files: Sequence[str]) -> None:
    """Write a .tar.gz of these files, below the folder's name; the same files give the same bytes."""
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for file in files:
            content = (folder / file).read_bytes()
            member = tarfile.TarInfo(f"{folder.name}/{file}")  # of user 0 and of 1970, readable for all
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _write_yaml(path: Path, value: object) -> None:
    import yaml

    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _output(folder: Path, *words: str) -> str:
    """Run a program in a folder, and return what it prints.

    Raises:
        UserError: If it fails; with what it said.
    """
    done = _run(folder, *words)
    if done.returncode:
        raise UserError((done.stderr or done.stdout).strip().removeprefix("error: "))
    return done.stdout


def _run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a folder, without MLflow."""
    variables = os.environ | {"MLFLOW_TRACKING_URI": "nowhere://"}
    # Programs on the PATH, with names of suites and methods that params.yaml has.
    return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)  # nosec B603  # noqa: S603


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.release", description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", metavar="suite")
    with errors_for_people():
        main(parser.parse_args().suites)
