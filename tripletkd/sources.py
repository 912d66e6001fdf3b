"""Where images come from: a torchvision data set, class folders, an archive of them, or scikit-learn's digits."""

import tarfile
import tempfile
import urllib.error
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from . import Problem
from .data import Dataset, Split
from .provenance import sha256

OTHERWISE = "or regenerate the digits suite, which needs no file: run.suites: [digits]"
IGNORED = {"Thumbs.db", "desktop.ini"}  # what file managers leave behind, beside names that begin with a dot
MAX_ARCHIVE_BYTES = 64 * 2**30  # unpacked; a small archive that claims more is a decompression bomb


def digits() -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes.

    The first half, in the source's order, is the training split, the second the test split, as in scikit-learn's own
    example: the halves come from different writers. Pixels 0..16 become 0..255.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    half = len(labels) // 2
    return Dataset(
        Split(images[:half], labels[:half]),
        Split(images[half:], labels[half:]),
        tuple(str(name) for name in bunch.target_names),
    )


def torchvision(name: str, folder: Path) -> Dataset:
    """A data set of torchvision.datasets by its class name, downloaded to `folder` and checked by torchvision's md5.

    Problem if there is none of that name, no network, or the bytes are not those that torchvision knows.
    """
    import torchvision.datasets as library

    # Sets with a `split` argument name the two parts; the others have a `train` flag.
    by_split = {"SVHN", "STL10"}
    known = {"CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"} | by_split
    if name not in known:
        raise Problem(
            f"data.name: {name!r} is not a torchvision data set known here; expected one of {', '.join(sorted(known))}"
        )
    parts: dict[str, Any] = {}
    for part in ("train", "test"):
        where: dict[str, Any] = {"split": part} if name in by_split else {"train": part == "train"}
        try:
            parts[part] = getattr(library, name)(root=str(folder), download=True, **where)
        except (RuntimeError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
            kind = "no network" if isinstance(error, urllib.error.URLError) else "damaged or incomplete download"
            raise Problem(
                f"{name}: {kind} ({error}); try again, take another source "
                f"(data.source: folder or archive, for a mirror or an air-gapped machine), {OTHERWISE}"
            ) from None
    train, test = (_from_torchvision(part, f"{name}, {title}") for title, part in parts.items())
    classes = getattr(parts["train"], "classes", None) or np.unique(train.labels)
    return Dataset(train, test, tuple(str(label) for label in classes))


def _from_torchvision(part: Any, title: str) -> Split:
    pairs = tqdm(part, desc=title, disable=None, leave=False)
    images, labels = zip(*((np.asarray(image), label) for image, label in pairs), strict=True)
    stacked = np.stack(images)
    return Split(stacked if stacked.ndim == 4 else stacked[..., None], np.array(labels, dtype=np.int64))


def folder(path: Path) -> Dataset:
    """Class folders, {train,test}/<class>/<image>; classes and images in the order of their names.

    Images are converted to RGB, or kept as one channel if every one of them is greyscale. Problem, with the file's
    name, for an image that cannot be read, has another size, 16 bits a channel or several frames; for a class without
    images, or in one split only; for links.
    """
    classes = {part: _class_folders(path / part) for part in ("train", "test")}
    for part, other in (("train", "test"), ("test", "train")):
        if missing := sorted(set(classes[part]) - set(classes[other])):
            raise Problem(
                f"{path / other}: class {missing[0]!r} of {part}/ has no folder here; both splits need every class"
            )
    names = sorted(classes["train"])
    if len(names) < 2:
        raise Problem(f"{path / 'train'}: {len(names)} class folder(s), at least two are needed")
    files = {part: [_image_files(classes[part][name]) for name in names] for part in classes}
    every = [file for part in files.values() for group in part for file in group]
    grey = all(_mode(file) in ("L", "1") for file in every)
    size = _open(every[0]).size
    splits = {}
    for part, groups in files.items():
        paths = [file for group in groups for file in group]
        bar = tqdm(paths, desc=f"reading {part} images", disable=None, leave=False)
        images = np.stack([_pixels(file, "L" if grey else "RGB", size, every[0]) for file in bar])
        labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(group) for group in groups])
        splits[part] = Split(images[..., None] if grey else images, labels)
    return Dataset(splits["train"], splits["test"], tuple(names))


