"""Push a suite's runs and exports to DVC's remote, or pull them, with the logs that belong to them.

`dvc push` and `dvc pull` know the suites that run.suites names; these know every suite of dvc.lock. Images are not
shared: `fetch` gets them where they come from. What is shared is data, weights and texts, in the folders of its suite.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple

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
    from dvc_data.hashfile.hash_info import HashInfo

LOCK = Path("dvc.lock")
KINDS = {  # of files that are shared; none of them is run or imported
    "runs": (".csv", ".json", ".safetensors"),
    "weights": (".json", ".safetensors"),
    "exports": (".json", ".md", ".onnx"),
    "data": (".json",),
}


class Output(NamedTuple):
    """What dvc.lock says of a folder or a file that a stage made."""

    path: Path
    md5: str
    suffixes: Sequence[str]  # of the files that it may hold


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
                if action == "push":
                    count, rest = push(repo, there.odb, shared, images), ""
                else:
                    count, rest = pull(repo, there.odb, shared)
                logged = sum(copy_log(action, there, about, log) for about, log in find_logs(suite, shared))
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
    named = {name.partition("@")[2] for name in stages.get("stages", {}) if name.startswith("fetch@")}
    longer = {name for name in named if name.startswith(f"{suite}-")}  # suites whose stages are called much alike
    for name, block in stages.get("stages", {}).items():
        for path, md5 in ((PurePosixPath(out["path"]), out.get("md5", "")) for out in block.get("outs", [])):
            kind = next((kind for kind in KINDS if path.is_relative_to(paths[kind])), None)
            if kind == "data" and path.name != DESCRIPTION:
                images.add(md5)
            elif kind and re.fullmatch(rf"\w+@{re.escape(suite)}(-.+)?", name):
                if ".." not in path.parts and any(path.is_relative_to(paths[kind] / other) for other in longer):
                    continue
                if ".." in path.parts or not path.is_relative_to(paths[kind] / suite):
                    raise UserError(
                        f"{LOCK}: {name} has {path}; expected a path in {paths[kind] / suite}; do not share it"
                    )
                shared.append(Output(Path(path), md5, KINDS[kind]))
    if not shared:
        raise UserError(f"{LOCK}: nothing of {suite!r}; expected a suite that `dvc repro` has made")
    return shared, images


def push(repo: "Repo", odb: "HashFileDB", shared: Sequence[Output], images: set[str]) -> int:
    """Copy what the cache holds to a remote; return of how many outputs.

    Raises:
        UserError: If something is not to be shared, or could not be copied.
    """
    cache = repo.cache.local
    cached = [output for output in shared if cache.exists(output.md5)]
    for output in cached:
        if images & check_kinds(cache, output):
            raise UserError(f"{LOCK}: {output.path} has the hash of images; they are not ours to hand on")
    transfer(repo, cache, odb, cached)
    return len(cached)


def pull(repo: "Repo", odb: "HashFileDB", shared: Sequence[Output]) -> tuple[int, str]:
    """Copy from a remote to the cache, and check out, what is not here. What is here is left as it is.

    Returns:
        Of how many outputs, and what else there is to say.

    Raises:
        UserError: If the remote lacks something, or has what is not to be shared, or other bytes than its hash says.
    """
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile import load
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.checkout import CheckoutError, checkout

    absent, cache, rest = [output for output in shared if not output.path.exists()], repo.cache.local, ""
    if len(absent) < len(shared):
        rest = "; the others are here already"
    for path, md5, _ in shared:
        if path.exists():
            _, _, found = build(cache, str(path.absolute()), LocalFileSystem(), "md5", dry_run=True)
            if found.hash_info.value != md5:
                rest += f"\n{path}: stands here otherwise than {LOCK} says, and was left; remove it to pull it"
    if lacking := [str(output.path) for output in absent if not odb.exists(output.md5)]:
        raise UserError(f"{odb.path} has no {', '.join(lacking)}; push that from where it was made, or make it here")
    transfer(repo, odb, cache, absent)
    for output in absent:
        check_kinds(cache, output)
    for path, md5, _ in absent:
        with whole(path) as beside:
            try:
                checkout(str(beside.absolute()), LocalFileSystem(), load(cache, hash_info(md5)), cache)
            except CheckoutError as error:  # of files that did not come, or with bytes that are not of their hash
                names = ", ".join(str(Path(name).relative_to(beside.absolute())) for name in error.paths)
                raise UserError(f"{path}: {odb.path} has {names} missing or altered") from None
    return len(absent), rest


def check_kinds(cache: "HashFileDB", output: Output) -> set[str]:
    """Refuse an output in the cache with a file that is not shared; return the hashes of its files.

    Raises:
        UserError: If a file lies outside the output, or is of another kind than it holds.
    """
    from dvc_data.hashfile.tree import Tree

    files = {output.path.name: output.md5}
    if output.md5.endswith(".dir"):
        files = {"/".join(key): str(info.value) for key, _, info in Tree.load(cache, hash_info(output.md5))}
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts or path.suffix not in output.suffixes:
            raise UserError(f"{output.path}: has {path}; expected files in it that end in {' '.join(output.suffixes)}")
    return set(files.values())


def transfer(repo: "Repo", source: "HashFileDB", target: "HashFileDB", shared: Sequence[Output]) -> None:
    """Copy outputs, folders with their files, from one store to another, and compare their hashes."""
    from dvc.ui import ui

    with ui.status(f"copying to {target.path}"):
        hashes = [hash_info(output.md5) for output in shared]
        failed = repo.cloud.transfer(source, target, hashes, shallow=False, verify=True).failed
    if failed:
        raise UserError(f"{target.path}: {len(failed)} files could not be copied from {source.path}")


def hash_info(md5: str) -> "HashInfo":
    """Return a hash as DVC's functions take it."""
    from dvc_data.hashfile.hash_info import HashInfo

    return HashInfo("md5", md5)


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


def copy_log(action: str, remote: "Remote", about: Path, log: Path) -> bool:
    """Push or pull a log, which is on the remote under the hash of the file that it belongs to; tell whether it did.

    DVC does not know logs, for what it hashes has no clock time in it. Of two trainings with the same bytes, the log
    that was pushed first stays.

    Raises:
        UserError: If what the remote has is not of that file.
    """
    fs, there = remote.fs, str(remote.fs.join(remote.path, "logs", f"{sha256(about)}.json"))
    if bool(read_log(log, about)) != (action == "push") or fs.exists(there) == (action == "push"):
        return False
    if action == "push":
        fs.makedirs(fs.parent(there))
        fs.put_file(str(log), there)
        return True
    with whole(log) as beside:
        fs.get_file(there, str(beside))
        if not read_log(beside, about):
            raise UserError(f"{there}: not a log of {about}; remove it from the remote")
    return True
