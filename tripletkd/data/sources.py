"""Where images come from: a torchvision data set, class folders, an archive of them, or scikit-learn's digits."""

import bz2
import errno
import gzip
import http.client
import io
import lzma
import pickle  # nosec B403
import stat
import tarfile
import tempfile
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
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
MAX_FOLDERS = 2**16  # in an archive, where they take no bytes
MAX_HEADER_BYTES = 2**20  # of one member of a .tar: names and attributes, which are read into memory
MAX_ASPECT = 100  # of an image that is resized, longer side to shorter: a line of pixels would become a huge image
RESIZE_RULE = "shorter side resized (bilinear, antialiased), centre cropped"  # as `resized` does
ORIENTATION_RULE = "upright, as the EXIF orientation tag says"  # as `Decoded` does
ORIENTATION, TURNED = 0x0112, 5  # that tag, and its value from which on width and height change places
GREYSCALE = ("L", "LA", "1")  # modes of Pillow that become one channel
COMPRESSED = {b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ\0": lzma.LZMAFile}  # by a file's first bytes
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError)


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


def torchvision(name: str, folder: Path, path: Path | None = None) -> Dataset:
    """Download a data set of torchvision.datasets, or take its archive, and check it by torchvision's md5.

    All goes to a new folder, which is removed: torchvision trusts some files that are there already, but unpickles
    nothing of an archive before its md5 is checked. CIFAR comes by class and original file name, as class folders of
    the same images do; the other sets in torchvision's order.

    Args:
        name: The data set's class in torchvision.datasets.
        folder: Where to put the new folder.
        path: The original archive, for example cifar-10-python.tar.gz; None to download it.

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
            f"data.name: {name!r} is not a torchvision data set known here; expected one of {sorted(known)}"
        )
    kind, parts = getattr(library, name), {}
    with tempfile.TemporaryDirectory(dir=folder) as new:
        if path:
            _place_archive(kind, path, Path(new))
        for part in ("train", "test"):
            where: dict[str, Any] = {"split": part} if name in by_split else {"train": part == "train"}
            try:
                parts[part] = kind(root=new, download=True, **where)
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                reason = " ".join(str(error).split())  # MNIST's has a line for each mirror
                found = "is not the file torchvision knows by its md5" if "corrupted" in reason else "is out of reach"
                at_hand = f"give {kind.filename}, if you have it, as data.path, " if hasattr(kind, "tgz_md5") else ""
                advice = f"try again, {at_hand}take class folders of it (data.source: folder or archive), {OTHERWISE}"
                raise UserError(f"{name}: {_address(kind, part)} {found} ({reason}); {advice}") from None
        train, test = (_from_torchvision(part, f"{name}, {title}") for title, part in parts.items())
    classes = getattr(parts["train"], "classes", None) or np.unique(train.labels)
    return Dataset(train, test, tuple(str(label) for label in classes))


def _place_archive(kind: Any, path: Path, folder: Path) -> None:
    """Put a data set's archive where torchvision looks for it, if it is the one that torchvision knows."""
    from torchvision.datasets.utils import check_integrity

    if not hasattr(kind, "tgz_md5"):
        raise UserError(f"data.path: found with data.name: {kind.__name__}, which is not one archive; leave it out")
    if not path.is_file():
        raise UserError(f"{path}: not there; give another data.path, or none to download {kind.filename}")
    if not check_integrity(path, kind.tgz_md5):
        raise UserError(f"{path}: is not {kind.filename}, whose md5 is {kind.tgz_md5}; get it again, {OTHERWISE}")
    (folder / kind.filename).symlink_to(path.resolve())


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
    if not hasattr(part, "meta"):
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

    A file's content counts, not its extension: PNG, JPEG, WebP, BMP or GIF. Images are turned upright by their EXIF
    orientation tag, and become RGB: palettes are looked up, CMYK is converted, transparency is dropped. If every image
    is greyscale, or black and white, one channel is kept. Of a photograph that carries a second, small picture (MPO),
    the first is taken.

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
            frames, 16 bits a channel, or another size than the first one; for a class without images, in one split
            only, or whose name differs from another one in its Unicode normal form only; for a file where a folder is
            expected, or the other way round; for a link, a device, a file above 256 MiB, a name that is not Unicode.
    """
    return _class_folders(path, path, image_size)


@contextmanager
def archive(
    path: Path, expected_sha256: str | None, place: Path | None = None, image_size: int | None = None
) -> Iterator[Dataset]:
    """Unpack an archive of class folders and read them as `folder` does, for the time of a block.

    It is a .zip, or a .tar that may be compressed by gzip, bzip2 or xz: its first bytes count, not its extension.
    {train,test} stand at the top or in the one folder there.

    Args:
        path: The archive.
        expected_sha256: Its hash, if it is known.
        place: Where to unpack it to; by default where temporary files are.
        image_size: As in `folder`.

    Yields:
        The images, each decoded when it is asked for.

    Raises:
        UserError: As in `folder`; also for names that lead out of the archive, stand there twice, or in a .zip have
            backslashes or an unknown encoding; if it unpacks to more than 32 GiB, has more than 65,536 folders, is
            damaged, or its sha256 is not the expected one.
    """
    if not path.is_file():
        raise UserError(f"{path}: not there; give another data.path, {OTHERWISE}")
    if expected_sha256 is not None and (found := sha256(path)) != expected_sha256.lower():
        raise UserError(f"{path}: sha256 is {found}, data.sha256 says {expected_sha256}; fetch it again, {OTHERWISE}")
    with tempfile.TemporaryDirectory(dir=place) as temporary:
        top = Path(temporary)
        with _unpacking(path):
            _unpack(path, top)
        inside = [found for found in top.iterdir() if found.is_dir()]
        if len(inside) == 1 and inside[0].name not in ("train", "test", "val"):
            path, top = path / inside[0].name, inside[0]
        yield _class_folders(path, top, image_size)


class Member(NamedTuple):
    """What stands at a path in an archive: a file, a folder, or anything else."""

    path: PurePosixPath
    mode: int  # its type, as os.stat has it
    size: int
    extract: Callable[[Path], object]  # to a folder


@contextmanager
def _unpacking(name: Path) -> Iterator[None]:
    """Say of an archive or of one of its members why it cannot be unpacked."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(f"{name}: cannot be unpacked ({error}); fetch the archive again, {OTHERWISE}") from None


