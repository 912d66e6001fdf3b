"""Whatever the images come from: exact pixels, or one message that names the file; and nothing half-written."""

import bz2
import errno
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
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from conftest import ROOT
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
from tripletkd.data import dataset as data
from tripletkd.data import sources
from tripletkd.errors import UserError
from tripletkd.pipeline.stage import run


def encoded(image: Pixels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


# --- class folders and archives of them -------------------------------------------------------------------------------

IMAGES = {f"{part}/{name}/{i}.png": random_pixels(8, 8, 3) for part in ("train", "test") for name in "ab" for i in "12"}
GOOD = {path: encoded(image) for path, image in IMAGES.items()}
FIRST = "train/a/1.png"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


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
    path = tmp_path / f"images.{kind}"
    if kind == "folder":
        return in_memory(sources.folder(in_folder(path, contents), image_size))
    if kind == "zip":
        return from_archive(in_zip(path, contents), image_size=image_size)
    return from_archive(patched(in_tar(tmp_path / "images.x", contents), COMPRESS[kind]), image_size=image_size)


def patched(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def by_path(dataset: data.Dataset) -> list[Pixels]:
    """In the order of sorted(IMAGES): test, then train."""
    return [*dataset.test.images, *dataset.train.images]


@pytest.mark.parametrize("kind", ["folder", "zip", *COMPRESS])
def test_class_folders_give_exact_pixels_in_the_order_of_names(kind: str, tmp_path: Path) -> None:
    dataset = read(kind, tmp_path, dict(reversed(GOOD.items())))
    np.testing.assert_array_equal(by_path(dataset), [IMAGES[path] for path in sorted(IMAGES)])
    assert dataset.classes == ("a", "b")
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [0, 0, 1, 1]


COLOURS, ALPHA, GREY = random_pixels(8, 8, 3), random_pixels(8, 8, 4), random_pixels(8, 8)
PALETTE, CMYK = Image.fromarray(COLOURS).quantize(4), encoded(Image.fromarray(ALPHA, "CMYK"), "JPEG")
FRAMES = [Image.fromarray(random_pixels(8, 8, 3)) for _ in range(2)]
MANY: dict[str, Any] = {"save_all": True, "append_images": FRAMES[1:]}
CONVERTED: dict[str, tuple[bytes, Pixels]] = {
    "greyscale among colour": (encoded(GREY), np.stack([GREY] * 3, axis=-1)),
    "black and white": (
        encoded(Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)),
        np.stack([(GREY > 127) * 255] * 3, -1),
    ),
    "palette with transparency": (encoded(PALETTE, transparency=b"\x00\x80"), np.asarray(PALETTE.convert("RGB"))),
    "alpha channel": (encoded(ALPHA), ALPHA[..., :3]),
    "CMYK JPEG named .png": (CMYK, decoded(CMYK)),
    "BMP named .png": (encoded(COLOURS, "BMP"), COLOURS),
    "GIF of one frame": (encoded(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
    "lossless WebP": (encoded(COLOURS, "WEBP", lossless=True), COLOURS),
    "a phone's JPEG with a second picture": (encoded(FRAMES[0], "MPO", **MANY), decoded(encoded(FRAMES[0], "JPEG"))),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", CONVERTED)
def test_an_odd_image_is_converted_as_documented(case: str, tmp_path: Path) -> None:
    content, expected = CONVERTED[case]
    dataset = read("folder", tmp_path, GOOD | {FIRST: content})
    np.testing.assert_array_equal(dataset.train.images[0], expected)
    np.testing.assert_array_equal(by_path(dataset)[5:], [IMAGES[path] for path in sorted(IMAGES)][5:])


def test_images_that_are_all_greyscale_keep_one_channel(tmp_path: Path) -> None:
    grey = {path: np.ascontiguousarray(image[..., 0]) for path, image in IMAGES.items()}
    with_alpha = {"test/a/1.png": encoded(Image.merge("LA", [Image.fromarray(grey["test/a/1.png"])] * 2))}
    dataset = read("folder", tmp_path, {path: encoded(image) for path, image in grey.items()} | with_alpha)
    np.testing.assert_array_equal(by_path(dataset), [grey[path][..., None] for path in sorted(grey)])


def test_photographs_are_upright_as_their_exif_tag_says(tmp_path: Path) -> None:
    """Their size, too, is the one that a viewer shows."""
    upright, lying = {path: random_pixels(4, 6, 3) for path in IMAGES}, {}
    turned: list[Callable[[Pixels], Pixels]] = [
        lambda x: x,
        np.fliplr,
        lambda x: np.rot90(x, 2),
        np.flipud,
        lambda x: x.transpose(1, 0, 2),
        np.rot90,
    ]
    turned += [lambda x: np.rot90(x, 2).transpose(1, 0, 2), lambda x: np.rot90(x, -1)]  # how it lies in the file
    for tag, (path, pixels) in enumerate(upright.items(), start=1):
        exif = Image.Exif()
        exif[0x0112] = tag
        lying[path] = encoded(np.ascontiguousarray(turned[tag - 1](pixels)), exif=exif)
    dataset = read("folder", tmp_path, lying)
    np.testing.assert_array_equal(by_path(dataset), [upright[path] for path in sorted(upright)])


PHOTOS = {
    path: Image.fromarray(random_pixels(*[(30, 40), (40, 30), (21, 21)][i % 3], 3)) for i, path in enumerate(IMAGES)
}


def test_images_of_many_sizes_are_resized_and_cropped_as_torchvision_does(tmp_path: Path) -> None:
    """Greyscale among them, and one that is smaller than asked for."""
    photos = PHOTOS | {"train/b/2.png": Image.fromarray(random_pixels(5, 6))}
    dataset = read("zip", tmp_path, {path: encoded(photo) for path, photo in photos.items()}, image_size=10)
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
    assert read("tar", tmp_path, renamed).sha256() == expected
    assert read("folder", tmp_path / "both", GOOD | {"val/c/1.png": b""}).sha256() == expected


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_what_is_no_image_of_a_class_is_ignored(kind: str, tmp_path: Path) -> None:
    hidden = {".DS_Store": b"x", "train/.git/config": b"x", "train/a/.hidden.png": b"x", "__MACOSX/train/a/1": b"x"}
    others = {"train/Thumbs.db": b"x", "test/b/desktop.ini": b"x", "README.md": b"x", "valid/a/1.png": b"x"}
    expected = sources.folder(in_folder(tmp_path / "good", GOOD)).sha256()
    assert read(kind, tmp_path, hidden | others | GOOD).sha256() == expected


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_class_names_are_taken_as_they_are(kind: str, tmp_path: Path) -> None:
    names = ("A", "a", "été", "ねこ", "قطة")  # two differ by case only
    contents = {f"{part}/{name}/1.JPEG": GOOD[FIRST] for part in ("train", "test") for name in names}
    assert read(kind, tmp_path, contents).classes == tuple(sorted(names))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_may_hold_everything_in_one_folder_and_a_file_beside_it(kind: str, tmp_path: Path) -> None:
    nested = {f"./cifar/{path}": content for path, content in ({"train/": b""} | GOOD).items()}
    nested |= {"./": b"", "._cifar": b"x", "README.md": b"x"}
    assert read(kind, tmp_path, nested).sha256() == sources.folder(in_folder(tmp_path, GOOD)).sha256()
    with pytest.raises(UserError, match=r"images\.\w+/cifar/train/a/0.txt: not an image"):
        read(kind, tmp_path, {**nested, "cifar/train/a/0.txt": b"x"})


def png(width: int, height: int, bits: int) -> bytes:
    """A black RGB PNG that Pillow would not write: `bits` a channel, or a size that is claimed only."""
    rows = bytes(8 * (1 + 8 * 3 * bits // 8))
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


ONLY_A = {path: content for path, content in GOOD.items() if "/a/" in path}
NAMES = "caf\u00e9", "cafe\u0301"  # which look alike
DAMAGED: dict[str, tuple[Contents, str]] = {
    "truncated PNG": (GOOD | {FIRST: GOOD[FIRST][:-40]}, "train/a/1.png: not an image that can be read"),
    "a changed byte in a PNG": (
        GOOD | {FIRST: GOOD[FIRST][:60] + bytes([GOOD[FIRST][60] ^ 1]) + GOOD[FIRST][61:]},
        "train/a/1.png: not an image that can be read",
    ),
    "truncated JPEG": (GOOD | {FIRST: encoded(COLOURS, "JPEG")[:-60]}, "train/a/1.png: not an image"),
    "empty file": (GOOD | {FIRST: b""}, r"train/a/1.png: not an image .*unknown format.* expected PNG, JPEG"),
    "text beside images": (GOOD | {"train/a/notes.txt": b"a cat"}, "train/a/notes.txt: not an image"),
    "PostScript": (GOOD | {FIRST: encoded(COLOURS, "EPS")}, "train/a/1.png: not an image"),
    "16-bit greyscale": (GOOD | {FIRST: encoded(Image.fromarray(GREY.astype(np.uint16)))}, "1.png: 16 bits a channel"),
    "16-bit colour": (GOOD | {FIRST: png(8, 8, 16)}, "train/a/1.png: 16 bits a channel"),
    "animated GIF": (GOOD | {FIRST: encoded(FRAMES[0], "GIF", **MANY)}, "train/a/1.png: several frames"),
    "animated PNG": (GOOD | {FIRST: encoded(FRAMES[0], **MANY)}, "train/a/1.png: several frames"),
    "mixed sizes": (
        GOOD | {"train/b/2.png": encoded(random_pixels(8, 9, 3))},
        r"train/b/2.png: 9 x 8 pixels, \S+ has 8 x 8; .*data.image_size: 64 would make them 64 x 64",
    ),
    "PNG that claims a huge size": (GOOD | {FIRST: png(50_000, 50_000, 8)}, "train/a/1.png: .*decompression bomb"),
    "PNG that claims a large size": (GOOD | {FIRST: png(10_000, 9_500, 8)}, "train/a/1.png: .*decompression bomb"),
    "one class only": (ONLY_A, "train: one class folder, at least two"),
    "class in train only": (ONLY_A | {"train/b/1.png": GOOD[FIRST]}, "test: class 'b' has no folder"),
    "class in test only": (ONLY_A | {"test/b/1.png": GOOD[FIRST]}, "train: class 'b' has no folder"),
    "two names in one split": (
        GOOD | {f"train/{name}/1.png": GOOD[FIRST] for name in NAMES},
        r"'cafe\\u0301' and 'caf\\xe9' differ in their Unicode normal form only",
    ),
    "another name in the other split": (
        GOOD | {f"{part}/{name}/1.png": GOOD[FIRST] for part, name in zip(("train", "test"), NAMES, strict=True)},
        "normal form only",
    ),
    "class without images": (GOOD | {"train/c/": b"", "test/c/": b""}, "train/c: a class without images"),
    "no train folder": (
        {path: content for path, content in GOOD.items() if path.startswith("test")},
        r"train: no class folders; expected {train,test}/<class>/<image>, found \['test'\]",
    ),
    "stray file beside class folders": (GOOD | {"train/labels.csv": b"x"}, "train/labels.csv: a file out of place"),
    "folder among images": (GOOD | {"train/a/more/1.png": GOOD[FIRST]}, "train/a/more.*: a (file|folder) out of place"),
    "empty": ({"README.md": b""}, r"train: no class folders; .*found \['README.md'\]"),
}


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["folder", "zip"])
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


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in {"type": kind, **values}.items():
        setattr(info, key, value)
    return info


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def flagged(content: bytes, change: Callable[[int], int]) -> bytes:
    """A zip with other flags at every member."""
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        first, *parts = (part for part in content.split(signature))
        for i, part in enumerate(parts):
            flags = change(int.from_bytes(part[at - 4 : at - 2], "little"))
            parts[i] = part[: at - 4] + flags.to_bytes(2, "little") + part[at - 2 :]
        content = signature.join([first, *parts])
    return content


def claiming(content: bytes) -> bytes:
    """A zip whose directory claims 2 GiB for its first member."""
    at = content.index(b"PK\x01\x02") + 24
    return content[:at] + struct.pack("<I", 2**31) + content[at + 4 :]


def changed(at: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :]


def stored_gzip(content: bytes) -> bytes:
    """Not compressed, with a changed byte that only the checksum at its end tells."""
    return changed(2000)(gzip.compress(content, 0))


def tar(change: Callable[[bytes], bytes], *members: tarfile.TarInfo, **more: bytes) -> Callable[[Path], Path]:
    return lambda path: patched(in_tar(path, GOOD | more, *members), change)


def zipped(change: Callable[[bytes], bytes], *members: tuple[zipfile.ZipInfo, bytes]) -> Callable[[Path], Path]:
    return lambda path: patched(in_zip(path, GOOD, *members), change)


LINK, BACKSLASH = member("train/a/3.png", tarfile.SYMTYPE, linkname="1.png"), unix("x", 0)
BACKSLASH.filename = "train\\a\\3.png"
BAD_ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tar: absolute path": (tar(bytes, **{"/tmp/0.png": b""}), "/tmp/0.png: leads out"),  # noqa: S108
    "tar: parent path": (tar(bytes, **{"train/../../0.png": b""}), "0.png: leads out"),
    "tar: symbolic link": (tar(bytes, LINK), "a/3.png: a link"),
    "tar: hard link": (tar(bytes, member("train/a/3.png", tarfile.LNKTYPE, linkname=FIRST)), "a/3.png: a link"),
    "tar: device": (tar(bytes, member("train/a/3.png", tarfile.CHRTYPE)), "a/3.png: a link or a device"),
    "tar: a file twice": (tar(bytes, member(FIRST)), "train/a/1.png: is there twice"),
    "tar: claims a huge size": (
        tar(lambda _: member("train/a/0.png", size=2**40).tobuf()),
        "unpacks to more than 32 GiB .* with train/a/0.png",
    ),
    "tar: a long extended header": (
        tar(bytes, member("train/a/3.png", pax_headers={"comment": "x" * 2**21})),
        "cannot be unpacked .a header of more than 1048576 bytes",
    ),
    "tar: without members": (lambda p: in_tar(p, {}), r"train: no class folders; .*found \[\]"),
    "tar: cut off in a member": (tar(lambda b: b[:2000]), "cannot be unpacked"),
    "tar: cut off between members": (tar(lambda b: b[:2048]), "cannot be unpacked"),
    "tar: a damaged header": (tar(changed(1024)), r"cannot be unpacked \(damaged or cut off after 1024 bytes\)"),
    "tar.gz: cut off": (tar(lambda b: gzip.compress(b)[:-9]), "cannot be unpacked .*; fetch the archive again"),
    "tar.gz: a changed byte": (tar(stored_gzip), r"cannot be unpacked \(CRC check failed"),
    "tar.bz2: half of it": (tar(lambda b: bz2.compress(b)[:1000]), "cannot be unpacked .Compressed file ended"),
    "tar.xz: half of it": (tar(lambda b: lzma.compress(b)[:1000]), "cannot be unpacked .Compressed file ended"),
    "gzip of text": (tar(lambda _: gzip.compress(b"x" * 999)), "cannot be unpacked"),
    "zip: absolute path": (zipped(bytes, (unix("/tmp/0.png", 0), b"")), "/tmp/0.png: leads out"),  # noqa: S108
    "zip: parent path": (zipped(bytes, (unix("../0.png", 0), b"")), r"\.\./0.png: leads out"),
    "zip: link": (zipped(bytes, (unix("train/a/3.png", 0o120777), b"1.png")), "train/a/3.png: a link"),
    "zip: password": (zipped(lambda b: flagged(b, lambda flags: flags | 1)), "train/a/1.png: .*password required"),
    "zip: claims a huge size": (zipped(claiming), "train/a/1.png: 2147483648 bytes"),
    "zip: a changed byte": (zipped(changed(100)), "train/a/1.png: cannot be unpacked"),
    "zip: cut off": (zipped(lambda b: b[:-30]), "cannot be unpacked"),
    "zip: names of an unknown encoding": (
        lambda p: patched(in_zip(p, {"train/\u732b/1.png": b""}), lambda b: flagged(b, lambda flags: flags & ~0x800)),
        "its name is neither ASCII nor marked as UTF-8; pack it again",
    ),
    "zip: backslashes": (zipped(bytes, (BACKSLASH, b"")), "3.png: its name has backslashes; pack it again"),
    "zip: very many folders": (
        lambda p: in_zip(p, {f"train/{i}/": b"" for i in range(70_000)}),
        "unpacks to more than 32 GiB or 65536 folders",
    ),
    "a web page": (tar(lambda _: b"<html>Sign in</html>"), "no archive, begins with b'<html>Sign in</html>'"),
    "empty file": (tar(lambda _: b""), "no archive, begins with b''"),
    "missing": (lambda p: p, "images.x: not there; give another data.path, or regenerate the digits suite"),
    "folder": (lambda p: in_folder(p, GOOD), "images.x: not there"),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_gives_one_message_that_names_the_member(case: str, tmp_path: Path) -> None:
    write, message = BAD_ARCHIVES[case]
    path, place = tmp_path / "images.x", tmp_path / "place"
    place.mkdir()
    write(path)
    with pytest.raises(UserError, match=message) as found:
        from_archive(path, place=place)
    assert str(found.value).startswith(str(path)) and "\n" not in str(found.value)
    assert not list(place.iterdir())
    assert sorted(tmp_path.iterdir()) == sorted({path, place} & set(tmp_path.iterdir()))


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
    with pytest.raises(UserError, match=r"images.zip: unpacks to more than 0 GiB"):
        from_archive(in_zip(tmp_path / "images.zip", GOOD))


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
    with pytest.raises(UserError, match=f"images.tar: sha256 is {digest}, data.sha256 says 0000; fetch it again"):
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
    assert loaded.sha256() == dataset.sha256() == description["sha256"]
    images = np.concatenate([dataset.train.images, dataset.test.images])
    np.testing.assert_array_equal(np.load(tmp_path / data.IMAGES), images)
    np.testing.assert_array_equal(np.load(tmp_path / data.LABELS), [0, 0, 1, 1, 0, 0, 1, 1])
    assert json.loads((tmp_path / data.DESCRIPTION).read_text()) == json.loads(json.dumps(description))
    assert description["images_per_class"] == {"train": [2, 2], "test": [2, 2]}
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(description["train_mean"], pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(description["train_std"], pixels.std(axis=(0, 1, 2)), atol=1e-6)


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


@pytest.mark.fault
@pytest.mark.parametrize("name", [data.IMAGES, data.LABELS, data.DESCRIPTION])
def test_a_missing_file_of_the_canonical_data_set_is_named(name: str, tmp_path: Path) -> None:
    data.save(small(), tmp_path, "a test")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: not there; run `python -m stages.fetch suite="):
        data.load(tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"sha256": "0"}', b'"\xff"'])
def test_a_damaged_description_is_named(content: bytes, tmp_path: Path) -> None:
    data.save(small(), tmp_path, "a test")
    (tmp_path / data.DESCRIPTION).write_bytes(content)
    with pytest.raises(UserError, match=rf"{data.DESCRIPTION}: cannot be read"):
        data.load(tmp_path)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", ["a", "b"], "a file was changed"),
        ("classes", 1, "dataset.json: cannot be read"),
        ("sha256", "0", "a file was changed"),
        ("images", {"train": 3, "test": 5}, "a file was changed"),
        (
            "images",
            {"train": 4, "test": 5},
            r"images.npy: cannot be read .uint8 \(8, 2, 2, 3\), .*says .*\(9, 2, 2, 3\)",
        ),
        ("image_shape", [2, 2, 4], "images.npy: cannot be read"),
    ],
)
def test_a_description_of_other_images_is_noticed(key: str, value: Any, message: str, tmp_path: Path) -> None:
    description = data.save(small(), tmp_path, "a test")
    (tmp_path / data.DESCRIPTION).write_text(json.dumps(description | {key: value}))
    with pytest.raises(UserError, match=message):
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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere:")
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


def test_the_original_archive_at_hand_takes_the_place_of_a_download(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_cifar(server, monkeypatch, tmp_path, BATCHES)
    downloaded = sources.torchvision("CIFAR10", tmp_path)
    server.fault, at_hand = "404", (tmp_path / "cifar.tar.gz").rename(tmp_path / "mine.tgz")
    assert sources.torchvision("CIFAR10", tmp_path, at_hand).sha256() == downloaded.sha256()
    patched(at_hand, changed(40))
    for name, message in (
        ("CIFAR10", "mine.tgz: is not cifar.tar.gz, whose md5 is"),
        ("MNIST", "data.path: found with"),
    ):
        settings = "data.source=torchvision", f"data.name={name}", f"data.path={at_hand}"
        assert message in fails(monkeypatch, capsys, project, *settings)


def test_class_folders_of_the_same_images_have_the_same_hash_and_of_other_names_the_same_unordered_one(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve_cifar(server, monkeypatch, tmp_path, BATCHES)
    downloaded, images = sources.torchvision("CIFAR10", tmp_path), list(zip(CIFAR_PIXELS, CIFAR_LABELS, strict=True))

    def with_names(*names: str) -> data.Dataset:
        folders = [f"{'train' if i < 4 else 'test'}/{('cat', 'dog')[label]}" for i, (_, label) in enumerate(images)]
        return read("folder", tmp_path / names[0], {
            f"{folder}/{name}": encoded(image)
            for folder, name, (image, _) in zip(folders, names, images, strict=True)
        })  # fmt: skip

    original, numbered = with_names(*CIFAR_FILES), with_names(*(f"{number}.png" for number in range(6)))
    assert original.sha256() == downloaded.sha256() != numbered.sha256()
    assert numbered.unordered_sha256() == downloaded.unordered_sha256()


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
    file = "cifar.tar.gz" if name == "CIFAR10" else ".*train-images-idx3-ubyte.gz:"
    assert_matches(f"error: {name}: {address(server)}{file} .*", message)
    assert_matches(f".*{FAULTS[fault]}.*; try again, .*take class folders of it .*the digits suite.*", message)
    assert ("give cifar.tar.gz, if you have it, as data.path" in message) == (name == "CIFAR10")


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


def test_torchvision_s_formats_give_exact_pixels_and_files_that_lie_there_are_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: Path
) -> None:
    """CIFAR by class and file name."""
    serve_cifar(server, monkeypatch, tmp_path, BATCHES)
    serve_mnist(server, monkeypatch)
    exploit = pickle.dumps(Exploit(tmp_path / "canary"))
    for folder in (tmp_path / "temporary", project, project / "data"):
        in_folder(folder / "cifar-10-batches-py", dict.fromkeys(BATCHES, exploit))
        in_folder(folder / "MNIST" / "processed", {"training.pt": exploit, "test.pt": exploit})
    cifar, mnist = sources.torchvision("CIFAR10", tmp_path), sources.torchvision("MNIST", tmp_path)
    np.testing.assert_array_equal([*cifar.train.images, *cifar.test.images], CIFAR_PIXELS[CIFAR_ORDER])
    assert [*cifar.train.labels, *cifar.test.labels] == [0, 0, 1, 1, 0, 1] and cifar.classes == ("cat", "dog")
    np.testing.assert_array_equal([*mnist.train.images, *mnist.test.images], MNIST_PIXELS[..., None])
    assert mnist.train.labels.tolist() == mnist.test.labels.tolist() == [3, 9] and len(mnist.classes) == 10
    assert not any(path.name.startswith("tmp") or path.name == "canary" for path in tmp_path.iterdir())


# --- the fetch stage --------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.source=torchvision"], "data.name: missing"),
        (["data.source=torchvision", "data.name=CIFAR11"], "data.name: 'CIFAR11' is not .*expected one of .'CIFAR10'"),
        (["data.source=folder"], "data.path: missing; data.source: folder needs"),
        (["data.source=folder", "data.path=nowhere"], "nowhere/train: no class folders"),
        (["data.source=archive", "data.path=nowhere.zip"], "nowhere.zip: not there"),
        (["data.path=x"], "data.path: found with .*; expected with torchvision or folder or archive"),
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


def test_digits_are_fetched(monkeypatch: pytest.MonkeyPatch, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch.py", "suite=digits"])
    run(fetch.main)
    assert capsys.readouterr().out == (
        "data/digits: 898 training and 899 test images of 8 x 8 x 1, 10 classes, sha256 9ba457968706; "
        "0 images stand in both splits, 0 under several labels\n"
    )
    description = json.loads((project / "data/digits" / data.DESCRIPTION).read_text())
    assert description["duplicates"] == {"train_and_test": 0, "contradicting_labels": 0}
    files = sorted(path.name for path in (project / "data/digits").iterdir())
    assert files == ["dataset.json", "images.npy", "labels.npy"]


def test_the_description_names_the_rules_by_which_files_became_pixels(project: Path) -> None:
    images = in_folder(project / "images", {path: encoded(photo) for path, photo in PHOTOS.items()})
    settings = ("data.source=folder", f"data.path={images}", "data.image_size=10")
    words = [sys.executable, "-m", "stages.fetch", "suite=digits", *(f"++suites.digits.{word}" for word in settings)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, cwd=project, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert data.load(project / "data/digits").sha256() == sources.folder(images, 10).sha256()
    description = json.loads((project / "data/digits" / data.DESCRIPTION).read_text())
    rule = "shorter side resized (bilinear, antialiased), centre cropped"
    assert description["resized"] == {"image_size": 10, "rule": rule}
    assert description["orientation"] == "upright, as the EXIF orientation tag says"
