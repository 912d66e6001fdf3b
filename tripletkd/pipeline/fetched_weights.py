"""Weights that were trained elsewhere: fetched, checked by hashes, kept. models.pretrained fits them to a network.

weights/<suite>/
    weights.json                             what there is, where it came from, and what was changed of it
    teacher.safetensors, student.safetensors by the names of our networks; the stage fetch_weights writes them
"""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from tripletkd.errors import UserError
from tripletkd.files import read_json
from tripletkd.provenance import fingerprint, sha256

if TYPE_CHECKING:
    from torch import Tensor

    from tripletkd.config.schema import WeightsSettings
    from tripletkd.pipeline.stage import Stage

FILE = "weights.json"
Kind = Literal["teacher", "student"]
KINDS: tuple[Kind, ...] = ("teacher", "student")
TIMEOUT_SECONDS, CHUNK, TRIES = 60, 1 << 20, 2
OFFERED = (("license", "license"), ("paper", "paper_ids"))  # what timm says of its weights


@dataclass(frozen=True)
class Origin:
    """Where a file of weights is, and what its publisher says of it.

    Attributes:
        place: A path, or an address.
        classes: The names of its classes; none where nobody says them.
        said: Its license, for example.
    """

    place: str
    classes: Sequence[str] = ()
    said: dict[str, str] = field(default_factory=dict)

    @property
    def is_address(self) -> bool:
        """Tell whether it has to be downloaded."""
        return self.place.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Initial:
    """What weights.json says of a network's initial weights: no time, no absolute path."""

    source: str
    source_sha256: str
    source_bytes: int
    said: dict[str, str]  # by its publisher
    mended: list[str]
    new_head: bool
    asked_for: str  # a hash of what params.yaml said of it
    made_of: str  # a hash of that, of the images' shape, of their classes, and of the code
    sha256: str  # of the file beside it


@dataclass(frozen=True)
class Description:
    """weights.json: None where a network starts from weights that its seed draws."""

    teacher: Initial | None = None
    student: Initial | None = None


# --- what is here -----------------------------------------------------------------------------------------------------


def asked_for(stage: "Stage", kind: Kind) -> str:
    """Hash what params.yaml says of the initial weights of a suite's network."""
    network = getattr(stage.suite, kind)
    return fingerprint(asdict(network.weights), network.network, network.recipe is not None)


def initial_of(stage: "Stage", kind: Kind) -> Initial | None:
    """Read what is said of the initial weights of a suite's network; None where its seed draws them.

    Raises:
        UserError: If they are not there, or params.yaml has changed since they were fetched.
    """
    if getattr(stage.suite, kind).weights is None:
        return None
    path, remedy = stage.path("weights", FILE), f"run `python -m stages.fetch_weights suite={stage.suite.name}`"
    if (found := getattr(read_json(path, Description, remedy), kind)) is None:
        raise UserError(f"{path}: no weights of the {kind}; {remedy}")
    initial: Initial = found
    if initial.asked_for != asked_for(stage, kind):
        key = f"suites.{stage.suite.name}.{kind}"
        raise UserError(f"{path}: {key}, its weights or its network, was changed since it was written; {remedy}")
    return initial


def read_initial(stage: "Stage", kind: Kind) -> "dict[str, Tensor]":
    """Read the initial weights of a suite's network; none where its seed draws them.

    Raises:
        UserError: If the file is not there, or not the one that weights.json names.
    """
    from safetensors.torch import load_file

    if (initial := initial_of(stage, kind)) is None:
        return {}
    path = stage.path("weights", f"{kind}.safetensors")
    found = sha256(path) if path.is_file() else None
    if found != initial.sha256:
        has = "not there" if found is None else f"sha256 is {found}"
        raise UserError(
            f"{path}: {has}, {FILE} beside it says {initial.sha256}; run `python -m stages.fetch_weights "
            f"suite={stage.suite.name}`"
        )
    return load_file(path)


def recorded(path: Path, kind: Kind) -> Initial | None:
    """Read what is said of weights that were fetched earlier; None where nothing is said that can be read."""
    try:
        found: Initial | None = getattr(read_json(path, Description, ""), kind)
    except UserError:
        return None
    return found


# --- what is elsewhere ------------------------------------------------------------------------------------------------


def find(settings: "WeightsSettings", key: str) -> Origin:
    """Say where a file of weights is.

    Args:
        settings: The block `weights` of a network.
        key: Its place in params.yaml.

    Raises:
        UserError: If there are no weights of that name.
    """
    collection, _, name = settings.source.partition("/")
    name = name.partition(":")[0]
    if settings.source.startswith("torchvision/"):
        return _of_torchvision(name, settings.tag, key)
    if settings.source.startswith("timm/"):
        return _of_timm(name, settings.tag, key)
    if "://" in settings.source and not settings.source.startswith(("http://", "https://")):
        raise UserError(f"{key}.source: found {collection}, expected a file, or an address that begins with https://")
    return Origin(settings.source)


