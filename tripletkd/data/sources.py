"""Where images come from: a torchvision data set, class folders, an archive of them, or scikit-learn's digits."""

import bz2
import errno
import gzip
import http.client
import io
import lzma
import pickle  # nosec B403
import shutil
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
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any, NamedTuple

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
OPENERS: dict[bytes, Callable[[Path], io.BufferedIOBase | io.RawIOBase]] = {  # by a file's first bytes
    b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ\0": lzma.LZMAFile, b"": io.FileIO,
}  # fmt: skip
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
    labels, half = bunch.target.astype(np.int64), len(images) // 2
    first, second = (Split(images[part], labels[part]) for part in (slice(half), slice(half, None)))
    return Dataset(first, second, tuple(map(str, bunch.target_names)))


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
    from torchvision.datasets.utils import check_integrity

    # Sets with a `split` argument name the two parts; the others have a `train` flag.
    by_split = {"SVHN", "STL10"}
    known = {"CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"} | by_split
    if name not in known:
        raise UserError(f"data.name: {name!r} is no torchvision data set known here; expected one of {sorted(known)}")
    kind, parts = getattr(library, name), {}
    file = kind.filename if hasattr(kind, "tgz_md5") else None  # of the sets that are one archive
    with tempfile.TemporaryDirectory(dir=folder) as new:
        if path and file is None:
            raise UserError(f"data.path: found with data.name: {name}, which is not one archive; leave it out")
        if path and not check_integrity(path, kind.tgz_md5):
            wrong = f"is not {file}, whose md5 is {kind.tgz_md5}" if path.is_file() else "not there"
            raise UserError(f"{path}: {wrong}; give another data.path, or none to download {file}")
        if path:
            Path(new, kind.filename).symlink_to(path.resolve())
        for part in ("train", "test"):
            try:
                where = {"split": part} if name in by_split else {"train": part == "train"}
                parts[part] = kind(root=new, download=True, **where)
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                reason = " ".join(str(error).split())  # MNIST's has a line for each mirror
                found = "is not the file torchvision knows by its md5" if "corrupted" in reason else "is out of reach"
                at_hand = f"give {file}, if you have it, as data.path, " if file else ""
                advice = f"try again, {at_hand}take class folders of it (data.source: folder or archive), {OTHERWISE}"
                raise UserError(f"{name}: {_address(kind, part)} {found} ({reason}); {advice}") from None
        train, test = (_from_torchvision(part, f"{name}, {title}") for title, part in parts.items())
    classes = getattr(parts["train"], "classes", None) or np.unique(train.labels)
    return Dataset(train, test, tuple(map(str, classes)))


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


def folder(path: Path, image_size: int | None = None, short_side: int | None = None) -> Dataset:
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
        short_side: Pixels of the shorter side of photographs that are to stay encoded, of any sizes; None to decode.

    Returns:
        The images, each decoded when it is asked for, or encoded: data.photographs.save writes those.

    Raises:
        UserError: With the file's name, for an image that cannot be decoded (some when they are asked for), has several
            frames, 16 bits a channel, or another size than the first one; for a class without images, in one split
            only, or whose name differs from another one in its Unicode normal form only; for a file where a folder is
            expected, or the other way round; for a link, a device, a file above 256 MiB, a name that is not Unicode.
    """
    test = "val" if (path / "val").exists() and not (path / "test").exists() else "test"
    groups = {part: _by_class(path, part) for part in ("train", test)}
    _compare(path, groups)
    files = {part: list(chain.from_iterable(classes.values())) for part, classes in groups.items()}
    shape = _common_shape(files["train"] + files[test], image_size) if short_side is None else (0, 0, 3)

    def split(part: str) -> Split:
        counts = [len(images) for images in groups[part].values()]
        stored = Decoded(files[part], image_size, shape) if short_side is None else Originals(files[part], short_side)
        return Split(stored, np.repeat(np.arange(len(counts), dtype=np.int64), counts))

    return Dataset(split("train"), split(test), tuple(groups["train"]))


@contextmanager
def archive(
    path: Path, expected_sha256: str | None, place: Path, image_size: int | None = None, short_side: int | None = None
) -> Iterator[Dataset]:
    """Unpack an archive of class folders and read them as `folder` does, for the time of a block.

    It is a .zip, or a .tar that may be compressed by gzip, bzip2 or xz: its first bytes count, not its extension.
    {train,test} stand at the top or in the one folder there.

    Args:
        path: The archive.
        expected_sha256: Its hash, if it is known.
        place: Where to unpack it to, in a folder that is removed.
        image_size: As in `folder`.
        short_side: As in `folder`.

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
        _unpack(path, top)
        inside = [found for found in top.iterdir() if found.is_dir()]
        nested = len(inside) == 1 and inside[0].name not in ("train", "test", "val")
        try:
            yield folder(inside[0] if nested else top, image_size, short_side)
        except UserError as error:  # a person knows the archive, and not where it was unpacked
            raise UserError(str(error).replace(str(top), str(path))) from None