def _unpack(source: Path, top: Path) -> None:
    """Unpack all files and folders but the ignored ones; UserError at the first member that is refused."""
    files: set[PurePosixPath] = set()
    folders = total = 0
    with closing(_members(source)) as members:
        for path, mode, size, extract in members:
            total, folders = total + size, folders + stat.S_ISDIR(mode)
            if total > MAX_ARCHIVE_BYTES or folders > MAX_FOLDERS:
                most = f"{MAX_ARCHIVE_BYTES >> 30} GiB or {MAX_FOLDERS} folders"
                raise UserError(f"{source}: unpacks to more than {most}, with {path}; take fewer images")
            if not path.parts or _is_ignored(path):
                continue
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{source}/{path}: leads out of the archive")
            _refuse(source, path, mode, size)
            if path in files:
                raise UserError(f"{source}/{path}: is there twice; remove one")
            with _unpacking(source / path):
                if stat.S_ISDIR(mode):
                    (top / path).mkdir(parents=True, exist_ok=True)
                else:
                    files.add(path)
                    extract(top)


def _members(source: Path) -> Generator[Member, None, None]:
    """Name what an archive holds, and read it to its end; its first bytes tell its kind."""
    with source.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        yield from _in_zip(source)
        return
    kinds = [kind for begin, kind in COMPRESSED.items() if head.startswith(begin)]
    if not kinds and not _is_tar_header(head):
        raise UserError(f"{source}: no archive, begins with {head[:40]!r}; fetch it again, {OTHERWISE}")
    with _Bounded(kinds[0](source) if kinds else source.open("rb", buffering=0)) as stream:
        yield from _in_tar(stream)


