"""Where images come from: a torchvision data set, class folders, an archive of them, or scikit-learn's digits."""

import http.client
import io
import stat
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from tripletkd.data.dataset import Dataset, Split
from tripletkd.errors import UserError
from tripletkd.provenance import sha256

OTHERWISE = "or regenerate the digits suite, which needs no file: run.suites: [digits]"
LAYOUT = "{train,test}/<class>/<image>"
IGNORED = {"Thumbs.db", "desktop.ini", "__MACOSX"}  # of file managers, beside names that begin with a dot
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # no others: some of Pillow's decoders start programs
MAX_FILE_BYTES = 2**28  # a file is read into memory; in an archive, more is a decompression bomb
MAX_PIXEL_BYTES = 2**35  # of all images: they are held in memory; many small files can be a bomb too


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


# --- torchvision ------------------------------------------------------------------------------------------------------


def torchvision(name: str, folder: Path) -> Dataset:
    """A data set of torchvision.datasets by its class name, downloaded and checked by torchvision's md5.

    The download goes to a new folder in `folder`, and is removed: torchvision trusts some files that are there already,
    but unpickles nothing of a download before its md5 is checked. UserError if there is no data set of that name, no
    network, or the bytes are not those that torchvision knows.
    """
    import torchvision.datasets as library

    # Sets with a `split` argument name the two parts; the others have a `train` flag.
    by_split = {"SVHN", "STL10"}
    known = {"CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"} | by_split
    if name not in known:
        raise UserError(
            f"data.name: {name!r} is not a torchvision data set known here; expected one of {', '.join(sorted(known))}"
        )
    kind, parts = getattr(library, name), {}
    with tempfile.TemporaryDirectory(dir=folder) as new:
        for part in ("train", "test"):
            where: dict[str, Any] = {"split": part} if name in by_split else {"train": part == "train"}
            try:
                parts[part] = kind(root=new, download=True, **where)
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                reason = " ".join(str(error).split())  # MNIST's has a line for each mirror
                found = "is not the file torchvision knows by its md5" if "corrupted" in reason else "is out of reach"
                raise UserError(
                    f"{name}: {_address(kind, part)} {found} ({reason}); try again, take another source "
                    f"(data.source: folder or archive, for a mirror or an air-gapped machine), {OTHERWISE}"
                ) from None
    train, test = (_from_torchvision(part, f"{name}, {title}") for title, part in parts.items())
    classes = getattr(parts["train"], "classes", None) or np.unique(train.labels)
    return Dataset(train, test, tuple(str(label) for label in classes))


def _address(kind: Any, part: str) -> str:
    """Where a data set of torchvision comes from; its classes say it in three ways."""
    if hasattr(kind, "split_list"):
        return kind.split_list[part][0]
    return kind.url if hasattr(kind, "url") else " or ".join(kind.mirrors)


def _from_torchvision(part: Any, title: str) -> Split:
    pairs = tqdm(part, desc=title, disable=None, leave=False)
    images, labels = zip(*((np.asarray(image), label) for image, label in pairs), strict=True)
    stacked = np.stack(images)
    return Split(stacked if stacked.ndim == 4 else stacked[..., None], np.array(labels, dtype=np.int64))


# --- class folders ----------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """What stands at a path below a source's top: a file that can be read, a folder, or anything else."""

    path: PurePosixPath
    mode: int  # its type, as os.stat has it
    size: int
    read: Callable[[], bytes]

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


def folder(path: Path) -> Dataset:
    """Class folders, {train,test}/<class>/<image>; classes and images in the order of their names.

    A file's content counts, not its extension: PNG, JPEG, WebP, BMP or GIF. Images become RGB: palettes are looked up,
    CMYK is converted, transparency and orientation tags are dropped. If every image is greyscale, or black and white,
    one channel is kept.

    Names are compared exactly: Cat and cat are two classes. Ignored: names that begin with a dot, Thumbs.db,
    desktop.ini, __MACOSX, and whatever stands beside train/ and test/.

    UserError, with the file's name, for an image that cannot be decoded, has several frames, 16 bits a channel, or
    another size than the first one; for a class without images, or in one split only; for a file where a folder is
    expected, or the other way round; for a link, a device, a file above 256 MiB, a name that is not Unicode.
    """
    return _class_folders(path, _below(path))


