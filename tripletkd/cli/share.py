"""Push a suite's runs and exports to DVC's remote, or pull them, with the logs that belong to them.

    python -m stages.share pull digits cifar10 [--remote NAME]
    python -m stages.share push digits

`dvc push` and `dvc pull` know the suites that run.suites names; these know every suite of dvc.lock. Images are not
shared: `fetch` gets them where they come from.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages._command import errors_for_people, read_paths, read_yaml

from tripletkd.data.dataset import DESCRIPTION
from tripletkd.errors import UserError
from tripletkd.files import whole
from tripletkd.provenance import sha256
from tripletkd.training.run_record import RECORD, read_log

if TYPE_CHECKING:
    from dvc.data_cloud import Remote
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB


@dataclass(frozen=True)
class Output:
    """What dvc.lock says of a folder or a file that a stage made."""

    path: Path
    md5: str


def main(arguments: argparse.Namespace) -> None:
    """Push or pull every suite that is asked for."""
    from dvc.repo import Repo

    paths, pulls = read_paths(), arguments.action == "pull"
    for suite in arguments.suites:
        shared = list(outputs(suite, paths))
        if not shared:
            raise UserError(f"dvc.lock: nothing of {suite!r}; expected a suite that `dvc repro` has made")
        try:
            with Repo() as repo:
                here = [output for output in shared if pulls and output.path.exists()]
                changed = [output for output in here if not _is_as_locked(repo, output)]
                remote = repo.cloud.get_remote(arguments.remote, arguments.action)
                share, logs = (pull, pull_log) if pulls else (push, push_log)
                done = share(repo, remote.odb, shared)
                logged = sum(logs(remote, about, log) for about, log in find_logs(suite, shared, paths))
        except UserError:
            raise
        except Exception as error:  # whatever a remote can raise
            reason = str(error) or type(error).__name__
            raise UserError(f"{suite}: could not {arguments.action} ({reason}); see `dvc remote list`") from None
        rest = "; the others are here already" if here else ""
        print(f"{suite}: {done} of {len(shared)} outputs and {logged} logs {arguments.action}ed{rest}", flush=True)
        for output in changed:
            print(f"{output.path}: stands here otherwise than dvc.lock says, and was left; remove it to pull it")


def outputs(suite: str, paths: dict[str, Path]) -> Iterator[Output]:
    """Give what dvc.lock has of a suite in runs/ and exports/, and the description of its images."""
    stages = read_yaml(Path("dvc.lock"))["stages"] if Path("dvc.lock").is_file() else {}
    for name, block in stages.items():
        if not re.fullmatch(rf"\w+@{re.escape(suite)}(-.+)?", name):
            continue
        for out in block.get("outs", []):
            path = Path(out["path"])
            of_suite = any(path.is_relative_to(paths[kind] / suite) for kind in ("runs", "exports"))
            if of_suite or path == paths["data"] / suite / DESCRIPTION:
                yield Output(path, out["md5"])


def push(repo: "Repo", odb: "HashFileDB", shared: Sequence[Output]) -> int:
    """Copy what the cache holds to a remote; returns of how many outputs.

    Raises:
        UserError: if something could not be copied.
    """
    cached = [output for output in shared if repo.cache.local.exists(output.md5)]
    _transfer(repo, repo.cache.local, odb, cached)
    return len(cached)


def pull(repo: "Repo", odb: "HashFileDB", shared: Sequence[Output]) -> int:
    """Copy from a remote to the cache, and check out, what is not here; returns how many outputs.

    What stands here already is left as it is.

    Raises:
        UserError: if the remote lacks something, if it could not be copied, or has other bytes than its hash says.
    """
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile import load
    from dvc_data.hashfile.checkout import CheckoutError, checkout

    absent, cache = [output for output in shared if not output.path.exists()], repo.cache.local
    if lacking := [str(output.path) for output in absent if not odb.exists(output.md5)]:
        raise UserError(f"{odb.path} has no {', '.join(lacking)}; push that from where it was made, or make it here")
    _transfer(repo, odb, cache, absent)
    for output in absent:
        with whole(output.path) as beside:
            try:
                checkout(str(beside.absolute()), LocalFileSystem(), load(cache, _hash_info(output)), cache)
            except CheckoutError as error:  # of files that did not come, or with bytes that are not of their hash
                names = ", ".join(str(Path(path).relative_to(beside.absolute())) for path in error.paths)
                raise UserError(f"{output.path}: {odb.path} has {names} missing or altered") from None
    return len(absent)


def _is_as_locked(repo: "Repo", output: Output) -> bool:
    """Whether what stands at an output's place is what dvc.lock names."""
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile.build import build

    _, _, found = build(repo.cache.local, str(output.path.absolute()), LocalFileSystem(), "md5", dry_run=True)
    return bool(found.hash_info.value == output.md5)


def _transfer(repo: "Repo", source: "HashFileDB", target: "HashFileDB", shared: Sequence[Output]) -> None:
    """Copy outputs, folders with their files, from one store to another, and compare their hashes."""
    hashes = [_hash_info(output) for output in shared]
    if failed := repo.cloud.transfer(source, target, hashes, shallow=False, verify=True).failed:
        raise UserError(f"{target.path}: {len(failed)} files could not be copied from {source.path}")


def _hash_info(output: Output) -> Any:
    from dvc_data.hashfile.hash_info import HashInfo

    return HashInfo("md5", output.md5)


def find_logs(suite: str, shared: Sequence[Output], paths: dict[str, Path]) -> Iterator[tuple[Path, Path]]:
    """Give each record and export of a suite that is here, and its table, with where its log stands."""
    for output in shared:
        for path in sorted(output.path.rglob(RECORD)):
            yield path, paths["logs"] / f"{path.parent.relative_to(paths['runs'])}.json"
        if output.path.name == "export.json" and output.path.is_file():
            yield output.path, output.path.with_name("log.json")
    if (table := paths["results"] / suite / "table.json").is_file():
        yield table, paths["logs"] / suite / "tabulate.json"


def push_log(remote: "Remote", about: Path, log: Path) -> bool:
    """Copy a log to the remote, under the hash of the file that it belongs to; whether it was not there.

    DVC does not know logs, for what it hashes has no clock time in it. Of two trainings with the same bytes, the log
    that was pushed first stays.
    """
    there = _place(remote, about)
    if not read_log(log, about) or remote.fs.exists(there):
        return False
    remote.fs.makedirs(remote.fs.parent(there))
    remote.fs.put_file(str(log), there)
    return True


def pull_log(remote: "Remote", about: Path, log: Path) -> bool:
    """Copy the log of a file that is here from the remote, where none of it is here; whether there was one."""
    there = _place(remote, about)
    if read_log(log, about) or not remote.fs.exists(there):
        return False
    log.parent.mkdir(parents=True, exist_ok=True)
    remote.fs.get_file(there, str(log))
    return True


def _place(remote: "Remote", about: Path) -> str:
    return str(remote.fs.join(remote.path, "logs", f"{sha256(about)}.json"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.share", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("push", "pull"))
    parser.add_argument("suites", nargs="+", metavar="suite")
    parser.add_argument("--remote", help="another than DVC's default, see `dvc remote list`")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = _arguments()
    with errors_for_people():
        main(arguments)