def _of_torchvision(name: str, tag: str | None, key: str) -> Origin:
    from torchvision.models import get_model_weights

    offered = {each.name: each for each in get_model_weights(name)}
    if tag not in offered:
        raise UserError(f"{key}.tag: found {tag}, expected one of {', '.join(offered) or 'none: there are no weights'}")
    return Origin(offered[tag].url, tuple(offered[tag].meta.get("categories", ())))


def _of_timm(name: str, tag: str | None, key: str) -> Origin:
    """Ask timm, which says for most of its weights where they are on Hugging Face's hub; HF_ENDPOINT names a mirror."""
    from timm import list_pretrained
    from timm.models import get_pretrained_cfg

    offered = [each.partition(".")[2] for each in list_pretrained(f"{name}.*")]
    if not offered or tag not in (None, *offered):
        raise UserError(f"{key}.tag: found {tag}, expected one of {', '.join(offered) or 'none: there are no weights'}")
    said = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    assert said
    about = {word: str(getattr(said, theirs)) for word, theirs in OFFERED if getattr(said, theirs, None)}
    if not said.hf_hub_id:
        return Origin(str(said.url), (), about)
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return Origin(f"{hub}/{said.hf_hub_id}/resolve/main/{said.hf_hub_filename or 'model.safetensors'}", (), about)


@contextmanager
def at_hand(settings: "WeightsSettings", origin: Origin, key: str, folder: Path) -> Iterator[Path]:
    """Give a file of weights whose hash is the one of params.yaml; one that was downloaded is removed afterwards.

    Args:
        settings: With the hash.
        origin: Where it is.
        key: The place of the settings in params.yaml.
        folder: Where to download to. What a broken connection leaves there, the next call goes on from.

    Raises:
        UserError: If it cannot be had, or has another hash. Then nothing was read of it but its bytes.
    """
    kind, expected = ("sha256", settings.sha256) if settings.sha256 else ("git_blob", settings.git_blob)
    download_to = folder / f".{expected}.partial"
    path = download_to if origin.is_address else Path(origin.place)
    if origin.is_address:
        download(origin.place, path)
    elif not path.is_file():
        raise UserError(f"{key}.source: {settings.source} is not there; expected a file, in the project or by its path")
    if (found := sha256(path) if settings.sha256 else git_blob(path)) != expected:
        download_to.unlink(missing_ok=True)
        raise UserError(
            f"{key}.{kind}: {origin.place} has {found}, expected {expected}; nothing was read of it. It is another "
            f"file than the one that was meant: correct the source, or, where the file is trusted, {kind}"
        )
    try:
        yield path
    finally:
        download_to.unlink(missing_ok=True)


def git_blob(path: Path) -> str:
    """Hash a file as git does: sha1 of "blob ", its size, a zero byte and its content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(address: str, path: Path) -> None:
    """Download a file, and try once more where the connection breaks off.

    Args:
        address: http or https.
        path: Where it goes. What is there already is taken for the beginning of it; its hash is for others to check.

    Raises:
        UserError: If it cannot be had. What came is left, for a later try.
    """
    problem = ""
    for _ in range(TRIES):
        try:
            return _receive(address, path)
        except urllib.error.HTTPError as error:
            error.close()  # it is the answer, too
            path.unlink(missing_ok=True)
            raise UserError(f"{address}: {error.code} {error.reason}; expected a file there: see the source") from None
        except (OSError, HTTPException, ValueError) as error:
            problem = str(getattr(error, "reason", "") or error) or type(error).__name__
    with suppress(OSError):
        if not path.stat().st_size:
            path.unlink()
    raise UserError(
        f"{address}: could not be downloaded ({problem}); nothing was changed. Try again where there is a network, or "
        "bring the file here and give its path as weights.source, with the same hash"
    )


def _receive(address: str, path: Path) -> None:
    """Receive what is not there yet of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "tripletkd"})  # noqa: S310  # see Origin
    if there:
        request.add_header("Range", f"bytes={there}-")
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # nosec B310  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is no more of it
            error.close()
            return
        raise
    goes_on = answer.status == 206
    size = answer.length
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=address.rpartition("/")[2], disable=None, leave=False)
    with answer, path.open("ab" if goes_on else "wb") as file, bar:
        received = 0
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if size is not None and received < size:
        raise OSError(f"it broke off after {received} of {size} bytes")