def archive(path: Path, expected_sha256: str | None) -> Dataset:
    """A .tar, .tar.gz or .zip of class folders, as in `folder`; {train,test} stand at the top or in one folder.

    Nothing is unpacked to the disk. UserError also for names that lead out of the archive or stand there twice, and if
    it is damaged, or its sha256 is not the expected one.
    """
    if not path.is_file():
        raise UserError(f"{path}: not there; give another data.path, {OTHERWISE}")
    if expected_sha256 and (found := sha256(path)) != expected_sha256.lower():
        raise UserError(
            f"{path}: sha256 is {found}, data.sha256 says {expected_sha256}; fetch the archive again, {OTHERWISE}"
        )
    try:
        if tarfile.is_tarfile(path):  # asked first: a plain tar that ends with a zip would pass for a zip
            with tarfile.open(path) as tar:
                return _class_folders(path, _in_tar(tar))
        with zipfile.ZipFile(path) as zipped:
            return _class_folders(path, _in_zip(zipped))
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be unpacked ({error}); expected .tar, .tar.gz or .zip: fetch it again, {OTHERWISE}"
        ) from None


def _below(top: Path) -> Iterator[Entry]:
    for part in ("train", "test"):
        for path in sorted((top / part).rglob("*")):  # which follows no links
            status = path.lstat()
            yield Entry(PurePosixPath(path.relative_to(top)), status.st_mode, status.st_size, path.read_bytes)


def _in_tar(tar: tarfile.TarFile) -> Iterator[Entry]:
    def read(member: tarfile.TarInfo) -> bytes:
        file = tar.extractfile(member)
        assert file is not None
        return file.read()

    for member in tar:
        mode = stat.S_IFREG if member.isfile() else stat.S_IFDIR if member.isdir() else 0
        yield Entry(PurePosixPath(member.name), mode, member.size, partial(read, member))
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)  # tarfile takes a damaged header for the end
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut off after {tar.offset} bytes")


def _in_zip(zipped: zipfile.ZipFile) -> Iterator[Entry]:
    for member in zipped.infolist():
        mode = stat.S_IFMT(member.external_attr >> 16) or (stat.S_IFDIR if member.is_dir() else stat.S_IFREG)
        yield Entry(PurePosixPath(member.filename), mode, member.file_size, partial(zipped.read, member))


def _class_folders(source: Path, entries: Iterable[Entry]) -> Dataset:
    entries = list(_acceptable(source, entries))
    tops = {entry.path.parts[0] for entry in entries}
    if len(tops) == 1 and not tops & {"train", "test"}:
        top = tops.pop()
        source /= top
        entries = [entry._replace(path=entry.path.relative_to(top)) for entry in entries if entry.path.parts[1:]]
    entries = [entry for entry in entries if entry.path.parts[0] in ("train", "test")]
    classes = _by_class(source, entries)
    images = _read(source, [entry for entry in entries if entry.is_file])
    names = sorted(classes["train"])
    splits = []
    for groups in classes.values():
        pixels = np.stack([images[path] for name in names for path in sorted(groups[name])])
        labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(groups[name]) for name in names])
        splits.append(Split(pixels, labels))
    train, test = splits
    return Dataset(train, test, tuple(names))


def _acceptable(source: Path, entries: Iterable[Entry]) -> Iterator[Entry]:
    """All but the ignored ones; UserError at the first that is refused wherever it stands."""
    files = set()
    for entry in entries:
        path = entry.path
        if not path.parts or any((name.startswith(".") and name != "..") or name in IGNORED for name in path.parts):
            continue
        refusals = {
            "leads out of the archive": path.is_absolute() or ".." in path.parts,
            "a link or a device; plain files and folders are expected": not (entry.is_file or stat.S_ISDIR(entry.mode)),
            f"{entry.size} bytes; more than {MAX_FILE_BYTES} are refused": entry.is_file
            and entry.size > MAX_FILE_BYTES,
            "its name is not Unicode; rename it": str(path).encode(errors="replace").decode() != str(path),
            "is there twice; remove one": path in files,
        }
        for reason, holds in refusals.items():
            if holds:
                raise UserError(f"{source}/{path}: {reason}")
        if entry.is_file:
            files.add(path)
        yield entry