class Member(NamedTuple):
    """What stands at a path in an archive: a file, a folder, or anything else."""

    path: PurePosixPath
    mode: int  # its type, as os.stat has it
    size: int
    open: Callable[[], IO[bytes] | None]


def _unpack(source: Path, top: Path) -> None:
    """Unpack all files and folders but the ignored ones; UserError at the first member that is refused."""
    place, folders, total = source, 0, 0
    with source.open("rb") as file:
        head = file.read(20)
    try:
        with closing(_in_zip(source) if head.startswith((b"PK\3\4", b"PK\5\6")) else _in_tar(source, head)) as members:
            for member in members:
                total, folders = total + member.size, folders + stat.S_ISDIR(member.mode)
                if total > MAX_ARCHIVE_BYTES or folders > MAX_FOLDERS:
                    most = f"{MAX_ARCHIVE_BYTES >> 30} GiB or {MAX_FOLDERS} folders"
                    raise UserError(f"{source}: unpacks to more than {most}, with {member.path}; take fewer images")
                if member.path.is_absolute() or ".." in member.path.parts:
                    raise UserError(f"{source}/{member.path}: leads out of the archive")
                if not _is_ignored(member.path):
                    place = source / member.path
                    _refuse(place, member.mode, member.size)
                    _write(member, top / member.path)
                place = source
    except FileExistsError:
        raise UserError(f"{place}: is there twice; remove one") from None
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        again = f"fetch the archive again, which begins with {head!r}, {OTHERWISE}"
        raise UserError(f"{place}: cannot be unpacked ({error}); {again}") from None


def _write(member: Member, path: Path) -> None:
    """Write a member as a plain file or folder: what is never a link leads nowhere else."""
    folder = path if stat.S_ISDIR(member.mode) else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if folder != path and (packed := member.open()):
        with packed, path.open("xb") as file:
            shutil.copyfileobj(packed, file)


class _Bounded(io.BufferedReader):
    """Reads at most `left` bytes: what a header says of its own length is read at once, however much it is."""

    left = MAX_HEADER_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size if size is None or size < 0 else min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        return content


def _in_tar(source: Path, head: bytes) -> Generator[Member, None, None]:
    """Name the members, and read the archive to its end."""
    opener = next(opener for begin, opener in OPENERS.items() if head.startswith(begin))
    with _Bounded(opener(source)) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        while member := tar.next():
            mode = stat.S_IFREG if member.isfile() else stat.S_IFDIR if member.isdir() else 0
            stream.left = MAX_ARCHIVE_BYTES
            yield Member(PurePosixPath(member.name), mode, member.size, partial(tar.extractfile, member))
            stream.left = MAX_HEADER_BYTES
        stream.seek(tar.offset)  # tarfile takes a damaged header for the end
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"damaged or cut off after {tar.offset} bytes")
        stream.left = MAX_ARCHIVE_BYTES
        while stream.read(2**20):  # to its end, where a compressed stream has its checksum
            pass


def _in_zip(source: Path) -> Generator[Member, None, None]:
    with zipfile.ZipFile(source) as zipped:
        for member in zipped.infolist():
            name, marked_as_utf8 = member.orig_filename, member.flag_bits & 0x800
            if "\\" in name or not (name.isascii() or marked_as_utf8):
                wrong = "its name has backslashes, or is neither ASCII nor marked as UTF-8"
                raise UserError(f"{source}/{name}: {wrong}; pack it again by another program, or as .tar")
            mode = stat.S_IFMT(member.external_attr >> 16) or (stat.S_IFDIR if member.is_dir() else stat.S_IFREG)
            yield Member(PurePosixPath(member.filename), mode, member.file_size, partial(zipped.open, member))


def _is_ignored(path: PurePath) -> bool:
    return any((name.startswith(".") and name != "..") or name in IGNORED for name in path.parts)


def _refuse(path: Path, mode: int, size: int) -> None:
    """Raise UserError for what is refused wherever it stands in a folder or an archive."""
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path}: a link or a device; plain files and folders are expected")
    if stat.S_ISREG(mode) and size > MAX_FILE_BYTES:
        raise UserError(f"{path}: {size} bytes; more than {MAX_FILE_BYTES} are refused")
    if str(path).encode(errors="replace").decode() != str(path):
        raise UserError(f"{path}: its name is not Unicode; rename it")


