"""Push a suite's runs and exports to DVC's remote, or pull them, with the logs that belong to them.

`dvc push` and `dvc pull` know the suites that run.suites names; these know every suite of dvc.lock. Images are not
shared: `fetch` gets them where they come from. What is shared is data, weights and texts, in the folders of its suite.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from tripletkd.data.dataset import DESCRIPTION
from tripletkd.errors import UserError
from tripletkd.files import read_yaml, whole
from tripletkd.pipeline.stage import read_paths
from tripletkd.provenance import sha256
from tripletkd.training.run_record import RECORD, read_log

if TYPE_CHECKING:
    from dvc.data_cloud import Remote
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

LOCK = Path("dvc.lock")
KINDS = {  # of files that are shared; none of them is run or imported
    "runs": (".csv", ".json", ".safetensors"),
    "weights": (".json", ".safetensors"),
    "exports": (".json", ".md", ".onnx"),
    "data": (".json",),
}


@dataclass(frozen=True)
class Output:
    """What dvc.lock says of a folder or a file that a stage made."""

    path: Path
    md5: str
    suffixes: Sequence[str]  # of the files that it may hold

    @property
    def hash_info(self) -> Any:
        """The hash as DVC's functions take it."""
        from dvc_data.hashfile.hash_info import HashInfo

        return HashInfo("md5", self.md5)


def share(action: Literal["push", "pull"], suites: Sequence[str], remote: str | None = None) -> None:
    """Push or pull every suite that is asked for.

    Args:
        action: Which of the two.
        suites: Of dvc.lock.
        remote: Another than DVC's default.

    Raises:
        UserError: If dvc.lock does not name a suite, or names what is not shared, or the remote fails.
    """
    from dvc.repo import Repo

    for suite in suites:
        shared, images = outputs(suite)
        try:
            with Repo() as repo:
                there = repo.cloud.get_remote(remote, action)
                done, copy = (push, push_log) if action == "push" else (pull, pull_log)
                count, rest = done(repo, there.odb, shared, images)
                logged = sum(copy(there, about, log) for about, log in find_logs(suite, shared))
        except UserError:
            raise
        except Exception as error:  # whatever a remote can raise
            reason = str(error) or type(error).__name__
            raise UserError(f"{suite}: could not {action} ({reason}); see `dvc remote list`") from None
        then = f"others `tripletkd pull {suite}`" if action == "push" else f"`tripletkd verify {suite}` checks them"
        print(f"{suite}: {count} of {len(shared)} outputs and {logged} logs {action}ed{rest}; {then}", flush=True)


def outputs(suite: str) -> tuple[list[Output], set[str]]:
    """Read what dvc.lock has of a suite in runs/ and exports/, and the description of its images.

    Returns:
        These outputs, and the hashes of the images of all suites.

    Raises:
        UserError: If there is nothing of the suite, or something that stands elsewhere.
    """
    stages = (read_yaml(LOCK) if LOCK.is_file() else {}) or {}
    shared, images, paths = [], set(), read_paths()
    for name, block in stages.get("stages", {}).items():
        for path, md5 in ((PurePosixPath(out["path"]), out.get("md5", "")) for out in block.get("outs", [])):
            kind = next((kind for kind in KINDS if path.is_relative_to(paths[kind])), None)
            if kind == "data" and path.name != DESCRIPTION:
                images.add(md5)
            elif kind and re.fullmatch(rf"\w+@{re.escape(suite)}(-.+)?", name):
                if ".." in path.parts or not path.is_relative_to(paths[kind] / suite):
                    raise UserError(
                        f"{LOCK}: {name} has {path}; expected a path in {paths[kind] / suite}; do not share it"
                    )
                shared.append(Output(Path(path), md5, KINDS[kind]))
    if not shared:
        raise UserError(f"{LOCK}: nothing of {suite!r}; expected a suite that `dvc repro` has made")
    return shared, images


def push(repo: "Repo", odb: "HashFileDB", shared: Sequence[Output], images: set[str]) -> tuple[int, str]:
    """Copy what the cache holds to a remote.

    Returns:
        Of how many outputs, and what else there is to say.

    Raises:
        UserError: If something is not to be shared, or could not be copied.
    """
    cached = [output for output in shared if repo.cache.local.exists(output.md5)]
    for output in cached:
        if images & check_kinds(repo, output):
            raise UserError(f"{LOCK}: {output.path} has the hash of images; they are not ours to hand on")
    transfer(repo, repo.cache.local, odb, cached)
    return len(cached), ""


