"""Where images come from: a torchvision data set, class folders, an archive of them, or scikit-learn's digits."""

import http.client
import pickle  # nosec B403
import stat
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from tripletkd.data.dataset import Dataset, Images, Split
from tripletkd.errors import UserError
from tripletkd.provenance import sha256

OTHERWISE = "or regenerate the digits suite, which needs no file: run.suites: [digits]"
LAYOUT = "{train,test}/<class>/<image>"
IGNORED = {"Thumbs.db", "desktop.ini", "__MACOSX"}  # of file managers, beside names that begin with a dot
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # no others: some of Pillow's decoders start programs
MAX_FILE_BYTES = 2**28  # of one image: more is a decompression bomb, or no image
MAX_ARCHIVE_BYTES = 2**35  # of all that is unpacked to the disk: many small files can be a bomb too
MAX_ASPECT = 100  # of an image that is resized, longer side to shorter: a line of pixels would become a huge image
RESIZE_RULE = "shorter side resized (bilinear, antialiased), centre cropped"  # as `resized` does
GREYSCALE = ("L", "LA", "1")  # modes of Pillow that become one channel


def digits() -> Dataset:
    """Load scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, 10 classes.

    The first half, in the source's order, is the training split, the second the test split, as in scikit-learn's own
    example: the halves come from different writers. Pixels 0..16 become 0..255.

    Returns:
        The images, in memory.
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
    """Download a data set of torchvision.datasets and check it by torchvision's md5.

    The download goes to a new folder, which is removed: torchvision trusts some files that are there already, but
    unpickles nothing of a download before its md5 is checked. CIFAR comes by class and original file name, as class
    folders of the same images do; the other sets in torchvision's order.

    Args:
        name: The data set's class in torchvision.datasets.
        folder: Where to put the new folder.

    Returns:
        The images, in memory.

    Raises:
        UserError: If there is no data set of that name, no network, or the bytes are not those that torchvision knows.
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
    """Return where a data set of torchvision comes from; its classes say it in three ways."""
    if hasattr(kind, "split_list"):
        return kind.split_list[part][0]
    return kind.url if hasattr(kind, "url") else " or ".join(kind.mirrors)


def _from_torchvision(part: Any, title: str) -> Split:
    pairs = tqdm(part, desc=title, disable=None, leave=False)
    images, labels = zip(*((np.asarray(image), label) for image, label in pairs), strict=True)
    stacked, order = np.stack(images), _by_file_name(part, labels)
    pixels = stacked if stacked.ndim == 4 else stacked[..., None]
    return Split(pixels[order], np.array(labels, dtype=np.int64)[order])


def _by_file_name(part: Any, labels: Sequence[int]) -> list[int]:
    """Return the order by class, then by the file names that CIFAR's batches have and torchvision leaves out."""
    if not hasattr(part, "base_folder"):
        return list(range(len(labels)))
    names: list[str] = []
    for file, _ in part.train_list if part.train else part.test_list:
        batch = Path(part.root, part.base_folder, file).read_bytes()
        names += pickle.loads(batch, encoding="latin1")["filenames"]  # nosec B301  # noqa: S301  # md5 checked
    return sorted(range(len(labels)), key=lambda at: (labels[at], names[at]))


# --- class folders ----------------------------------------------------------------------------------------------------


def folder(path: Path, image_size: int | None = None) -> Dataset:
    """Read class folders, {train,test}/<class>/<image>; classes and images in the order of their names.

    Where there is no test/, val/ is taken for it, as in ImageNet's layout.

    A file's content counts, not its extension: PNG, JPEG, WebP, BMP or GIF. Images become RGB: palettes are looked up,
    CMYK is converted, transparency and orientation tags are dropped. If every image is greyscale, or black and white,
    one channel is kept.

    Names are compared exactly: Cat and cat are two classes. Ignored: names that begin with a dot, Thumbs.db,
    desktop.ini, __MACOSX, and whatever stands beside train/ and test/.

    Args:
        path: The folder that holds train/ and test/.
        image_size: Pixels of the shorter side after resizing, and of either side after the crop; None to take images
            as they are, which must then have one size.

    Returns:
        The images, each decoded when it is asked for.

    Raises:
        UserError: With the file's name, for an image that cannot be decoded (some when they are asked for), has several
            frames, 16 bits a channel, or another size than the first one; for a class without images, or in one split
            only; for a file where a folder is expected, or the other way round; for a link, a device, a file above 256
            MiB, a name that is not Unicode.
    """
    return _class_folders(path, path, [], image_size)