def _class_folders(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        raise Problem(
            f"{path}: not there; expected {{train,test}}/<class>/<image>; give another data.path, {OTHERWISE}"
        )
    entries = [entry for entry in path.iterdir() if not _ignored(entry)]
    for entry in entries:
        if entry.is_symlink() or not entry.is_dir():
            raise Problem(f"{entry}: expected a folder with the images of one class; move it away")
    return {entry.name: entry for entry in entries}


def _image_files(path: Path) -> list[Path]:
    files = sorted(entry for entry in path.iterdir() if not _ignored(entry))
    if not files:
        raise Problem(f"{path}: a class without images; add some, or remove the class from train/ and test/")
    return files


def _ignored(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name in IGNORED


def _open(file: Path) -> Image.Image:
    if file.is_symlink() or not file.is_file():
        raise Problem(f"{file}: not a plain file; expected an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Problem(f"{file}: claims to unpack to a very large image; remove or replace it") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise Problem(f"{file}: not an image that can be read ({error}); remove or replace it") from None


def _mode(file: Path) -> str:
    with _open(file) as image:
        return image.mode


def _pixels(file: Path, mode: str, size: tuple[int, int], first: Path) -> NDArray[np.uint8]:
    with _open(file) as image:
        if image.size != size:
            raise Problem(
                f"{file}: {image.size[0]} x {image.size[1]} pixels, {first.name} has {size[0]} x {size[1]}; "
                "all images must have one size: resize them first"
            )
        if image.mode.startswith(("I", "F")):
            raise Problem(f"{file}: more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first")
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise Problem(f"{file}: {frames} frames, one is expected; keep one")
        try:
            return np.asarray(image.convert(mode))
        except (OSError, ValueError, SyntaxError) as error:
            raise Problem(f"{file}: damaged image ({error}); remove or replace it") from None


def archive(path: Path, expected_sha256: str | None, scratch: Path) -> Dataset:
    """A .tar, .tar.gz or .zip of class folders, unpacked under `scratch`, where nothing of it remains.

    Neither links nor members that would leave the folder are followed. {train,test} stand at the top or in one folder.
    Problem if it cannot be read, or its sha256 is not the expected one.
    """
    if not path.is_file():
        raise Problem(f"{path}: not there; give another data.path, {OTHERWISE}")
    if expected_sha256 and (found := sha256(path)) != expected_sha256:
        raise Problem(
            f"{path}: sha256 is {found}, data.sha256 says {expected_sha256}; fetch the archive again, {OTHERWISE}"
        )
    with _unpacked(path, scratch) as root:
        tops = [entry for entry in root.iterdir() if not _ignored(entry)]
        inner = tops[0] if len(tops) == 1 and tops[0].is_dir() and tops[0].name not in ("train", "test") else root
        try:
            return folder(inner)
        except Problem as problem:  # in the archive's terms: the folder is gone when the message is read
            raise Problem(f"{path}: {str(problem).replace(f'{root}/', '')}") from None


@contextmanager
def _unpacked(path: Path, scratch: Path) -> Iterator[Path]:
    unpack: Callable[[Path, Path], None] = _unzip if zipfile.is_zipfile(path) else _untar
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        try:
            unpack(path, Path(temporary))
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise Problem(
                f"{path}: cannot be unpacked ({error}); expected .tar, .tar.gz or .zip: fetch it again, {OTHERWISE}"
            ) from None
        yield Path(temporary)


def _untar(path: Path, target: Path) -> None:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        _check_size(path, sum(member.size for member in members))
        for member in members:
            if not (member.isfile() or member.isdir()):
                raise Problem(
                    f"{path}: member {member.name!r} is a link or a device; an archive of plain files is expected"
                )
        tar.extractall(target, filter="data")


def _unzip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archived:
        _check_size(path, sum(member.file_size for member in archived.infolist()))
        for member in archived.infolist():
            if not (target / member.filename).resolve().is_relative_to(target.resolve()):
                raise Problem(f"{path}: member {member.filename!r} leaves the archive's folder; it is not unpacked")
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                raise Problem(f"{path}: member {member.filename!r} is a link; an archive of plain files is expected")
        archived.extractall(target)  # noqa: S202 - every member was just checked


def _check_size(path: Path, unpacked: int) -> None:
    if unpacked > MAX_ARCHIVE_BYTES:
        raise Problem(
            f"{path}: would unpack to {unpacked / 2**30:.0f} GiB; more than {MAX_ARCHIVE_BYTES / 2**30:.0f} is refused"
        )


def description(dataset: Dataset) -> str:
    """Short, for a person: counts, shape, and a hash to compare by."""
    height, width, channels = dataset.image_shape
    return (
        f"{len(dataset.train.labels)} training and {len(dataset.test.labels)} test images of {height} x {width} x "
        f"{channels}, {len(dataset.classes)} classes, sha256 {dataset.sha256()[:12]}"
    )
