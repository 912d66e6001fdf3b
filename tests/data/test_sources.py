"""Whatever the images come from: exact pixels, or one message that names the file; and nothing half-written."""

import bz2
import errno
import gc
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
import torchvision
from conftest import ROOT
from PIL import Image
from served import Contents, Pixels, Server, in_tar, random_pixels, serving, small

from stages import fetch
from tripletkd.data import dataset as data
from tripletkd.data import sources
from tripletkd.errors import UserError
from tripletkd.pipeline.stage import run

# torchvision leaves connections that failed to the collector; the server's fixture calls it while they are ignored
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def encoded(image: Pixels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def patched(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def changed(at: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :]


def in_zip(path: Path, contents: Contents, *more: tuple[zipfile.ZipInfo, bytes], **first: int) -> Path:
    """Whose directory says of its first member what it is not."""
    members: list[tuple[str | zipfile.ZipInfo, bytes]] = [*contents.items(), *more]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for member, content in members:
            zipped.writestr(member, content)
        for key, value in first.items():
            setattr(zipped.filelist[0], key, value)
    return path


def in_folder(path: Path, contents: Contents) -> Path:
    for name, content in contents.items():
        file = path / name
        (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            file.write_bytes(content)
    return path


def in_memory(dataset: data.Dataset) -> data.Dataset:
    train, test = (data.Split(split.images, split.labels) for split in (dataset.train, dataset.test))
    return data.Dataset(train, test, dataset.classes)


def from_archive(path: Path, sha256: str | None = None, image_size: int | None = None) -> data.Dataset:
    with sources.archive(path, sha256, path.parent, image_size) as dataset:
        return in_memory(dataset)


def read(tmp_path: Path, contents: Contents, kind: str = "folder", image_size: int | None = None) -> data.Dataset:
    path = tmp_path / f"images.{kind}"
    if kind == "folder":
        return in_memory(sources.folder(in_folder(path, contents), image_size))
    return from_archive(in_zip(path, contents) if kind == "zip" else in_tar(path, contents), None, image_size)


def assert_holds(dataset: data.Dataset, images: dict[str, Pixels]) -> None:
    """In the order of sorted paths: test, then train."""
    found_images = [*dataset.test.images, *dataset.train.images]
    for found, (path, expected) in zip(found_images, sorted(images.items()), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=path)


# --- class folders and archives of them -------------------------------------------------------------------------------

CLASSES = ("A", "a", "ねこ")  # names are compared exactly
IMAGES = {f"{p}/{name}/{i}.png": random_pixels(8, 8, 3) for p in ("train", "test") for name in CLASSES for i in "12"}
GOOD = {path: encoded(image) for path, image in IMAGES.items()}
FIRST = "train/a/1.png"
IGNORED = (
    ".DS_Store train/.git/config train/a/.hidden.png __MACOSX/train/a/1 train/Thumbs.db test/a/desktop.ini README.md"
)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_class_folders_give_exact_pixels_in_the_order_of_names(kind: str, tmp_path: Path) -> None:
    """A tar that ends with a zip is a tar all the same."""
    within = {"valid/a/1.png": b"x", "zz.zip": in_zip(tmp_path / "within.zip", {"x": b"y"}).read_bytes()}
    dataset = read(tmp_path, dict.fromkeys(IGNORED.split(), b"x") | dict(reversed(GOOD.items())) | within, kind)
    assert_holds(dataset, IMAGES)
    assert dataset.classes == CLASSES
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_may_hold_everything_in_one_folder_and_a_file_beside_it(kind: str, tmp_path: Path) -> None:
    nested = {f"./cifar/{path}": content for path, content in ({"train/": b""} | GOOD).items()}
    nested |= {"./": b"", "._cifar": b"x", "README.md": b"x"}
    assert_holds(read(tmp_path, nested, kind), IMAGES)
    with pytest.raises(UserError, match=rf"{tmp_path}/images\.{kind}/cifar/train/a/0.txt: not an image"):
        read(tmp_path, {**nested, "cifar/train/a/0.txt": b"x"}, kind)


def test_val_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    """ImageNet's layout."""
    renamed = {path.replace("test/", "val/").replace(".png", ".JPEG"): content for path, content in GOOD.items()}
    assert_holds(read(tmp_path, renamed, "tar"), IMAGES)
    assert_holds(read(tmp_path, GOOD | {"val/c/1.png": b""}), IMAGES)


COLORS, ALPHA, GREY = random_pixels(8, 8, 3), random_pixels(8, 8, 4), random_pixels(8, 8)
PALETTE, CMYK = Image.fromarray(COLORS).quantize(4), encoded(Image.fromarray(ALPHA, "CMYK"), "JPEG")
FRAMES = [Image.fromarray(random_pixels(8, 8, 3)) for _ in range(2)]
MANY: dict[str, Any] = {"save_all": True, "append_images": FRAMES[1:]}
BLACK_AND_WHITE = Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)
CONVERTED: dict[str, tuple[bytes, Pixels]] = {
    "greyscale among color": (encoded(GREY), np.stack([GREY] * 3, axis=-1)),
    "black and white": (encoded(BLACK_AND_WHITE), np.stack([(GREY > 127) * 255] * 3, -1)),
    "palette with transparency": (encoded(PALETTE, transparency=b"\x00\x80"), np.asarray(PALETTE.convert("RGB"))),
    "alpha channel": (encoded(ALPHA), ALPHA[..., :3]),
    "CMYK": (CMYK, decoded(CMYK)),
    "BMP": (encoded(COLORS, "BMP"), COLORS),
    "GIF of one frame": (encoded(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
    "lossless WebP": (encoded(COLORS, "WEBP", lossless=True), COLORS),
    "a phone's JPEG with a second picture": (encoded(FRAMES[0], "MPO", **MANY), decoded(encoded(FRAMES[0], "JPEG"))),
}


@pytest.mark.fault
def test_an_odd_image_is_converted_as_documented(tmp_path: Path) -> None:
    """All are called .png."""
    contents = {f"train/a/{case}.png": content for case, (content, _) in CONVERTED.items()}
    expected = {f"train/a/{case}.png": pixels for case, (_, pixels) in CONVERTED.items()}
    assert_holds(read(tmp_path, GOOD | contents), IMAGES | expected)


def test_images_that_are_all_greyscale_keep_one_channel(tmp_path: Path) -> None:
    grey = {path: np.ascontiguousarray(image[..., 0]) for path, image in IMAGES.items()}
    with_alpha = {FIRST: encoded(Image.merge("LA", [Image.fromarray(grey[FIRST])] * 2))}
    dataset = read(tmp_path, {path: encoded(image) for path, image in grey.items()} | with_alpha)
    assert_holds(dataset, {path: image[..., None] for path, image in grey.items()})


def test_photographs_are_upright_as_their_exif_tag_says(tmp_path: Path) -> None:
    """Their size, too, is the one that a viewer shows."""
    upright, lying, how = {path: random_pixels(4, 6, 3) for path in IMAGES}, {}, Image.Transpose
    mirrored = (how.FLIP_LEFT_RIGHT, how.ROTATE_180, how.FLIP_TOP_BOTTOM)
    turns = (*mirrored, how.TRANSPOSE, how.ROTATE_90, how.TRANSVERSE, how.ROTATE_270)  # in the file; tags from 2 on
    for place, (path, pixels) in enumerate(upright.items()):
        exif, image = Image.Exif(), Image.fromarray(pixels)
        exif[0x0112] = place + 1
        lying[path] = encoded(image.transpose(turns[place - 1]), exif=exif) if 0 < place < 8 else encoded(image)
    assert_holds(read(tmp_path, lying), upright)


SIZES = [(30, 40), (40, 30), (21, 21)]
PHOTOS = {path: Image.fromarray(random_pixels(*SIZES[i % 3], 3)) for i, path in enumerate(IMAGES)}


def test_images_of_many_sizes_are_resized_and_cropped_as_torchvision_does(tmp_path: Path) -> None:
    """Greyscale among them, and one that is smaller than asked for; a line of pixels would become a huge image."""
    photos = PHOTOS | {"train/a/2.png": Image.fromarray(random_pixels(5, 6))}
    contents = {path: encoded(photo) for path, photo in photos.items()}
    rule = torchvision.transforms.Compose([torchvision.transforms.Resize(10), torchvision.transforms.CenterCrop(10)])
    expected = {path: np.asarray(rule(photo).convert("RGB")) for path, photo in photos.items()}
    assert_holds(read(tmp_path, contents, "zip", image_size=10), expected)
    with pytest.raises(UserError, match=r"train/a/1.png: .*\(too narrow to be resized\)"):
        read(tmp_path, contents | {FIRST: encoded(random_pixels(1, 101, 3))}, image_size=10)


def png(width: int, height: int, bits: int) -> bytes:
    """An RGB PNG that claims that size, and so many bits a channel."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return GOOD[FIRST][:12] + header + struct.pack(">I", zlib.crc32(header)) + GOOD[FIRST][33:]


ONLY_A = {path: content for path, content in GOOD.items() if "/a/" in path}
LOOK_ALIKE = {f"{part}/{name}/1.png": GOOD[FIRST] for part, name in (("train", "caf\u00e9"), ("test", "cafe\u0301"))}
BAD_FOLDERS: list[tuple[Contents, str]] = [
    (GOOD | {FIRST: GOOD[FIRST][:-40]}, "train/a/1.png: not an image that can be read"),
    (GOOD | {FIRST: changed(60)(GOOD[FIRST])}, "train/a/1.png: not an image that can be read"),
    (GOOD | {FIRST: b""}, r"train/a/1.png: not an image .*unknown format.* expected PNG, JPEG"),
    (GOOD | {FIRST: encoded(COLORS, "EPS")}, "train/a/1.png: not an image"),
    (GOOD | {FIRST: encoded(Image.fromarray(GREY.astype(np.uint16)))}, "train/a/1.png: 16 bits a channel"),
    (GOOD | {FIRST: png(8, 8, 16)}, "train/a/1.png: 16 bits a channel"),
    (GOOD | {FIRST: encoded(FRAMES[0], "GIF", **MANY)}, "train/a/1.png: several frames"),
    (GOOD | {FIRST: encoded(random_pixels(8, 9, 3))}, r"\d.png: \d x 8 pixels, \S+ has .*data.image_size: 64 would"),
    (GOOD | {FIRST: png(10_000, 9_500, 8)}, "train/a/1.png: .*decompression bomb"),
    (ONLY_A, "train: one class folder, at least two"),
    (ONLY_A | {"train/b/1.png": GOOD[FIRST]}, "test: class 'b' has no folder"),
    (GOOD | LOOK_ALIKE, r"'cafe\\u0301' and 'caf\\xe9' differ in their Unicode normal form only"),
    (GOOD | {"train/c/": b"", "test/c/": b""}, "train/c: a class without images"),
    ({"README.md": b""}, r"train: no class folders; expected {train,test}/<class>/<image>, found \['README.md'\]"),
    (GOOD | {"train/labels.csv": b"x"}, "train/labels.csv: a file out of place"),
    (GOOD | {"train/a/more/1.png": GOOD[FIRST]}, "train/a/more: a folder out of place"),
]


@pytest.mark.fault
@pytest.mark.parametrize(("contents", "message"), BAD_FOLDERS, ids=[message for _, message in BAD_FOLDERS])
def test_a_bad_folder_gives_one_message_that_names_the_file(contents: Contents, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as found:
        read(tmp_path, contents)
    assert str(found.value).startswith(str(tmp_path)) and "\n" not in str(found.value)


@pytest.mark.fault
def test_a_link_a_pipe_or_a_name_that_is_not_unicode_in_a_folder_is_refused(tmp_path: Path) -> None:
    in_folder(tmp_path, GOOD)
    writers: list[tuple[str, Callable[[Path], object], str]] = [
        ("0.png", lambda path: path.symlink_to(tmp_path / FIRST), "0.png: a link or a device"),
        ("0", lambda path: path.symlink_to(tmp_path / "train/A"), "0: a link or a device"),
        ("0.png", os.mkfifo, "0.png: a link or a device"),
        ("\udcff.png", lambda path: path.write_bytes(GOOD[FIRST]), "its name is not Unicode"),
    ]
    for name, write, message in writers:
        write(tmp_path / "train/a" / name)
        with pytest.raises(UserError, match=message):
            sources.folder(tmp_path)
        (tmp_path / "train/a" / name).unlink()


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in {"type": kind, **values}.items():
        setattr(info, key, value)
    return info


def unix(name: str, mode: int = 0) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr = name, mode << 16
    return info, b"1.png"


def tar(change: Callable[[bytes], bytes], *members: tarfile.TarInfo, **more: bytes) -> Callable[[Path], Path]:
    return lambda path: patched(in_tar(path, GOOD | more, *members), change)


def zipped(
    change: Callable[[bytes], bytes], *members: tuple[zipfile.ZipInfo, bytes], **first: int
) -> Callable[[Path], Path]:
    return lambda path: patched(in_zip(path, GOOD, *members, **first), change)


NEW = "train/a/3.png"
BAD_ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tar: absolute path": (tar(bytes, **{"/tmp/0.png": b""}), "/tmp/0.png: leads out"),  # noqa: S108
    "tar: symbolic link": (tar(bytes, member(NEW, tarfile.SYMTYPE, linkname="1.png")), "a/3.png: a link"),
    "tar: hard link": (tar(bytes, member(NEW, tarfile.LNKTYPE, linkname=FIRST)), "a/3.png: a link"),
    "tar: device": (tar(bytes, member(NEW, tarfile.CHRTYPE)), "a/3.png: a link or a device"),
    "tar: a file twice": (tar(bytes, member(FIRST)), "train/a/1.png: is there twice"),
    "tar: a huge size": (tar(lambda _: member(NEW, size=2**40).tobuf()), f"more than 32 GiB .* with {NEW}"),
    "tar: a long header": (tar(bytes, member(NEW, pax_headers={"a": "x" * 2**21})), "a header of more than 1048576 b"),
    "tar: without members": (lambda p: in_tar(p, {}), r"train: no class folders; .*found \[\]"),
    "tar: cut off in a member": (tar(lambda b: b[:2000]), "cannot be unpacked"),
    "tar: cut off between members": (tar(lambda b: b[:2048]), "cannot be unpacked"),
    "tar: a damaged header": (tar(changed(1024)), r"cannot be unpacked \(damaged or cut off after 1024 bytes\)"),
    "tar.gz: cut off": (tar(lambda b: gzip.compress(b)[:-9]), "cannot be unpacked .*; fetch the archive again"),
    "tar.gz: a changed byte": (tar(lambda b: changed(2000)(gzip.compress(b, 0))), r"unpacked \(CRC check failed"),
    "tar.bz2: half of it": (tar(lambda b: bz2.compress(b)[:1000]), "cannot be unpacked .Compressed file ended"),
    "tar.xz: half of it": (tar(lambda b: lzma.compress(b)[:1000]), "cannot be unpacked .Compressed file ended"),
    "zip: parent path": (zipped(bytes, unix("../0.png")), r"\.\./0.png: leads out"),
    "zip: link": (zipped(bytes, unix(NEW, 0o120777)), "train/a/3.png: a link"),
    "zip: a file twice": (zipped(bytes, (zipfile.ZipInfo(FIRST), b"")), "train/a/1.png: is there twice"),
    "zip: password": (zipped(bytes, flag_bits=1), "train/A/1.png: .*password required"),
    "zip: a huge size": (zipped(bytes, file_size=2**31 - 1), "train/A/1.png: 2147483647 bytes"),
    "zip: a changed byte": (zipped(changed(100)), "train/A/1.png: cannot be unpacked"),
    "zip: cut off": (zipped(lambda b: b[:-30]), "cannot be unpacked"),
    "zip: unknown encoding": (zipped(lambda b: b.replace(b"/A/", b"/\xe9/")), "nor marked as UTF-8; pack"),
    "zip: backslashes": (zipped(bytes, unix("train\\a\\3.png")), "3.png: its name has backslashes, .*; pack it again"),
    "a web page": (tar(lambda _: b"<html>Sign in</html>"), "unpacked .* begins with b'<html>Sign in</html>'"),
    "empty file": (tar(lambda _: b""), r"cannot be unpacked \(empty file\)"),
    "missing": (lambda p: p, "images.x: not there; give another data.path, or regenerate the digits suite"),
}


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_gives_one_message_that_names_the_member(case: str, tmp_path: Path) -> None:
    write, message = BAD_ARCHIVES[case]
    path = tmp_path / "images.x"
    write(path)
    with pytest.raises(UserError, match=message) as found:
        from_archive(path)
    assert str(found.value).startswith(str(path)) and "\n" not in str(found.value)
    assert set(tmp_path.iterdir()) <= {path}


@pytest.mark.fault
@pytest.mark.parametrize("most", ["MAX_ARCHIVE_BYTES", "MAX_FOLDERS"])
def test_an_archive_of_too_much_is_refused(most: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = in_zip(tmp_path / "images.zip", dict.fromkeys(GOOD, b"1234") | dict.fromkeys(["a/", "b/", "c/"], b""))
    monkeypatch.setattr(sources, most, {"MAX_ARCHIVE_BYTES": 20, "MAX_FOLDERS": 2}[most])
    with pytest.raises(UserError, match=r"images.zip: unpacks to more than .* (GiB|folders), with .*; take fewer"):
        from_archive(path)


@pytest.mark.fault
def test_an_archive_is_the_one_with_the_given_sha256(tmp_path: Path) -> None:
    path = in_tar(tmp_path / "images.tar", GOOD)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert from_archive(path, digest.upper()).classes == CLASSES
    with pytest.raises(UserError, match=f"images.tar: sha256 is {digest}, data.sha256 says 0000; fetch it again"):
        from_archive(path, "0000")


@pytest.mark.data
def test_true_images_keep_their_pixels(cifar: Path, tmp_path: Path) -> None:
    few = [
        "cifar10",
        "--per-class",
        "5",
        "--imagefolder",
        str(tmp_path / "images"),
        "--npz",
        str(tmp_path / "truth.npz"),
    ]
    subprocess.run([sys.executable, str(cifar / "unpack.py"), *few], check=True, capture_output=True)
    found, truth = in_memory(sources.folder(tmp_path / "images")), np.load(tmp_path / "truth.npz")
    for part, split in (("train", found.train), ("test", found.test)):
        np.testing.assert_array_equal(split.images, truth[f"x_{part}"])
        np.testing.assert_array_equal(split.labels, truth[f"y_{part}"])


# --- the canonical data set -------------------------------------------------------------------------------------------


def test_the_canonical_data_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    dataset = small()
    transposed = data.Split(dataset.test.images.transpose(0, 2, 1, 3), dataset.test.labels)  # not contiguous
    dataset = data.Dataset(dataset.train, transposed, dataset.classes)
    description = data.save(dataset, tmp_path, "a test")
    assert data.load(tmp_path).sha256() == dataset.sha256() == description["sha256"]
    images = np.concatenate([dataset.train.images, dataset.test.images])
    np.testing.assert_array_equal(np.load(tmp_path / data.IMAGES), images)
    np.testing.assert_array_equal(np.load(tmp_path / data.LABELS), [0, 0, 1, 1, 0, 0, 1, 1])
    assert json.loads((tmp_path / data.DESCRIPTION).read_text()) == json.loads(json.dumps(description))
    assert description["images_per_class"] == {"train": [2, 2], "test": [2, 2]}
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(description["train_mean"], pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(description["train_std"], pixels.std(axis=(0, 1, 2)), atol=1e-6)


@pytest.mark.fault
def test_more_images_than_the_disk_has_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(99, 95, 4))
    with pytest.raises(UserError, match=r"take 0\.0 GiB of disk, 0\.0 GiB are free: .*\(data.image_size\)"):
        data.save(small(), tmp_path, "a test")
    assert not list(tmp_path.iterdir())


@pytest.mark.fault
@pytest.mark.parametrize("name", [data.IMAGES, data.LABELS])
def test_no_damaged_file_is_read_as_another_data_set(name: str, tmp_path: Path) -> None:
    """Each byte changed in turn; but for spaces of the header, which say nothing."""
    data.save(small(), tmp_path, "a test")
    path = tmp_path / name
    whole = path.read_bytes()
    blank = range(whole.rindex(b"}", 0, 128) + 1, 128)
    for at in set(range(len(whole))) - set(blank):
        path.write_bytes(changed(at)(whole))
        with pytest.raises(UserError, match=r"(cannot be read|a file was changed).* run the fetch stage again"):
            data.load(tmp_path)
    for content in (b"", whole[:7], whole[:100], whole[:-1], gzip.compress(whole)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: cannot be read .*run the fetch stage again"):
            data.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}: not there; run `python -m stages.fetch suite="):
        data.load(tmp_path)


@pytest.mark.fault
def test_a_damaged_description_or_one_of_other_images_is_noticed(tmp_path: Path) -> None:
    description, counts = data.save(small(), tmp_path, "a test"), {"train": 4, "test": 5}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"classes": ["a", "b"]}, "a file was changed"),
        ({"classes": 1}, "dataset.json: cannot be read"),
        ({"sha256": "0"}, "a file was changed"),
        ({"images": {"train": 3, "test": 5}}, "a file was changed"),
        ({"images": counts}, r"images.npy: cannot be read .uint8 \(8, 2, 2, 3\), .*says .*\(9, 2, 2, 3\)"),
        ({"image_shape": [2, 2, 4]}, "images.npy: cannot be read"),
    ]
    cases = [(json.dumps(description | change).encode(), message) for change, message in changes]
    cases += [(content, "dataset.json: cannot be read") for content in (b"", b"{", b"[]", b"{}", b'"\xff"')]
    for content, message in cases:
        (tmp_path / data.DESCRIPTION).write_bytes(content)
        with pytest.raises(UserError, match=message):
            data.load(tmp_path)


def test_the_unordered_hash_is_of_the_same_images_in_any_order() -> None:
    dataset, order = small(), np.array([3, 1, 0, 2])
    train, test, classes = dataset.train, dataset.test, dataset.classes
    shuffled = data.Dataset(train.select(order), test.select(order), classes)
    assert shuffled.sha256() != dataset.sha256()
    assert shuffled.unordered_sha256() == dataset.unordered_sha256()
    for other in (
        data.Dataset(test, train, classes),
        data.Dataset(data.Split(train.images ^ np.eye(2, 3, dtype=np.uint8), train.labels), test, classes),
        data.Dataset(data.Split(train.images, 1 - train.labels), test, classes),
        data.Dataset(train, test, classes[::-1]),
        data.Dataset(train.select(order[:3]), test, classes),
    ):
        assert other.unordered_sha256() != dataset.unordered_sha256()


def test_duplicates_are_counted_once_for_each_different_image() -> None:
    a, b, c, d = random_pixels(4, 2, 2, 1)
    train = data.Split(np.stack([a, a, b, c]), np.array([0, 0, 0, 1]))
    test = data.Split(np.stack([a, b, d, d]), np.array([0, 1, 0, 1]))
    duplicates = data.Dataset(train, test, ("x", "y")).duplicates()
    assert duplicates == {"train_and_test": 2, "contradicting_labels": 2}  # a and b; b and d


def test_per_class_takes_the_first_images_of_each_class() -> None:
    split = data.Split(random_pixels(7, 1, 1, 1), np.array([2, 0, 2, 2, 1, 0, 0]))
    assert split.per_class(2).tolist() == [0, 1, 2, 4, 5]
    assert split.per_class(9).tolist() == list(range(7))


# --- torchvision, from a server of our own ----------------------------------------------------------------------------


def serve_cifar(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batches: Contents) -> None:
    for name, value in served.cifar_from(server, tmp_path, batches).items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """It has CIFAR-10 and MNIST."""
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        serve_cifar(server, monkeypatch, tmp_path, served.BATCHES)
        for name, value in served.mnist_from(server).items():
            monkeypatch.setattr(torchvision.datasets.MNIST, name, value)
        yield server
    socket.setdefaulttimeout(None)  # which fetch sets for its process
    gc.collect()


@pytest.mark.usefixtures("server")
def test_class_folders_of_the_same_images_have_the_same_hash_and_of_other_names_the_same_unordered_one(
    tmp_path: Path,
) -> None:
    downloaded = sources.torchvision("CIFAR10", tmp_path)
    folders = [f"{'train' if i < 4 else 'test'}/{('cat', 'dog')[label]}" for i, label in enumerate(served.CIFAR_LABELS)]

    def with_names(*names: str) -> data.Dataset:
        images = zip(folders, names, served.CIFAR_PIXELS, strict=True)
        return read(tmp_path / names[0], {f"{folder}/{name}": encoded(image) for folder, name, image in images})

    original, numbered = with_names(*served.CIFAR_FILES), with_names(*(f"{number}.png" for number in range(6)))
    assert original.sha256() == downloaded.sha256() != numbered.sha256()
    assert numbered.unordered_sha256() == downloaded.unordered_sha256()


def test_the_original_archive_at_hand_takes_the_place_of_a_download(server: Server, tmp_path: Path) -> None:
    downloaded = sources.torchvision("CIFAR10", tmp_path)
    server.fault, at_hand = "404", (tmp_path / "cifar.tar.gz").rename(tmp_path / "mine.tgz")
    assert sources.torchvision("CIFAR10", tmp_path, at_hand).sha256() == downloaded.sha256()
    for name, path, message in (
        ("CIFAR10", patched(at_hand, changed(40)), "mine.tgz: is not cifar.tar.gz, whose md5 is"),
        ("CIFAR10", tmp_path / "nowhere", "nowhere: not there; give another data.path"),
        ("MNIST", at_hand, "data.path: found with data.name: MNIST, which is not one archive"),
    ):
        with pytest.raises(UserError, match=message):
            sources.torchvision(name, tmp_path, path)


FAULTS = {
    "404": "is out of reach .*404",
    "cut off": "is not the file torchvision knows by its md5",
    "changed": "is not the file torchvision knows by its md5",
    "silence": "is out of reach .*timed out",
    "closed port": "is out of reach .*refused",
}


@pytest.mark.fault
@pytest.mark.parametrize(
    ("fault", "name"), [*((fault, "CIFAR10") for fault in FAULTS), ("404", "MNIST"), ("cut off", "MNIST")]
)
def test_a_failed_download_gives_one_message_and_leaves_nothing(
    fault: str, name: str, server: Server, tmp_path: Path
) -> None:
    server.fault = fault
    if fault == "closed port":
        server.shutdown()
        server.socket.close()
    before = set(tmp_path.iterdir())
    socket.setdefaulttimeout(0.2 if fault == "silence" else 5)
    with pytest.raises(UserError) as found:
        sources.torchvision(name, tmp_path)
    assert set(tmp_path.iterdir()) == before
    message = str(found.value)
    file = "cifar.tar.gz" if name == "CIFAR10" else ".*train-images-idx3-ubyte.gz:"
    at_hand = "give cifar.tar.gz, if you have it, as data.path, " if name == "CIFAR10" else ""
    assert re.match(f"{name}: {served.address(server)}{file} .*; try again, {at_hand}take class folders", message)
    assert re.search(FAULTS[fault], message)


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.fault
def test_a_tampered_file_within_the_archive_is_not_unpickled(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in served.BATCHES:
        serve_cifar(server, monkeypatch, tmp_path, served.BATCHES | {name: pickle.dumps(Exploit(tmp_path / "canary"))})
        with pytest.raises(UserError, match="is not the file torchvision knows by its md5"):
            sources.torchvision("CIFAR10", tmp_path)
        assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("server")
def test_torchvision_s_formats_give_exact_pixels_and_files_that_lie_there_are_not_used(tmp_path: Path) -> None:
    """CIFAR by class and file name."""
    exploit = pickle.dumps(Exploit(tmp_path / "canary"))
    in_folder(tmp_path / "cifar-10-batches-py", dict.fromkeys(served.BATCHES, exploit))
    in_folder(tmp_path / "MNIST" / "processed", {"training.pt": exploit, "test.pt": exploit})
    before = set(tmp_path.iterdir())
    cifar, mnist = sources.torchvision("CIFAR10", tmp_path), sources.torchvision("MNIST", tmp_path)
    np.testing.assert_array_equal([*cifar.train.images, *cifar.test.images], served.CIFAR_PIXELS[served.CIFAR_ORDER])
    assert [*cifar.train.labels, *cifar.test.labels] == [0, 0, 1, 1, 0, 1] and cifar.classes == ("cat", "dog")
    np.testing.assert_array_equal([*mnist.train.images, *mnist.test.images], served.MNIST_PIXELS[..., None])
    assert mnist.train.labels.tolist() == mnist.test.labels.tolist() == [3, 9] and len(mnist.classes) == 10
    assert set(tmp_path.iterdir()) == before


# --- the fetch stage --------------------------------------------------------------------------------------------------


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project's root, as the current folder, with an earlier data set of the digits suite."""
    root = tmp_path / "project"
    (root / "data/digits").mkdir(parents=True)
    data.save(small(), root / "data/digits", "earlier")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:")
    return root


def fetched(monkeypatch: pytest.MonkeyPatch, *settings: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch.py", "suite=digits", *(f"++suites.digits.{word}" for word in settings)])
    run(fetch.main)


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """All files and folders but the one of the stages' locks, which stays."""
    found = [path for path in folder.rglob("*") if path.name != ".locks"]
    return {path: path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.fault
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.source=torchvision", "data.name: missing"),
        ("data.source=torchvision data.name=CIFAR11", "data.name: 'CIFAR11' is no .*expected one of .'CIFAR10'"),
        ("data.source=torchvision data.name=CIFAR10", "CIFAR10: http://127.0.0.1:.* is out of reach .*timed out"),
        ("data.source=folder", "data.path: missing; data.source: folder needs"),
        ("data.source=archive data.path=nowhere.zip", "nowhere.zip: not there"),
        ("data.source=archive data.path=dvc.yaml", "data.sha256: missing; expected that of dvc.yaml: [0-9a-f]{64}, if"),
        ("data.path=x", "data.path: found with .*; expected with torchvision or folder or archive"),
        ("inputs.mean=[0.1,0.2]", r"inputs.mean: 2 values for images of 1 channel"),
        ("", "data/digits/dataset.json: No space left on device; fix that"),
    ],
)
def test_a_failed_fetch_gives_one_message_and_leaves_the_earlier_data_set(
    settings: str,
    message: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "data/digits/dataset.json")

    if not settings:
        monkeypatch.setattr(data, "write_json", disk_full)
    server.fault, before = "silence", snapshot(project)
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.2)
    with pytest.raises(SystemExit, match="1"):
        fetched(monkeypatch, *settings.split())
    assert re.fullmatch(f"error: {message}.*", capsys.readouterr().err.splitlines()[-1])
    assert snapshot(project) == before


def test_digits_are_the_published_ones_in_halves(
    monkeypatch: pytest.MonkeyPatch, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched(monkeypatch)
    assert capsys.readouterr().out == (
        "data/digits: 898 training and 899 test images of 8 x 8 x 1, 10 classes, sha256 9ba457968706; "
        "0 images stand in both splits, 0 under several labels\n"
    )
    dataset = data.load(project / "data/digits")
    assert dataset.sha256() == "9ba4579687064f02d9df2cd372a6bdfdfc963452ce21228dc7ae95b851d333df"
    files = sorted(path.name for path in (project / "data/digits").iterdir())
    assert files == ["dataset.json", "images.npy", "labels.npy"]


def test_the_description_names_the_rules_by_which_files_became_pixels(
    monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    images = in_folder(project / "images", {path: encoded(photo) for path, photo in PHOTOS.items()})
    fetched(monkeypatch, "data.source=folder", f"data.path={images}", "data.image_size=10")
    assert data.load(project / "data/digits").sha256() == sources.folder(images, 10).sha256()
    description = json.loads((project / "data/digits" / data.DESCRIPTION).read_text())
    rule = "shorter side resized (bilinear, antialiased), centre cropped"
    assert description["resized"] == {"image_size": 10, "rule": rule}
    assert description["orientation"] == "upright, as the EXIF orientation tag says"