@contextmanager
def archive(
    path: Path, expected_sha256: str | None, place: Path | None = None, image_size: int | None = None
) -> Iterator[Dataset]:
    """Unpack a .tar, .tar.gz or .zip of class folders and read them as `folder` does, for the time of a block.

    {train,test} stand at the top or in one folder.

    Args:
        path: The archive.
        expected_sha256: Its hash, if it is known.
        place: Where to unpack it to; by default where temporary files are.
        image_size: As in `folder`.

    Yields:
        The images, each decoded when it is asked for.

    Raises:
        UserError: As in `folder`; also for names that lead out of the archive or stand there twice, if it unpacks to
            more than 32 GiB, is damaged, or its sha256 is not the expected one.
    """
    if not path.is_file():
        raise UserError(f"{path}: not there; give another data.path, {OTHERWISE}")
    if expected_sha256 is not None and (found := sha256(path)) != expected_sha256.lower():
        raise UserError(
            f"{path}: sha256 is {found}, data.sha256 says {expected_sha256}; fetch the archive again, {OTHERWISE}"
        )
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        top = Path(temporary)
        try:
            if tarfile.is_tarfile(path):  # asked first: a plain tar that ends with a zip would pass for a zip
                with tarfile.open(path) as tar:
                    folders = _unpack(path, _in_tar(tar, top))
            else:
                with zipfile.ZipFile(path) as zipped:
                    folders = _unpack(path, _in_zip(path, zipped, top))
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be unpacked ({error}); expected .tar, .tar.gz or .zip: fetch it again, {OTHERWISE}"
            ) from None
        names = {file.name for file in top.iterdir()} | {path.parts[0] for path in folders}
        if len(names) == 1 and not names & {"train", "test"}:
            name = names.pop()
            path, top = path / name, top / name
            folders = [folder.relative_to(name) for folder in folders]
        yield _class_folders(path, top, folders, image_size)


class Member(NamedTuple):
    """What stands at a path in an archive: a file, a folder, or anything else."""

    path: PurePosixPath
    mode: int  # its type, as os.stat has it
    size: int
    extract: Callable[[], object]


def _in_tar(tar: tarfile.TarFile, top: Path) -> Iterator[Member]:
    for member in tar:
        mode = stat.S_IFREG if member.isfile() else stat.S_IFDIR if member.isdir() else 0
        extract = partial(tar.extract, member, top, filter="data")
        yield Member(PurePosixPath(member.name), mode, member.size, extract)
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)  # tarfile takes a damaged header for the end
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut off after {tar.offset} bytes")


def _in_zip(source: Path, zipped: zipfile.ZipFile, top: Path) -> Iterator[Member]:
    def extract(member: zipfile.ZipInfo) -> None:
        try:
            zipped.extract(member, top)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged, or a password is needed
            raise _unreadable(source / member.filename, error) from None

    for member in zipped.infolist():
        mode = stat.S_IFMT(member.external_attr >> 16) or (stat.S_IFDIR if member.is_dir() else stat.S_IFREG)
        yield Member(PurePosixPath(member.filename), mode, member.file_size, partial(extract, member))


def _unpack(source: Path, members: Iterable[Member]) -> list[PurePosixPath]:
    """Unpack all files but the ignored ones; UserError at the first member that is refused.

    Folders are returned, not made, as far as no file needs them: there may be very many that hold nothing.
    """
    files: set[PurePosixPath] = set()
    folders, total = [], 0
    for path, mode, size, extract in members:
        if not path.parts or _is_ignored(path):
            continue
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{source}/{path}: leads out of the archive")
        _refuse(source, path, mode, size)
        if stat.S_ISDIR(mode):
            folders.append(path)
            continue
        if path in files:
            raise UserError(f"{source}/{path}: is there twice; remove one")
        files.add(path)
        total += size
        if total > MAX_ARCHIVE_BYTES:
            raise UserError(
                f"{source}: unpacks to more than {MAX_ARCHIVE_BYTES >> 30} GiB, which is refused: take fewer images"
            )
        extract()
    return folders


def _is_ignored(path: PurePosixPath) -> bool:
    return any((name.startswith(".") and name != "..") or name in IGNORED for name in path.parts)


def _refuse(source: Path, path: PurePosixPath, mode: int, size: int) -> None:
    """Raise UserError for what is refused wherever it stands in a folder or an archive."""
    reason = None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        reason = "a link or a device; plain files and folders are expected"
    elif stat.S_ISREG(mode) and size > MAX_FILE_BYTES:
        reason = f"{size} bytes; more than {MAX_FILE_BYTES} are refused"
    elif str(path).encode(errors="replace").decode() != str(path):
        reason = "its name is not Unicode; rename it"
    if reason:
        raise UserError(f"{source}/{path}: {reason}")


def _class_folders(source: Path, top: Path, folders: list[PurePosixPath], image_size: int | None) -> Dataset:
    """Read the class folders in `top`; messages name them as `source`, which is where a person knows them.

    `folders` are those that an archive has besides, empty ones among them.
    """
    parts = ("train", _test_folder(top, folders))
    inside = [path for path in folders if path.parts and path.parts[0] in parts]
    entries = [*((path, False) for path in inside), *_entries(source, top, parts)]
    classes = _by_class(source, entries, parts)
    names = sorted(classes["train"])
    decoder = Decoder(source, top, image_size)
    shape = decoder.common_shape([path for path, is_file in entries if is_file])
    splits = []
    for groups in classes.values():
        files = [path for name in names for path in sorted(groups[name])]
        labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(groups[name]) for name in names])
        splits.append(Split(Decoded(decoder, files, shape), labels))
    train, test = splits
    return Dataset(train, test, tuple(names))


