"""Pack weights, model cards, tables and hashes of suites into one archive, of the commit as anyone would clone it."""

import gzip
import io
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from tripletkd.cli.programs import output
from tripletkd.data.dataset import DESCRIPTION
from tripletkd.errors import UserError
from tripletkd.files import read_yaml, whole, write_text
from tripletkd.pipeline.stage import read_paths
from tripletkd.provenance import sha256

FOLDER = Path("dist")
ABOUT = ("CITATION.cff", "LICENSE", "dvc.lock", "dvc.yaml", "params.yaml")
SUMS = "SHA256SUMS"
REGULAR = ("100644", "100755")  # what git calls files; not links


def main(suites: Sequence[str]) -> None:
    """Clone the commit, pull and verify its suites there, export their networks, and pack all of it.

    Raises:
        UserError: If changes are not committed, or the commit's results are not those of its code and its weights.
    """
    commit = output("git", "rev-parse", "HEAD")
    if changed := output("git", "diff", "--name-only", "HEAD").split():
        raise UserError(f"{', '.join(changed)}: not committed; a release is of a commit: commit, or `git restore`")
    name = "-".join(["tripletkd", str(read_yaml(Path("CITATION.cff"))["version"]), *suites])
    archive = FOLDER / f"{name}.tar.gz"
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / name
        output("git", "clone", "--quiet", ".", str(clone))
        packed = [*ABOUT, "COMMIT"]
        for suite in suites:
            packed += committed(clone, suite)
            prepare(clone, suite)
            packed += made(clone, suite)
        write_text(clone / "COMMIT", commit)
        write_text(clone / SUMS, "".join(f"{sha256(clone / file)}  {file}\n" for file in sorted(packed)))
        with whole(archive) as beside:
            pack(beside, clone, [*sorted(packed), SUMS])
    print(
        f"{archive}: {len(packed)} files and their hashes, sha256 {sha256(archive)}; docs/sharing.md has what is next"
    )


def committed(clone: Path, suite: str) -> Iterator[str]:
    """Give the files of the commit in results/ of a suite.

    Raises:
        UserError: If one of them, or of ABOUT, is a link.
    """
    place = (read_paths()["results"] / suite).as_posix()
    for line in output("git", "ls-files", "-z", "--stage", "--", *ABOUT, place, folder=clone).split("\0")[:-1]:
        about, _, file = line.partition("\t")
        if about.split()[0] not in REGULAR:
            raise UserError(f"{file}: a link in the commit; a release has files only: commit the file that it leads to")
        if file not in ABOUT:
            yield file


def made(clone: Path, suite: str) -> Iterator[str]:
    """Give what was pulled and exported of a suite; not the logs, which have times in them."""
    paths = read_paths()
    for path in (path for kind in ("runs", "exports") for path in (clone / paths[kind] / suite).rglob("*")):
        if path.is_file() and path.name != "log.json":
            yield path.relative_to(clone).as_posix()


def prepare(clone: Path, suite: str) -> None:
    """Pull a suite's runs, verify its results from the weights on, and export the teacher and every student.

    Raises:
        UserError: If a file is not what the weights give, or anything is not there.
    """
    python = partial(output, sys.executable, "-m", folder=clone, MLFLOW_TRACKING_URI="nowhere://")
    print(python("tripletkd.cli", "pull", suite), end="", flush=True)
    stages, data = read_yaml(clone / "dvc.lock")["stages"], read_paths()["data"] / suite
    if f"tabulate@{suite}" not in stages:
        raise UserError(f"dvc.lock: no table of {suite!r}; expected a suite that `dvc repro` has made")
    images = [path for path in data.glob("[!.]*") if path.name != DESCRIPTION]
    if not images:
        how = f"`python -m stages.fetch suite={suite}`"
        raise UserError(f"{data}: no images; a release is measured again from its weights: {how}, and release again")
    for path in images:  # which no remote has; the description that was pulled has their hash
        shutil.copy(path, clone / data / path.name)
    print(python("tripletkd.cli", "verify", suite), end="", flush=True)
    methods = ("teacher", *stages[f"tabulate@{suite}"]["params"]["params.yaml"]["run.methods"])
    print(f"{suite}: exporting {len(methods)} networks, some ten seconds each", flush=True)
    for method in tqdm(methods, desc="exporting", unit="network", disable=None, leave=False):
        python("stages.export", f"suite={suite}", f"method={method}")


def pack(archive: Path, folder: Path, files: Sequence[str]) -> None:
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
