"""Whatever the images come from: exact pixels, or one message that names the file; and nothing half-written."""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torchvision
from conftest import ROOT
from numpy.typing import NDArray
from PIL import Image
from served import (
    BATCHES,
    CIFAR_FILES,
    CIFAR_LABELS,
    CIFAR_ORDER,
    CIFAR_PIXELS,
    MNIST_PIXELS,
    Contents,
    Pixels,
    Server,
    address,
    cifar_from,
    in_tar,
    mnist_from,
    random_pixels,
    serving,
    small,
)

from stages import fetch
from stages._command import run
from tripletkd.data import dataset as data
from tripletkd.data import sources
from tripletkd.errors import UserError
from tripletkd.tracking.logger import Logger
from tripletkd.tracking.mlflow import StageFiles


def encoded(image: Pixels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


# --- class folders and archives of them -------------------------------------------------------------------------------

IMAGES = {f"{part}/{name}/{i}.png": random_pixels(8, 8, 3) for part in ("train", "test") for name in "ab" for i in "12"}
GOOD = {path: encoded(image) for path, image in IMAGES.items()}
KINDS = ["folder", "tar", "tar.gz", "zip"]


def in_zip(path: Path, contents: Contents, *members: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in contents.items():
            zipped.writestr(name, content)
        for member, content in members:
            zipped.writestr(member, content)
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


def from_archive(path: Path, sha256: str | None = None, **options: Any) -> data.Dataset:
    with sources.archive(path, sha256, **options) as dataset:
        return in_memory(dataset)


def read(kind: str, tmp_path: Path, contents: Contents, image_size: int | None = None) -> data.Dataset:
    if kind == "folder":
        return in_memory(sources.folder(in_folder(tmp_path / "images", contents), image_size))
    write: Callable[[Path, Contents], Path] = in_zip if kind == "zip" else in_tar
    return from_archive(write(tmp_path / f"images.{kind}", contents), image_size=image_size)


def by_path(dataset: data.Dataset) -> list[Pixels]:
    """In the order of sorted(IMAGES): test, then train."""
    return [*dataset.test.images, *dataset.train.images]


@pytest.mark.parametrize("kind", KINDS)
def test_class_folders_give_exact_pixels_in_the_order_of_names(kind: str, tmp_path: Path) -> None:
    dataset = read(kind, tmp_path, dict(reversed(GOOD.items())))
    np.testing.assert_array_equal(by_path(dataset), [IMAGES[path] for path in sorted(IMAGES)])
    assert dataset.classes == ("a", "b")
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [0, 0, 1, 1]
    assert dataset.train.images.dtype == np.uint8 and dataset.train.labels.dtype == np.int64


SIZES = [(30, 40), (40, 30), (21, 21)]
COLOURS = random_pixels(8, 8, 3)
ALPHA = random_pixels(8, 8, 4)
GREY = random_pixels(8, 8)
PALETTE = Image.fromarray(COLOURS).quantize(4)
CMYK = Image.fromarray(ALPHA, "CMYK")
CMYK_AS_RGB = np.asarray(Image.open(io.BytesIO(encoded(CMYK, "JPEG"))).convert("RGB"))
FIRST = "train/a/1.png"
CONVERTED: dict[str, tuple[bytes, Pixels]] = {
    "greyscale among colour": (encoded(GREY), np.stack([GREY] * 3, axis=-1)),
    "black and white": (
        encoded(Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)),
        np.stack([(GREY > 127) * 255] * 3, -1),
    ),
    "palette": (encoded(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "palette with transparency": (encoded(PALETTE, transparency=b"\x00\x80"), np.asarray(PALETTE.convert("RGB"))),
    "alpha channel": (encoded(ALPHA), ALPHA[..., :3]),
    "CMYK JPEG named .png": (encoded(CMYK, "JPEG"), CMYK_AS_RGB),
    "BMP named .png": (encoded(COLOURS, "BMP"), COLOURS),
    "GIF of one frame": (encoded(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
    "lossless WebP": (encoded(COLOURS, "WEBP", lossless=True), COLOURS),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", CONVERTED)
def test_an_odd_image_is_converted_as_documented(case: str, tmp_path: Path) -> None:
    content, expected = CONVERTED[case]
    dataset = read("folder", tmp_path, GOOD | {FIRST: content})
    np.testing.assert_array_equal(dataset.train.images[0], expected)
    np.testing.assert_array_equal(by_path(dataset)[5:], [IMAGES[path] for path in sorted(IMAGES)][5:])


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_that_are_all_greyscale_keep_one_channel(kind: str, tmp_path: Path) -> None:
    grey = {path: np.ascontiguousarray(image[..., 0]) for path, image in IMAGES.items()}
    with_alpha = {"test/a/1.png": encoded(Image.merge("LA", [Image.fromarray(grey["test/a/1.png"])] * 2))}
    dataset = read(kind, tmp_path, {path: encoded(image) for path, image in grey.items()} | with_alpha)
    np.testing.assert_array_equal(by_path(dataset), [grey[path][..., None] for path in sorted(grey)])


PHOTOS = {path: Image.fromarray(random_pixels(*SIZES[i % 3], 3)) for i, path in enumerate(IMAGES)}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_of_many_sizes_are_resized_and_cropped_as_torchvision_does(kind: str, tmp_path: Path) -> None:
    """Greyscale among them, and one that is smaller than asked for."""
    photos = PHOTOS | {"train/b/2.png": Image.fromarray(random_pixels(5, 6))}
    dataset = read(kind, tmp_path, {path: encoded(photo) for path, photo in photos.items()}, image_size=10)
    rule = torchvision.transforms.Compose([torchvision.transforms.Resize(10), torchvision.transforms.CenterCrop(10)])
    expected = [np.asarray(rule(photos[path]).convert("RGB")) for path in sorted(photos)]
    np.testing.assert_array_equal(by_path(dataset), expected)


@pytest.mark.fault
def test_a_line_of_pixels_is_not_resized_to_a_huge_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train/a/1.png: .*\(too narrow to be resized\)"):
        read("folder", tmp_path, GOOD | {FIRST: encoded(random_pixels(1, 101, 3))}, image_size=10)


def test_val_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    """ImageNet's layout."""
    expected = read("folder", tmp_path / "test", GOOD).sha256()
    renamed = {path.replace("test/", "val/").replace(".png", ".JPEG"): content for path, content in GOOD.items()}
    assert read("folder", tmp_path / "val", renamed).sha256() == expected
    assert read("tar", tmp_path / "val", renamed).sha256() == expected
    assert read("folder", tmp_path / "both", GOOD | {"val/c/1.png": b""}).sha256() == expected


IGNORED: dict[str, dict[str, bytes]] = {
    "hidden files": {".DS_Store": b"x", "train/.git/config": b"x", "train/a/.hidden.png": b"x"},
    "of file managers": {"train/Thumbs.db": b"x", "test/b/desktop.ini": b"x", "__MACOSX/train/a/._1.png": b"x"},
    "beside train and test": {"README.md": b"x", "valid/a/1.png": b"x"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", IGNORED)
def test_what_is_no_image_of_a_class_is_ignored(case: str, kind: str, tmp_path: Path) -> None:
    assert read(kind, tmp_path, IGNORED[case] | GOOD).sha256() == sources.folder(in_folder(tmp_path, GOOD)).sha256()


@pytest.mark.parametrize("kind", KINDS)
def test_class_names_are_taken_as_they_are(kind: str, tmp_path: Path) -> None:
    names = ("A", "a", "été", "ねこ", "قطة")  # two differ by case only
    contents = {f"{part}/{name}/1.JPEG": GOOD[FIRST] for part in ("train", "test") for name in names}
    assert read(kind, tmp_path, contents).classes == tuple(sorted(names))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_archive_may_hold_everything_in_one_folder(kind: str, tmp_path: Path) -> None:
    nested = {f"./cifar/{path}": content for path, content in ({"train/": b""} | GOOD).items()}
    dataset = read(kind, tmp_path, {"./": b"", "cifar/": b"", "._cifar": b"x"} | nested)
    assert dataset.sha256() == sources.folder(in_folder(tmp_path, GOOD)).sha256()
    with pytest.raises(UserError, match=rf"images.{kind}/cifar/train/a/0.txt: not an image"):
        read(kind, tmp_path, {**nested, "cifar/train/a/0.txt": b"x"})


def png(width: int, height: int, bits: int) -> bytes:
    """A black RGB PNG that Pillow would not write: `bits` a channel, or a size that is claimed only."""
    rows = bytes(8 * (1 + 8 * 3 * bits // 8))
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def test_the_hand_made_png_is_sound(tmp_path: Path) -> None:
    assert not read("folder", tmp_path, GOOD | {FIRST: png(8, 8, 8)}).train.images[0].any()


FRAMES = [Image.fromarray(random_pixels(8, 8, 3)) for _ in range(2)]
ONLY_A = {path: content for path, content in GOOD.items() if "/a/" in path}
DAMAGED: dict[str, tuple[Contents, str]] = {
    "truncated PNG": (GOOD | {FIRST: GOOD[FIRST][:-40]}, "train/a/1.png: not an image that can be read"),
    "a changed byte in a PNG": (
        GOOD | {FIRST: GOOD[FIRST][:60] + bytes([GOOD[FIRST][60] ^ 1]) + GOOD[FIRST][61:]},
        "train/a/1.png: not an image that can be read",
    ),
    "truncated JPEG": (GOOD | {FIRST: encoded(COLOURS, "JPEG")[:-60]}, "train/a/1.png: not an image"),
    "empty file": (GOOD | {FIRST: b""}, r"train/a/1.png: not an image .*unknown format.* expected PNG, JPEG"),
    "text named .png": (GOOD | {FIRST: b"a cat"}, "train/a/1.png: not an image"),
    "text beside images": (GOOD | {"train/a/notes.txt": b"a cat"}, "train/a/notes.txt: not an image"),
    "PostScript": (GOOD | {FIRST: encoded(COLOURS, "EPS")}, "train/a/1.png: not an image"),
    "16-bit greyscale": (
        GOOD | {FIRST: encoded(Image.fromarray(GREY.astype(np.uint16) * 257))},
        "train/a/1.png: 16 bits a channel",
    ),
    "16-bit colour": (GOOD | {FIRST: png(8, 8, 16)}, "train/a/1.png: 16 bits a channel"),
    "animated GIF": (
        GOOD | {FIRST: encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])},
        "train/a/1.png: several frames",
    ),
    "animated PNG": (
        GOOD | {FIRST: encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:])},
        "train/a/1.png: several frames",
    ),
    "mixed sizes": (
        GOOD | {"train/b/2.png": encoded(random_pixels(8, 9, 3))},
        r"train/b/2.png: 9 x 8 pixels, \S+ has 8 x 8; .*data.image_size: 64 would make them 64 x 64",
    ),
    "PNG that claims a huge size": (GOOD | {FIRST: png(50_000, 50_000, 8)}, "train/a/1.png: .*decompression bomb"),
    "PNG that claims a large size": (GOOD | {FIRST: png(10_000, 9_500, 8)}, "train/a/1.png: .*decompression bomb"),
    "one class only": (ONLY_A, "train: one class folder, at least two"),
    "class in train only": (ONLY_A | {"train/b/1.png": GOOD[FIRST]}, "test: class 'b' of train/ has no folder"),
    "class in test only": (ONLY_A | {"test/b/1.png": GOOD[FIRST]}, "train: class 'b' of test/ has no folder"),
    "class without images": (GOOD | {"train/c/": b"", "test/c/": b""}, "train/c: a class without images"),
    "class with hidden files only": (
        GOOD | {"train/c/": b"", "train/c/.x": b"", "test/c/1.png": GOOD[FIRST]},
        "train/c: a class without images",
    ),
    "no train folder": (
        {path: content for path, content in GOOD.items() if path.startswith("test")},
        r"train: no class folders; expected {train,test}/<class>/<image>",
    ),
    "stray file beside class folders": (GOOD | {"train/labels.csv": b"x"}, "train/labels.csv: a file out of place"),
    "folder among images": (GOOD | {"train/a/more/1.png": GOOD[FIRST]}, "train/a/more.*: a (file|folder) out of place"),
    "empty": ({"README.md": b""}, "train: no class folders"),
}


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["folder", "tar.gz", "zip"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_input_gives_one_message_that_names_the_file(case: str, kind: str, tmp_path: Path) -> None:
    contents, message = DAMAGED[case]
    with pytest.raises(UserError, match=message) as found:
        read(kind, tmp_path, contents)
    assert str(found.value).startswith(str(tmp_path)) and "\n" not in str(found.value)


@pytest.mark.fault
@pytest.mark.parametrize("target", [FIRST, "train/a", "/dev/zero", "nowhere"])
def test_links_in_a_folder_are_refused(target: str, tmp_path: Path) -> None:
    link = in_folder(tmp_path, GOOD) / "train" / "b" / "0.png"
    link.symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=r"train/b/0.png: a link or a device"):
        sources.folder(tmp_path)


@pytest.mark.fault
def test_a_pipe_or_a_name_that_is_not_unicode_in_a_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(in_folder(tmp_path, GOOD) / "train" / "b" / "0.png")
    with pytest.raises(UserError, match=r"train/b/0.png: a link or a device"):
        sources.folder(tmp_path)
    (tmp_path / "train/b/0.png").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path / "train" / "a") + b"/\xff.png")).write_bytes(GOOD[FIRST])
    with pytest.raises(UserError, match="its name is not Unicode"):
        sources.folder(tmp_path)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def huge(path: Path) -> Path:
    """A tar with a header that claims 1 TiB, and nothing behind it."""
    info = member("train/a/0.png")
    info.size = 2**40
    path.write_bytes(info.tobuf())
    return path


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def patched(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def encrypted(content: bytes) -> bytes:
    """A zip with the flag "encrypted" set at every member."""
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = content.split(signature)
        content = signature.join([parts[0], *(p[: at - 4] + bytes([p[at - 4] | 1]) + p[at - 3 :] for p in parts[1:])])
    return content


def claiming(content: bytes) -> bytes:
    """A zip whose directory claims 2 GiB for its first member."""
    at = content.index(b"PK\x01\x02") + 24
    return content[:at] + struct.pack("<I", 2**31) + content[at + 4 :]


def many_classes(path: Path) -> Path:
    return in_zip(path, {f"train/{i}/": b"" for i in range(100_000)})


BAD_ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tar: absolute path": (lambda p: in_tar(p, GOOD | {"/tmp/0.png": b""}), "/tmp/0.png: leads out"),  # noqa: S108
    "tar: parent path": (lambda p: in_tar(p, GOOD | {"train/../../0.png": b""}), "0.png: leads out"),
    "tar: symbolic link": (
        lambda p: in_tar(p, GOOD, member("train/a/3.png", tarfile.SYMTYPE, "1.png")),
        "a/3.png: a link",
    ),
    "tar: link to a folder": (lambda p: in_tar(p, GOOD, member("train/c", tarfile.SYMTYPE, "a")), "train/c: a link"),
    "tar: hard link": (lambda p: in_tar(p, GOOD, member("train/a/3.png", tarfile.LNKTYPE, FIRST)), "a/3.png: a link"),
    "tar: device": (lambda p: in_tar(p, GOOD, member("train/a/3.png", tarfile.CHRTYPE)), "a/3.png: a link or a device"),
    "tar: pipe": (lambda p: in_tar(p, GOOD, member("train/a/3.png", tarfile.FIFOTYPE)), "a/3.png: a link or a device"),
    "tar: a file twice": (lambda p: in_tar(p, GOOD, member(FIRST)), "train/a/1.png: is there twice"),
    "tar: claims a huge size": (huge, "train/a/0.png: 1099511627776 bytes; more than"),
    "tar: without members": (lambda p: in_tar(p, {}), "train: no class folders"),
    "tar: cut off in a member": (lambda p: patched(in_tar(p, GOOD), lambda b: b[:2000]), "cannot be unpacked"),
    "tar: cut off between members": (lambda p: patched(in_tar(p, GOOD), lambda b: b[:2048]), "cannot be unpacked"),
    "tar: a damaged header": (
        lambda p: patched(in_tar(p, GOOD), lambda b: b[:1024] + b"?" + b[1025:]),
        r"cannot be unpacked \(damaged or cut off after 1024 bytes\)",
    ),
    "tar.gz: cut off": (
        lambda p: patched(in_tar(p.with_suffix(".tar.gz"), GOOD), lambda b: b[: len(b) // 2]),
        r"tar.gz: cannot be unpacked .*expected .tar, .tar.gz or .zip: fetch it again",
    ),
    "tar.gz: a changed byte": (
        lambda p: patched(in_tar(p.with_suffix(".tar.gz"), GOOD), lambda b: b[:40] + bytes([b[40] ^ 8]) + b[41:]),
        "tar.gz",
    ),
    "zip: absolute path": (lambda p: in_zip(p, GOOD | {"/tmp/0.png": b""}), "/tmp/0.png: leads out"),  # noqa: S108
    "zip: parent path": (lambda p: in_zip(p, GOOD | {"../0.png": b""}), r"\.\./0.png: leads out"),
    "zip: link": (lambda p: in_zip(p, GOOD, (unix("train/a/3.png", 0o120777), b"1.png")), "train/a/3.png: a link"),
    "zip: device": (lambda p: in_zip(p, GOOD, (unix("train/a/3.png", 0o020666), b"")), "train/a/3.png: a link or"),
    "zip: password": (lambda p: patched(in_zip(p, GOOD), encrypted), "train/a/1.png: .*encrypted, password required"),
    "zip: claims a huge size": (lambda p: patched(in_zip(p, GOOD), claiming), "train/a/1.png: 2147483648 bytes"),
    "zip: a changed byte": (
        lambda p: patched(in_zip(p, GOOD), lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:]),
        "train/a/1.png: not an image that can be read",
    ),
    "zip: cut off": (lambda p: patched(in_zip(p, GOOD), lambda b: b[:-30]), "cannot be unpacked"),
    "zip: 100,000 classes without images": (many_classes, "test: no class folders"),
    "text": (lambda p: patched(in_tar(p, GOOD), lambda _: b"404 Not Found"), "cannot be unpacked"),
    "empty file": (lambda p: patched(in_tar(p, GOOD), lambda _: b""), "cannot be unpacked"),
    "gzip of text": (lambda p: patched(in_tar(p, GOOD), lambda _: gzip.compress(b"x" * 999)), "cannot be unpacked"),
    "missing": (lambda p: p, "images.x: not there; give another data.path, or regenerate the digits suite"),
    "folder": (lambda p: in_folder(p, GOOD), "images.x: not there"),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_gives_one_message_that_names_the_member(case: str, tmp_path: Path) -> None:
    write, message = BAD_ARCHIVES[case]
    path = write(tmp_path / "images.x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as found:
        from_archive(path)
    assert str(found.value).startswith(str(path)) and "\n" not in str(found.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.fault
def test_more_images_than_the_disk_has_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small files that decode to large images: none of them is a bomb alone."""
    black = encoded(Image.new("L", (4000, 4000)))
    path = in_zip(tmp_path / "images.zip", dict.fromkeys(GOOD, black))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**27, 2**26, 2**26))
    with (
        sources.archive(path, None) as dataset,
        pytest.raises(UserError, match=r"take 0\.1 GiB of disk, 0\.1 GiB are free: .*\(data.image_size\)"),
    ):
        data.save(dataset, tmp_path, "a test")
    assert not (tmp_path / data.IMAGES).exists()


@pytest.mark.fault
def test_an_archive_that_unpacks_to_more_than_a_disk_should_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_ARCHIVE_BYTES", 3 * len(GOOD[FIRST]))
    with pytest.raises(UserError, match=r"images.tar: unpacks to more than 0 GiB, which is refused"):
        from_archive(in_tar(tmp_path / "images.tar", GOOD))


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_is_unpacked_lies_in_the_given_place_and_is_removed(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    write: Callable[[Path, Contents], Path] = in_zip if kind == "zip" else in_tar
    from_archive(write(tmp_path / f"images.{kind}", GOOD), place=place)
    with pytest.raises(UserError, match="not an image"):
        from_archive(write(tmp_path / f"images.{kind}", GOOD | {FIRST: b""}), place=place)
    assert not list(place.iterdir())


@pytest.mark.fault
def test_a_zip_of_two_equal_names_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = in_zip(tmp_path / "images.zip", GOOD, (zipfile.ZipInfo(FIRST), GOOD[FIRST]))
    with pytest.raises(UserError, match=r"train/a/1.png: is there twice"):
        from_archive(path)


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    within = in_zip(tmp_path / "within.zip", {"x": b"y"}).read_bytes()
    path = in_tar(tmp_path / "images.tar", GOOD | {"zz.zip": within})
    assert zipfile.is_zipfile(path)
    assert from_archive(path).classes == ("a", "b")


@pytest.mark.fault
def test_an_archive_is_the_one_with_the_given_sha256(tmp_path: Path) -> None:
    path = in_tar(tmp_path / "images.tar", GOOD)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert from_archive(path, digest.upper()).classes == ("a", "b")
    with pytest.raises(
        UserError, match=f"images.tar: sha256 is {digest}, data.sha256 says 0000; fetch the archive again"
    ):
        from_archive(path, "0000")


@pytest.mark.data
def test_folder_and_archives_of_true_images_give_their_exact_pixels(cifar: Path, tmp_path: Path) -> None:
    images, npz = tmp_path / "images", tmp_path / "images.npz"
    few = ["cifar10", "--per-class", "20", "--imagefolder", str(images), "--npz", str(npz)]
    subprocess.run([sys.executable, str(cifar / "unpack.py"), *few], check=True, capture_output=True)
    truth = np.load(npz)
    contents = {str(p.relative_to(images)): p.read_bytes() for p in images.rglob("*.png")}
    datasets = [
        in_memory(sources.folder(images)),
        from_archive(in_tar(tmp_path / "images.tar.gz", contents)),
        from_archive(in_zip(tmp_path / "images.zip", contents)),
    ]
    assert len({dataset.sha256() for dataset in datasets}) == 1
    assert datasets[0].classes == tuple(truth["classes"])
    for part, split in (("train", datasets[0].train), ("test", datasets[0].test)):
        np.testing.assert_array_equal(split.images, truth[f"x_{part}"])
        np.testing.assert_array_equal(split.labels, truth[f"y_{part}"])


# --- the canonical data set -------------------------------------------------------------------------------------------


def test_the_canonical_data_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    dataset = small()
    transposed = data.Split(dataset.test.images.transpose(0, 2, 1, 3), dataset.test.labels)  # not contiguous
    dataset = data.Dataset(dataset.train, transposed, dataset.classes)
    description = data.save(dataset, tmp_path, "a test")
    loaded = data.load(tmp_path)
    for wrote, found in ((dataset.train, loaded.train), (dataset.test, loaded.test)):
        np.testing.assert_array_equal(wrote.images, found.images)
        np.testing.assert_array_equal(wrote.labels, found.labels)
    assert loaded.classes == dataset.classes
    arrays: dict[str, NDArray[Any]] = {"train_images": dataset.train.images, "test_images": dataset.test.images}
    arrays |= {"train_labels": dataset.train.labels, "test_labels": dataset.test.labels}
    assert (tmp_path / data.IMAGES).read_bytes() == safetensors.numpy.save(arrays)
    assert json.loads((tmp_path / data.DESCRIPTION).read_text()) == json.loads(json.dumps(description))
    assert description["images_per_class"] == {"train": [2, 2], "test": [2, 2]}
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(description["train_mean"], pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(description["train_std"], pixels.std(axis=(0, 1, 2)), atol=1e-6)


@pytest.mark.fault
def test_no_changed_byte_is_read_as_another_data_set(tmp_path: Path) -> None:
    data.save(small(), tmp_path, "a test")
    path = tmp_path / data.IMAGES
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"(cannot be read|a file was changed).* run the fetch stage again"):
            data.load(tmp_path)
    path.write_bytes(whole.replace(b'"U8"', b'"I8"'))
    with pytest.raises(UserError, match=r"cannot be read .*train_images are I8, expected U8"):
        data.load(tmp_path)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"{data.IMAGES}: cannot be read .*run the fetch stage again"):
            data.load(tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize("name", [data.IMAGES, data.DESCRIPTION])
def test_a_missing_file_of_the_canonical_data_set_is_named(name: str, tmp_path: Path) -> None:
    data.save(small(), tmp_path, "a test")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: not there; run `python -m stages.fetch suite="):
        data.load(tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"sha256": "0"}', b'"\xff"', b'{"sha256": 0, "classes": 1}']
)
def test_a_damaged_description_is_named(content: bytes, tmp_path: Path) -> None:
    data.save(small(), tmp_path, "a test")
    (tmp_path / data.DESCRIPTION).write_bytes(content)
    with pytest.raises(UserError, match=rf"{data.DESCRIPTION}: cannot be read"):
        data.load(tmp_path)


@pytest.mark.fault
def test_a_changed_class_name_or_hash_is_noticed(tmp_path: Path) -> None:
    description = data.save(small(), tmp_path, "a test")
    for change in ({"classes": ["a", "b"]}, {"sha256": "0"}):
        (tmp_path / data.DESCRIPTION).write_text(json.dumps(description | change))
        with pytest.raises(UserError, match="a file was changed"):
            data.load(tmp_path)


def test_the_unordered_hash_is_of_the_same_images_in_any_order() -> None:
    dataset, order = small(), np.array([3, 1, 0, 2])
    train, test, classes = dataset.train, dataset.test, dataset.classes
    shuffled = data.Dataset(train.select(order), test.select(order), classes)
    assert shuffled.sha256() != dataset.sha256()
    assert shuffled.unordered_sha256() == dataset.unordered_sha256()
    changed = train.images.copy()
    changed[2, 1, 0, 2] ^= 1
    for other in (
        data.Dataset(test, train, classes),
        data.Dataset(data.Split(changed, train.labels), test, classes),
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


def test_digits_are_the_published_ones_in_halves() -> None:
    dataset = sources.digits()
    assert dataset.train.images.shape == (898, 8, 8, 1) and dataset.test.images.shape == (899, 8, 8, 1)
    assert dataset.sha256() == "9ba4579687064f02d9df2cd372a6bdfdfc963452ce21228dc7ae95b851d333df"


# --- torchvision, from a server of our own ----------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server


def serve_cifar(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batches: Contents) -> None:
    for name, value in cifar_from(server, tmp_path, batches).items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)


def serve_mnist(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in mnist_from(server).items():
        monkeypatch.setattr(torchvision.datasets.MNIST, name, value)


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A project's root, as the current folder, with an earlier data set of the digits suite."""
    root = tmp_path / "project"
    earlier = root / "data" / "digits"
    earlier.mkdir(parents=True)
    data.save(small(), earlier, "earlier")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    monkeypatch.chdir(root)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield root
    socket.setdefaulttimeout(None)  # which fetch sets for its process


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All files and folders but the one of the stages' locks, which stays."""
    found = [path for path in folder.rglob("*") if path.name != ".locks"]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], project: Path, *overrides: str) -> str:
    """What fetch's command line says when it fails; whatever was there is still there, and nothing else."""
    before = snapshot(project.parent)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "suite=digits", *(f"suites.digits.{o}" for o in overrides)])
    with pytest.raises(SystemExit) as ended:
        run(fetch.main)
    assert ended.value.code == 1
    assert snapshot(project.parent) == before
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_cifar_in_torchvisions_format_gives_exact_pixels_by_class_and_file_name(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: Path
) -> None:
    serve_cifar(server, monkeypatch, tmp_path, BATCHES)
    dataset = sources.torchvision("CIFAR10", tmp_path)
    np.testing.assert_array_equal([*dataset.train.images, *dataset.test.images], CIFAR_PIXELS[CIFAR_ORDER])
    assert [*dataset.train.labels, *dataset.test.labels] == [0, 0, 1, 1, 0, 1]
    assert dataset.classes == ("cat", "dog")
    assert not any(path.name.startswith("tmp") for path in tmp_path.iterdir())


def test_class_folders_of_the_same_images_have_the_same_hash_and_of_other_names_the_same_unordered_one(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve_cifar(server, monkeypatch, tmp_path, BATCHES)
    downloaded = sources.torchvision("CIFAR10", tmp_path)
    numbers = [f"{number}.png" for number in range(6)]
    original, numbered = (
        read(
            "folder",
            tmp_path / names[0],
            {
                f"{'train' if i < 4 else 'test'}/{downloaded.classes[label]}/{names[i]}": encoded(image)
                for i, (image, label) in enumerate(zip(CIFAR_PIXELS, CIFAR_LABELS, strict=True))
            },
        )
        for names in (CIFAR_FILES, numbers)
    )
    assert original.sha256() == downloaded.sha256()
    assert numbered.sha256() != downloaded.sha256()
    assert numbered.unordered_sha256() == downloaded.unordered_sha256()


def test_mnist_in_torchvisions_format_gives_exact_pixels(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve_mnist(server, monkeypatch)
    dataset = sources.torchvision("MNIST", tmp_path)
    np.testing.assert_array_equal([*dataset.train.images, *dataset.test.images], MNIST_PIXELS[..., None])
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [3, 9]
    assert len(dataset.classes) == 10


FAULTS = {
    "404": "is out of reach .*404",
    "cut off": "is not the file torchvision knows by its md5",
    "changed": "is not the file torchvision knows by its md5",
    "silence": "is out of reach .*timed out",
    "closed port": "is out of reach .*refused",
}


@pytest.mark.fault
@pytest.mark.parametrize("name", ["CIFAR10", "MNIST"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_download_gives_one_message_and_leaves_nothing(
    fault: str,
    name: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve_cifar(server, monkeypatch, project.parent, BATCHES)
    serve_mnist(server, monkeypatch)
    server.fault = fault
    if fault == "closed port":
        server.socket.close()
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.2 if fault == "silence" else 5)
    message = fails(monkeypatch, capsys, project, "data.source=torchvision", f"data.name={name}")
    file = "cifar.tar.gz" if name == "CIFAR10" else "" if fault == "silence" else ".*train-images-idx3-ubyte.gz:"
    assert_matches(f"error: {name}: {address(server)}{file} .*", message)
    assert_matches(f".*{FAULTS[fault]}.*; try again, take another source .*regenerate the digits suite.*", message)


def assert_matches(pattern: str, text: str) -> None:
    assert re.fullmatch(pattern, text), text


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.fault
@pytest.mark.parametrize("name", BATCHES)
def test_a_tampered_file_within_the_archive_is_not_unpickled(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    serve_cifar(server, monkeypatch, tmp_path, BATCHES | {name: pickle.dumps(Exploit(canary))})
    with pytest.raises(UserError, match="is not the file torchvision knows by its md5"):
        sources.torchvision("CIFAR10", tmp_path)
    assert not canary.exists()


def test_files_that_lie_there_already_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: Path
) -> None:
    serve_cifar(server, monkeypatch, tmp_path, BATCHES)
    serve_mnist(server, monkeypatch)
    exploit = pickle.dumps(Exploit(tmp_path / "canary"))
    for folder in (tmp_path / "temporary", project, project / "data"):
        in_folder(folder / "cifar-10-batches-py", dict.fromkeys(BATCHES, exploit))
        in_folder(folder / "MNIST" / "processed", {"training.pt": exploit, "test.pt": exploit})
    np.testing.assert_array_equal(sources.torchvision("CIFAR10", tmp_path).train.images, CIFAR_PIXELS[CIFAR_ORDER[:4]])
    np.testing.assert_array_equal(sources.torchvision("MNIST", tmp_path).train.images, MNIST_PIXELS[:2, ..., None])
    assert not (tmp_path / "canary").exists()


# --- the fetch stage --------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=torchvision"], "data.name: missing"),
        (
            ["data.source=torchvision", "data.name=CIFAR11"],
            "data.name: 'CIFAR11' is not .*expected one of CIFAR10, CIF",
        ),
        (["data.source=folder"], "data.path: missing; data.source: folder needs"),
        (["data.source=folder", "data.path=nowhere"], "nowhere/train: no class folders"),
        (["data.source=archive", "data.path=nowhere.zip"], "nowhere.zip: not there"),
        (["data.name=CIFAR10"], "data.name: found with data.source: digits, which does not read it"),
        (["data.path=x"], "data.path: found with .*; expected with folder or archive"),
        (["data.source=folder", "data.path=x", "data.sha256=0"], "data.sha256: found with .*folder.*with archive"),
        (["inputs.mean=[0.1,0.2]"], r"inputs.mean: 2 values for images of 1 channel"),
    ],
)
def test_wrong_settings_give_one_message(
    overrides: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    project: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_matches(f"error: {message}.*", fails(monkeypatch, capsys, project, *overrides))


@pytest.mark.fault
def test_an_interrupted_write_leaves_the_earlier_data_set(
    monkeypatch: pytest.MonkeyPatch, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def disk_full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "data/digits/dataset.json")

    before = snapshot(project)
    monkeypatch.setattr(data, "write_json", disk_full)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "suite=digits"])
    with pytest.raises(SystemExit):
        run(fetch.main)
    assert capsys.readouterr().err.startswith("error: data/digits/dataset.json: No space left on device; ")
    assert snapshot(project) == before


def test_digits_are_fetched_and_logged(
    monkeypatch: pytest.MonkeyPatch, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[StageFiles] = []
    monkeypatch.setattr(Logger, "files", lambda _, made: logged.append(made))
    monkeypatch.setattr(sys, "argv", ["fetch.py", "suite=digits"])
    run(fetch.main)
    assert capsys.readouterr().out == (
        "data/digits: 898 training and 899 test images of 8 x 8 x 1, 10 classes, sha256 9ba457968706; "
        "0 images stand in both splits, 0 under several labels\n"
    )
    description = json.loads((project / "data/digits" / data.DESCRIPTION).read_text())
    assert description["duplicates"] == {"train_and_test": 0, "contradicting_labels": 0}
    assert sorted(p.name for p in (project / "data").rglob("*")) == ["dataset.json", "digits", "images.safetensors"]
    counts = {"train_images": 898, "test_images": 899, "classes": 10, "train_and_test": 0, "contradicting_labels": 0}
    [made] = logged
    assert made.metrics == counts and made.params == {"source": "digits", "data_sha256": description["sha256"]}
    assert made.log.keys() >= {"started", "seconds", "commit", "experiment"}


def command(project: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The fetch stage in a process of its own, with no MLflow store that could be reached."""
    return subprocess.run(
        [sys.executable, "-m", "stages.fetch", "suite=digits", *(f"++suites.digits.{o}" for o in overrides)],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "nonsense://"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_needs_no_tracking(project: Path) -> None:
    images = in_folder(project / "images", GOOD)
    ended = command(project, "data.source=folder", f"data.path={images}")
    assert ended.returncode == 0, ended.stderr
    assert "warning: not logged to MLflow" in ended.stderr
    assert data.load(project / "data/digits").sha256() == sources.folder(images).sha256()


def test_the_description_names_the_rule_by_which_images_were_resized(project: Path) -> None:
    images = in_folder(project / "images", {path: encoded(photo) for path, photo in PHOTOS.items()})
    ended = command(project, "data.source=folder", f"data.path={images}", "data.image_size=10")
    assert ended.returncode == 0, ended.stderr
    description = json.loads((project / "data/digits" / data.DESCRIPTION).read_text())
    rule = "shorter side resized (bilinear, antialiased), centre cropped"
    assert description["resized"] == {"image_size": 10, "rule": rule}
    assert description["image_shape"] == [10, 10, 3]


def test_only_class_folders_are_resized(project: Path) -> None:
    ended = command(project, "data.image_size=10")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: data.image_size: found with data.source: digits")


def test_the_command_fails_with_a_message(project: Path) -> None:
    before = snapshot(project)
    ended = command(project, "data.source=folder")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: data.path: missing") and ended.stderr.count("\n") == 1
    assert snapshot(project) == before