def _is_tar_header(block: bytes) -> bool:
    try:
        return bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    except tarfile.HeaderError:
        return block == bytes(tarfile.BLOCKSIZE)  # of an archive without members


class _Bounded(io.BufferedReader):
    """Reads at most `left` bytes: what a header says of its own length is read at once, however much it is."""

    left = MAX_HEADER_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size if size is None or size < 0 else min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        return content


def _in_tar(stream: _Bounded) -> Iterator[Member]:
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while member := tar.next():
            mode = stat.S_IFREG if member.isfile() else stat.S_IFDIR if member.isdir() else 0
            stream.left = MAX_ARCHIVE_BYTES
            yield Member(PurePosixPath(member.name), mode, member.size, partial(tar.extract, member, filter="data"))
            stream.left = MAX_HEADER_BYTES
        stream.seek(tar.offset)  # tarfile takes a damaged header for the end
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut off after {tar.offset} bytes")
        stream.left = MAX_ARCHIVE_BYTES
        while stream.read(2**20):  # to its end, where a compressed stream has its checksum
            pass


def _in_zip(source: Path) -> Iterator[Member]:
    with zipfile.ZipFile(source) as zipped:
        for member in zipped.infolist():
            name, marked_as_utf8 = member.orig_filename, member.flag_bits & 0x800
            if "\\" in name or not (name.isascii() or marked_as_utf8):
                wrong = "has backslashes" if "\\" in name else "is neither ASCII nor marked as UTF-8"
                raise UserError(f"{source}/{name}: its name {wrong}; pack it again by another program, or as .tar")
            mode = stat.S_IFMT(member.external_attr >> 16) or (stat.S_IFDIR if member.is_dir() else stat.S_IFREG)
            yield Member(PurePosixPath(member.filename), mode, member.file_size, partial(zipped.extract, member))


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


def _class_folders(source: Path, top: Path, image_size: int | None) -> Dataset:
    """Read the class folders in `top`; messages name them as `source`, which is where a person knows them."""
    test = "val" if (top / "val").exists() and not (top / "test").exists() else "test"
    groups = {part: _by_class(source, top, part) for part in ("train", test)}
    _compare(source, groups)
    files = {part: [path for images in classes.values() for path in images] for part, classes in groups.items()}
    shape = _common_shape(source, top, files["train"] + files[test], image_size)
    splits = []
    for part, classes in groups.items():
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(images) for images in classes.values()])
        splits.append(Split(Decoded(source, top, files[part], image_size, shape), labels))
    return Dataset(splits[0], splits[1], tuple(groups["train"]))


def _by_class(source: Path, top: Path, part: str) -> dict[str, list[PurePosixPath]]:
    """List the images of a split by class; both in the order of their names."""
    classes: dict[str, list[PurePosixPath]] = {}
    for found in sorted((top / part).rglob("*")):  # which follows no links
        path, status = PurePosixPath(found.relative_to(top)), found.lstat()
        if _is_ignored(path):
            continue
        _refuse(source, path, status.st_mode, status.st_size)
        is_file, below = stat.S_ISREG(status.st_mode), path.parts[1:]
        if len(below) != 2 if is_file else len(below) != 1:
            kind = "file" if is_file else "folder"
            raise UserError(f"{source / path}: a {kind} out of place in {LAYOUT}; move it away")
        classes.setdefault(below[0], []).extend([path] if is_file else [])
    if not classes:
        there = sorted(path.name for path in top.glob("[!.]*"))[:9]
        found_there = f"expected {LAYOUT}, found {there} in {source.name}"
        raise UserError(f"{source / part}: no class folders; {found_there}; give another data.path, {OTHERWISE}")
    return classes


def _compare(source: Path, groups: dict[str, dict[str, list[PurePosixPath]]]) -> None:
    """Raise UserError unless both splits have the same classes, at least two, each with images."""
    names = sorted({name for classes in groups.values() for name in classes})
    for first, second in pairwise(sorted(names, key=partial(unicodedata.normalize, "NFC"))):
        if unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second):
            differ = "differ in their Unicode normal form only; give them one name"
            raise UserError(f"{source}: the classes {first!a} and {second!a} {differ}")
    for part, classes in groups.items():
        if missing := [name for name in names if name not in classes]:
            raise UserError(f"{source / part}: class {missing[0]!r} has no folder here; both splits need every class")
        if empty := [name for name, images in classes.items() if not images]:
            raise UserError(f"{source / part / empty[0]}: a class without images; add some, or remove it from both")
    if len(names) < 2:
        raise UserError(f"{source / 'train'}: one class folder, at least two are needed")