def _test_folder(top: Path, folders: list[PurePosixPath]) -> str:
    """Name the folder of the test split: test, or val where that is there alone."""
    there = {name for name in ("test", "val") if (top / name).exists() or PurePosixPath(name) in folders}
    return "val" if there == {"val"} else "test"


def _entries(source: Path, top: Path, parts: Sequence[str]) -> Iterator[tuple[PurePosixPath, bool]]:
    """Give the path of each file and folder in train/ and test/, and whether it is a file."""
    for part in parts:
        for found in sorted((top / part).rglob("*")):  # which follows no links
            path, status = PurePosixPath(found.relative_to(top)), found.lstat()
            if not _is_ignored(path):
                _refuse(source, path, status.st_mode, status.st_size)
                yield path, stat.S_ISREG(status.st_mode)


def _by_class(
    source: Path, entries: list[tuple[PurePosixPath, bool]], parts: tuple[str, str]
) -> dict[str, dict[str, list[PurePosixPath]]]:
    """Group the images of train and of test: at least two classes, the same in both, none without images."""
    classes: dict[str, dict[str, list[PurePosixPath]]] = {part: {} for part in parts}
    for path, is_file in entries:
        part, *below = path.parts
        if len(below) != 2 if is_file else len(below) > 1:
            kind = "file" if is_file else "folder"
            raise UserError(f"{source / path}: a {kind} out of place in {LAYOUT}; move it away")
        if below:
            classes[part].setdefault(below[0], []).extend([path] if is_file else [])
    for part, other in (parts[::-1], parts):
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


class Decoder(NamedTuple):
    """Decodes the images of a folder; messages name it as `source`, which is where a person knows it."""

    source: Path
    top: Path
    image_size: int | None

    def common_shape(self, files: Sequence[PurePosixPath]) -> tuple[int, int, int]:
        """Find height, width and channels of all images, of which only the heads are read.

        Raises:
            UserError: If they have several sizes and are not to be resized.
        """
        first, channels = None, 1
        for path in tqdm(files, desc=f"looking at {self.source.name}", unit="image", disable=None, leave=False):
            with _opened(self.source / path, self.top / path) as image:
                size, channels = image.size, max(channels, 1 if image.mode in GREYSCALE else 3)
            first = first or size
            if size != first and self.image_size is None:
                raise UserError(
                    f"{self.source / path}: {size[0]} x {size[1]} pixels, {files[0]} has {first[0]} x {first[1]}; all "
                    "images must have one size: data.image_size: 64 would make them 64 x 64"
                )
        assert first is not None
        width, height = (self.image_size, self.image_size) if self.image_size else first
        return height, width, channels

    def decode(self, path: PurePosixPath) -> NDArray[np.uint8]:
        """Decode an image to pixels [height, width, 1 or 3], resized and cropped where that is asked for."""
        with _opened(self.source / path, self.top / path) as image:
            converted = image.convert("L" if image.mode in GREYSCALE else "RGB")
            pixels = np.asarray(resized(converted, self.image_size) if self.image_size else converted)
        return pixels.reshape(*pixels.shape[:2], -1)


def resized(image: Image.Image, size: int) -> Image.Image:
    """Resize an image so that its shorter side has `size` pixels, bilinear and antialiased, and crop its centre."""
    from torchvision.transforms import functional

    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError("too narrow to be resized")
    shorter = functional.resize(image, [size], functional.InterpolationMode.BILINEAR, antialias=True)
    return functional.center_crop(shorter, [size])


@dataclass(frozen=True)
class Decoded(Images):
    """Images that are decoded when they are asked for, one after the other, to pixels of one shape."""

    decoder: Decoder
    files: Sequence[PurePosixPath]
    image_shape: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return how many images there are, their height, width and channels."""
        return len(self.files), *self.image_shape

    def __getitem__(self, at: slice | NDArray[np.intp], /) -> NDArray[np.uint8]:
        places = np.arange(len(self.files))[at]
        pixels = np.empty((len(places), *self.image_shape), dtype=np.uint8)
        for image, place in zip(pixels, places, strict=True):
            image[:] = self.decoder.decode(self.files[place])  # greyscale to all channels
        return pixels


@contextmanager
def _opened(name: Path, file: Path) -> Iterator[Image.Image]:
    """Open an image to decode it in a block; messages call it by `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if getattr(image, "n_frames", 1) > 1:
                    raise UserError(f"{name}: several frames, one is expected; keep one")
                if ";16B" in str(image.tile):  # Pillow itself would drop the lower half of a colour image
                    raise UserError(f"{name}: 16 bits a channel; convert it to 8 first")
                yield image
    except UserError:
        raise
    except Exception as error:  # whatever the decoders raise for bytes that anyone may have made
        raise _unreadable(name, "unknown format" if isinstance(error, UnidentifiedImageError) else error) from None


def _unreadable(name: Path, reason: object) -> UserError:
    return UserError(
        f"{name}: not an image that can be read ({reason}); expected {', '.join(FORMATS)}: remove or replace it"
    )