def pull(repo: "Repo", odb: "HashFileDB", shared: Sequence[Output], _: set[str]) -> tuple[int, str]:
    """Copy from a remote to the cache, and check out, what is not here. What is here is left as it is.

    Returns:
        Of how many outputs, and what else there is to say.

    Raises:
        UserError: If the remote lacks something, or has what is not to be shared, or other bytes than its hash says.
    """
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile import load
    from dvc_data.hashfile.checkout import CheckoutError, checkout

    absent, cache = [output for output in shared if not output.path.exists()], repo.cache.local
    other = [output for output in shared if output.path.exists() and not is_as_locked(repo, output)]
    if lacking := [str(output.path) for output in absent if not odb.exists(output.md5)]:
        raise UserError(f"{odb.path} has no {', '.join(lacking)}; push that from where it was made, or make it here")
    transfer(repo, odb, cache, absent)
    for output in absent:
        check_kinds(repo, output)
    for output in absent:
        with whole(output.path) as beside:
            try:
                checkout(str(beside.absolute()), LocalFileSystem(), load(cache, output.hash_info), cache)
            except CheckoutError as error:  # of files that did not come, or with bytes that are not of their hash
                names = ", ".join(str(Path(path).relative_to(beside.absolute())) for path in error.paths)
                raise UserError(f"{output.path}: {odb.path} has {names} missing or altered") from None
    rest = "; the others are here already" if len(absent) < len(shared) else ""
    named = [f"\n{o.path}: stands here otherwise than {LOCK} says, and was left; remove it to pull it" for o in other]
    return len(absent), rest + "".join(named)


def check_kinds(repo: "Repo", output: Output) -> set[str]:
    """Refuse an output in the cache with a file that is not shared; return the hashes of its files.

    Raises:
        UserError: If a file lies outside the output, or is of another kind than it holds.
    """
    from dvc_data.hashfile import load

    files = {output.path.name: output.md5}
    if output.md5.endswith(".dir"):
        tree: Any = load(repo.cache.local, output.hash_info)
        files = {"/".join(key): info.value for key, _, info in tree}
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts or path.suffix not in output.suffixes:
            raise UserError(f"{output.path}: has {path}; expected files in it that end in {' '.join(output.suffixes)}")
    return set(files.values())


def is_as_locked(repo: "Repo", output: Output) -> bool:
    """Tell whether what stands at an output's place is what dvc.lock names."""
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile.build import build

    _, _, found = build(repo.cache.local, str(output.path.absolute()), LocalFileSystem(), "md5", dry_run=True)
    return bool(found.hash_info.value == output.md5)


def transfer(repo: "Repo", source: "HashFileDB", target: "HashFileDB", shared: Sequence[Output]) -> None:
    """Copy outputs, folders with their files, from one store to another, and compare their hashes."""
    from dvc.ui import ui

    hashes = [output.hash_info for output in shared]
    with ui.status(f"copying to {target.path}"):
        failed = repo.cloud.transfer(source, target, hashes, shallow=False, verify=True).failed
    if failed:
        raise UserError(f"{target.path}: {len(failed)} files could not be copied from {source.path}")


def find_logs(suite: str, shared: Sequence[Output]) -> Iterator[tuple[Path, Path]]:
    """Give each record and export of a suite that is here, and its table, with where its log stands."""
    paths = read_paths()
    for output in shared:
        for path in sorted(output.path.rglob(RECORD)):
            yield path, paths["logs"] / f"{path.parent.relative_to(paths['runs'])}.json"
        if output.path.name == "export.json" and output.path.is_file():
            yield output.path, output.path.with_name("log.json")
    if (table := paths["results"] / suite / "table.json").is_file():
        yield table, paths["logs"] / suite / "tabulate.json"


def push_log(remote: "Remote", about: Path, log: Path) -> bool:
    """Copy a log to the remote, under the hash of the file that it belongs to; tell whether it was not there.

    DVC does not know logs, for what it hashes has no clock time in it. Of two trainings with the same bytes, the log
    that was pushed first stays.
    """
    there = log_place(remote, about)
    if not read_log(log, about) or remote.fs.exists(there):
        return False
    remote.fs.makedirs(remote.fs.parent(there))
    remote.fs.put_file(str(log), there)
    return True


def pull_log(remote: "Remote", about: Path, log: Path) -> bool:
    """Copy the log of a file that is here from the remote, where none of it is here; tell whether there was one."""
    there = log_place(remote, about)
    if read_log(log, about) or not remote.fs.exists(there):
        return False
    with whole(log) as beside:
        remote.fs.get_file(there, str(beside))
        if not read_log(beside, about):
            raise UserError(f"{there}: not a log of {about}; remove it from the remote")
    return True


def log_place(remote: "Remote", about: Path) -> str:
    """Name where the log of a file stands on a remote."""
    return str(remote.fs.join(remote.path, "logs", f"{sha256(about)}.json"))