def _common_shape(
    source: Path, top: Path, files: Sequence[PurePosixPath], image_size: int | None
) -> tuple[int, int, int]:
    """Find height, width and channels of all images, of which only the heads are read."""
    first, channels = None, 1
    for path in tqdm(files, desc=f"looking at {source.name}", unit="image", disable=None, leave=False):
        with _opened(source / path, top / path) as image:
            width, height = image.size[::-1] if _orientation(image) >= TURNED else image.size
            channels = max(channels, 1 if image.mode in GREYSCALE else 3)
        first = first or (width, height)
        if (width, height) != first and image_size is None:
            raise UserError(
                f"{source / path}: {width} x {height} pixels, {files[0]} has {first[0]} x {first[1]}; all images must "
                "have one size: data.image_size: 64 would make them 64 x 64"
            )
    return image_size or height, image_size or width, channels


@dataclass(frozen=True)
class Decoded(Images):
    """Images that are decoded when they are asked for, one after the other, to pixels of one shape.

    They lie in `top`; messages name it as `source`, which is where a person knows them.
    """

    source: Path
    top: Path
    files: Sequence[PurePosixPath]
    image_size: int | None
    image_shape: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return how many images there are, their height, width and channels."""
        return len(self.files), *self.image_shape

    def __getitem__(self, at: slice | NDArray[np.intp], /) -> NDArray[np.uint8]:
        places = np.arange(len(self.files))[at]
        pixels = np.empty((len(places), *self.image_shape), dtype=np.uint8)
        for image, place in zip(pixels, places, strict=True):
            image[:] = self._decode(self.files[place])  # greyscale to all channels
        return pixels

    def _decode(self, path: PurePosixPath) -> NDArray[np.uint8]:
        """Decode an image to pixels [height, width, 1 or 3], upright, resized and cropped where that is asked for."""
        with _opened(self.source / path, self.top / path) as image:
            upright = ImageOps.exif_transpose(image) if _orientation(image) > 1 else image
            converted = upright.convert("L" if image.mode in GREYSCALE else "RGB")
            pixels = np.asarray(resized(converted, self.image_size) if self.image_size else converted)
        return pixels.reshape(*pixels.shape[:2], -1)


def _orientation(image: Image.Image) -> int:
    """Read the orientation tag; 1, upright, where there is none that can be read.

    Of a PNG only if it stands before the pixels: Pillow's own method for it would decode them.
    """
    try:
        return int(Image.Image.getexif(image).get(ORIENTATION, 1))
    except Exception:  # whatever is raised for metadata that anyone may have made: a viewer ignores it
        return 1


def resized(image: Image.Image, size: int) -> Image.Image:
    """Resize an image so that its shorter side has `size` pixels, bilinear and antialiased, and crop its centre."""
    from torchvision.transforms import functional

    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError("too narrow to be resized")
    shorter = functional.resize(image, [size], functional.InterpolationMode.BILINEAR, antialias=True)
    return functional.center_crop(shorter, [size])


@contextmanager
def _opened(name: Path, file: Path) -> Iterator[Image.Image]:
    """Open an image to decode it in a block; messages call it by `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                    raise UserError(f"{name}: several frames, one is expected; keep one")
                if ";16B" in str(image.tile):  # Pillow itself would drop the lower half of a colour image
                    raise UserError(f"{name}: 16 bits a channel; convert it to 8 first")
                yield image
    except UserError:
        raise
    except Exception as error:  # whatever the decoders raise for bytes that anyone may have made
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        expected = f"expected {', '.join(FORMATS)}: remove or replace it"
        raise UserError(f"{name}: not an image that can be read ({reason}); {expected}") from None