def _by_class(top: Path, part: str) -> dict[str, list[Path]]:
    """List the images of a split by class; both in the order of their names."""
    classes: dict[str, list[Path]] = {}
    for path in sorted((top / part).rglob("*")):  # which follows no links
        within, status = path.relative_to(top / part), path.lstat()
        if _is_ignored(within):
            continue
        _refuse(path, status.st_mode, status.st_size)
        is_file = stat.S_ISREG(status.st_mode)
        if len(within.parts) != (2 if is_file else 1):
            raise UserError(f"{path}: a {'file' if is_file else 'folder'} out of place in {LAYOUT}; move it away")
        classes.setdefault(within.parts[0], []).extend([path] if is_file else [])
    if not classes:
        found = f"expected {LAYOUT}, found {sorted(path.name for path in top.glob('[!.]*'))[:9]} in {top}"
        raise UserError(f"{top / part}: no class folders; {found}; give another data.path, {OTHERWISE}")
    return classes


def _compare(top: Path, groups: dict[str, dict[str, list[Path]]]) -> None:
    """Raise UserError unless both splits have the same classes, at least two, each with images."""
    names = sorted({name for classes in groups.values() for name in classes})
    normal: dict[str, str] = {}
    for name in names:
        if (other := normal.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            differ = "differ in their Unicode normal form only; give them one name"
            raise UserError(f"{top}: the classes {other!a} and {name!a} {differ}")
    for part, classes in groups.items():
        if missing := [name for name in names if name not in classes]:
            raise UserError(f"{top / part}: class {missing[0]!r} has no folder here; both splits need every class")
        if empty := [name for name, images in classes.items() if not images]:
            raise UserError(f"{top / part / empty[0]}: a class without images; add some, or remove it from both")
    if len(names) < 2:
        raise UserError(f"{top / 'train'}: one class folder, at least two are needed")


def _common_shape(files: Sequence[Path], image_size: int | None) -> tuple[int, int, int]:
    """Find height, width and channels of all images, of which only the heads are read."""
    first, channels = None, 1
    for path in tqdm(files, desc="looking at sizes", unit="image", disable=None, leave=False):
        with opened(path) as image:
            width, height = image.size[::-1] if _orientation(image) >= TURNED else image.size
            channels = max(channels, 1 if image.mode in GREYSCALE else 3)
        first = first or (width, height)
        if (width, height) != first and image_size is None:
            raise UserError(
                f"{path}: {width} x {height} pixels, {files[0]} has {first[0]} x {first[1]}; all images must "
                "have one size: data.image_size: 64 would make them 64 x 64"
            )
    return image_size or height, image_size or width, channels


@dataclass(frozen=True)
class Originals(Images):
    """Photographs that data.photographs.save encodes; nothing asks for their pixels."""

    files: Sequence[Path]
    short_side: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Return how many there are; of their sizes nothing is known."""
        return len(self.files), 0, 0, 3

    def __getitem__(self, at: slice | NDArray[np.intp], /) -> NDArray[np.uint8]:
        raise NotImplementedError


@dataclass(frozen=True)
class Decoded(Images):
    """Images that are decoded when they are asked for, one after the other, to pixels of one shape."""

    files: Sequence[Path]
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

    def _decode(self, path: Path) -> NDArray[np.uint8]:
        """Decode an image to pixels [height, width, 1 or 3], upright, resized and cropped where that is asked for."""
        with opened(path) as image:
            converted = upright(image).convert("L" if image.mode in GREYSCALE else "RGB")
            pixels = np.asarray(resized(converted, self.image_size) if self.image_size else converted)
        return pixels.reshape(*pixels.shape[:2], -1)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image upright as its EXIF orientation tag says."""
    return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image


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

    return functional.center_crop(shorter(image, size), [size])


def shorter(image: Image.Image, size: int) -> Image.Image:
    """Resize an image so that its shorter side has `size` pixels, bilinear and antialiased."""
    from torchvision.transforms import functional

    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError("too narrow to be resized")
    return functional.resize(image, [size], functional.InterpolationMode.BILINEAR, antialias=True)


@contextmanager
def opened(path: Path | str, file: IO[bytes] | None = None) -> Iterator[Image.Image]:
    """Open an image to decode it in a block, with one message for whatever is wrong with it.

    Its bytes are those of `file`, where there is one; messages name the path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file or path, formats=FORMATS) as image:
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                    raise UserError(f"{path}: several frames, one is expected; keep one")
                if ";16B" in str(image.tile):  # Pillow itself would drop the lower half of a colour image
                    raise UserError(f"{path}: 16 bits a channel; convert it to 8 first")
                yield image
    except UserError:
        raise
    except Exception as error:  # whatever the decoders raise for bytes that anyone may have made
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        expected = f"expected {', '.join(FORMATS)}: remove or replace it"
        raise UserError(f"{path}: not an image that can be read ({reason}); {expected}") from None