def _by_class(source: Path, entries: list[Entry]) -> dict[str, dict[str, list[PurePosixPath]]]:
    """The images of the classes of train and of test: at least two classes, the same in both, none without images."""
    classes: dict[str, dict[str, list[PurePosixPath]]] = {"train": {}, "test": {}}
    for entry in entries:
        part, *below = entry.path.parts
        if len(below) != 2 if entry.is_file else len(below) > 1:
            kind = "file" if entry.is_file else "folder"
            raise UserError(f"{source / entry.path}: a {kind} out of place in {LAYOUT}; move it away")
        for name in below[:1]:
            classes[part].setdefault(name, []).extend([entry.path] if entry.is_file else [])
    for part, other in (("test", "train"), ("train", "test")):
        if not classes[other]:
            raise UserError(
                f"{source / other}: no class folders; expected {LAYOUT}; give another data.path, {OTHERWISE}"
            )
        if missing := sorted(set(classes[part]) - set(classes[other])):
            raise UserError(
                f"{source / other}: class {missing[0]!r} of {part}/ has no folder here; both splits need every class"
            )
    for part, groups in classes.items():
        if empty := [name for name, images in groups.items() if not images]:
            raise UserError(
                f"{source / part / empty[0]}: a class without images; add some, or remove it from both splits"
            )
    if len(classes["train"]) < 2:
        raise UserError(f"{source / 'train'}: one class folder, at least two are needed")
    return classes


def _read(source: Path, files: list[Entry]) -> dict[PurePosixPath, NDArray[np.uint8]]:
    """The images, of one size and one number of channels, read in the order given: an archive's own is the fastest."""
    images: dict[PurePosixPath, NDArray[np.uint8]] = {}
    for file in tqdm(files, desc=f"reading {source.name}", disable=None, leave=False):
        images[file.path] = pixels = _pixels(source / file.path, file.read)
        if len(files) * pixels.nbytes > MAX_PIXEL_BYTES:
            raise UserError(
                f"{source}: {len(files)} images as large as {file.path} take {len(files) * pixels.nbytes / 2**30:.0f} "
                f"GiB of memory, more than {MAX_PIXEL_BYTES >> 30} are refused: make them smaller, or take fewer"
            )
        (height, width), (first_height, first_width) = (images[path].shape[:2] for path in (file.path, files[0].path))
        if (height, width) != (first_height, first_width):
            raise UserError(
                f"{source / file.path}: {width} x {height} pixels, {files[0].path} has {first_width} x {first_height}; "
                "all images must have one size: resize them first"
            )
    channels = max(image.shape[2] for image in images.values())
    return {path: np.broadcast_to(image, (*image.shape[:2], channels)) for path, image in images.items()}


def _pixels(file: Path, read: Callable[[], bytes]) -> NDArray[np.uint8]:
    """[height, width, 1 or 3]"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(read()), formats=FORMATS) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise UserError(f"{file}: several frames, one is expected; keep one")
                if ";16B" in str(image.tile):  # Pillow itself would drop the lower half of a colour image
                    raise UserError(f"{file}: 16 bits a channel; convert it to 8 first")
                pixels = np.asarray(image.convert("L" if image.mode in ("L", "LA", "1") else "RGB"))
    except UserError:
        raise
    except Exception as error:  # whatever the decoders raise for bytes that anyone may have made
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"{file}: not an image that can be read ({reason}); expected {', '.join(FORMATS)}: remove or replace it"
        ) from None
    return pixels.reshape(*pixels.shape[:2], -1)
