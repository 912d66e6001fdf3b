"""The canonical data set: images.npy and labels.npy, training before test, and dataset.json with counts and hashes."""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tripletkd.errors import UserError
from tripletkd.files import Json, write_json

IMAGES, LABELS, DESCRIPTION = "images.npy", "labels.npy", "dataset.json"
AGAIN = "delete the folder and run the fetch stage again"
CHUNK_BYTES = 2**24  # of images that are in memory at once, where all are gone through


class Images(Protocol):
    """uint8 [N, H, W, C]: an array in memory, one that is mapped from a file, or what decodes images when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return N, H, W and C."""

    def __getitem__(self, at: slice | NDArray[np.intp], /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Split:
    """Holds labelled images: all that `stored` has, or those at some places of it.

    stored: uint8 [M, H, W, C]; labels: int64 [N]; places: of the images in `stored`, [N], None for all.
    """

    stored: Images
    labels: NDArray[np.int64]
    places: NDArray[np.intp] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the number of images, their height, width and channels."""
        _, height, width, channels = self.stored.shape
        return len(self.labels), height, width, channels

    @property
    def nbytes(self) -> int:
        """Return how many bytes the images have."""
        return math.prod(self.shape)

    @property
    def images(self) -> NDArray[np.uint8]:
        """Return all images, in memory: [N, H, W, C]."""
        return self.take(slice(None))

    def take(self, at: slice | NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return some of the images, in memory."""
        return np.require(self.stored[at if self.places is None else self.places[at]], requirements=["C", "W"])

    def chunks(self, size: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in order, so many at a time; by default as many as fill CHUNK_BYTES."""
        size = size or max(1, CHUNK_BYTES // math.prod(self.shape[1:]))
        for start in range(0, len(self.labels), size):
            yield self.take(slice(start, start + size))

    def select(self, index: NDArray[np.intp]) -> "Split":
        """Keep the images at these places; none is copied."""
        return replace(self, labels=self.labels[index], places=index if self.places is None else self.places[index])

    def contents(self) -> Iterator[bytes | memoryview]:
        """Yield what the hash of a data set covers: the shape, and the pixels of all images in order."""
        yield json.dumps(self.shape).encode()
        for chunk in self.chunks():
            yield chunk.data

    def items(self) -> Iterator[bytes | memoryview]:
        """Yield by what each image is known again: its pixels."""
        return (image.data for chunk in self.chunks() for image in chunk)

    def hashes(self) -> NDArray[np.uint8]:
        """Hash each of `items` with sha256: [N, 32]."""
        digests = (hashlib.sha256(item).digest() for item in self.items())
        return np.fromiter(digests, "S32", len(self.labels)).view(np.uint8).reshape(-1, 32)

    def per_class(self, count: int) -> NDArray[np.intp]:
        """Find the indices of the first `count` images of each class, in the order of the split."""
        by_class = np.argsort(self.labels, kind="stable")
        begins = np.searchsorted(self.labels[by_class], self.labels[by_class])
        return np.sort(by_class[np.arange(len(by_class)) - begins < count])


@dataclass(frozen=True)
class Dataset:
    """Holds a training and a test split over the same classes."""

    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return height, width and channels of an image."""
        _, height, width, channels = self.train.shape
        return height, width, channels

    def sha256(self) -> str:
        """Hash pixels, labels and class names; the order of the images counts."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for split in (self.train, self.test):
            for content in split.contents():
                digest.update(content)
            digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
        return digest.hexdigest()

    def unordered_sha256(self) -> str:
        """Hash as `sha256` does, but in any order of the images: whether two sources hold the same ones."""
        digest = hashlib.sha256(json.dumps([self.classes, self.image_shape]).encode())
        for split in (self.train, self.test):
            hashes = split.hashes()
            order = np.lexsort((hashes.view("S32")[:, 0], split.labels))
            for place, image in enumerate(order):  # a list in JSON, an item at a time
                item = json.dumps([int(split.labels[image]), hashes[image].tobytes().hex()])
                digest.update(f"{', ' if place else '['}{item}".encode())
            digest.update(b"]")
        return digest.hexdigest()

    def duplicates(self) -> dict[str, int]:
        """Count the different images that stand in both splits, and under several labels; equal bytes are one image."""
        hashes = np.concatenate([self.train.hashes(), self.test.hashes()])
        _, image = np.unique(hashes, axis=0, return_inverse=True)
        part = np.repeat([0, 1], [len(self.train.labels), len(self.test.labels)])
        label = np.concatenate([self.train.labels, self.test.labels])

        def in_several(groups: NDArray[np.int64]) -> int:
            pairs = np.unique(np.stack([image.ravel(), groups], axis=1), axis=0)
            return int((np.bincount(pairs[:, 0]) > 1).sum())

        return {"train_and_test": in_several(part), "contradicting_labels": in_several(label)}

    def limited(self, per_class: int) -> "Dataset":
        """Keep the first `per_class` images of each class, of either split."""
        train, test = (s.select(s.per_class(per_class)) for s in (self.train, self.test))
        return Dataset(train, test, self.classes)

    def with_holdout(self, per_class: int) -> "Dataset":
        """Put the first `per_class` training images of each class in the place of the test split.

        For choosing hyper-parameters: the test images are not even in memory. UserError if nothing is left to train on.
        """
        held = np.zeros(len(self.train.labels), dtype=bool)
        held[self.train.per_class(per_class)] = True
        train, holdout = self.train.select(np.flatnonzero(~held)), self.train.select(np.flatnonzero(held))
        if len(np.unique(train.labels)) < len(self.classes):
            raise UserError(
                f"holdout: {per_class} images a class leave a class of the training split empty; take fewer"
            )
        return Dataset(train, holdout, self.classes)


def save(dataset: Dataset, folder: Path, source: str, more: Mapping[str, object] | None = None) -> Json:
    """Write the canonical files, images.npy, labels.npy and dataset.json, a few images at a time.

    Args:
        dataset: Its images may lie anywhere; what decodes them is asked for each once.
        folder: Where to write.
        source: What dataset.json is to say of their source.
        more: What else it is to say.

    Returns:
        What dataset.json says.

    Raises:
        UserError: If there is no room for the images.
    """
    splits = [dataset.train, dataset.test]
    needed, free = sum(split.nbytes for split in splits), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder.parent}: the images take {needed / 2**30:.1f} GiB of disk, {free / 2**30:.1f} GiB are free: "
            "make room, or take fewer (data.per_class) or smaller ones (data.image_size)"
        )
    _write(folder / IMAGES, splits, f"writing {source}")
    np.save(folder / LABELS, np.concatenate([split.labels for split in splits]).astype("<i8"))
    dataset = _read(folder, _layout(dataset))
    return describe(folder, dataset, {"source": source, **(more or {})}, _channel_statistics(dataset.train))


def _layout(dataset: Dataset) -> Json:
    counts = {"train": len(dataset.train.labels), "test": len(dataset.test.labels)}
    return {"image_shape": dataset.image_shape, "classes": dataset.classes, "images": counts}


def describe(
    folder: Path, dataset: Dataset, more: Mapping[str, object], statistics: tuple[list[float], list[float]]
) -> Json:
    """Write dataset.json, and return what it says: `more`, the hashes and counts, and the statistics (mean, std)."""
    splits, (mean, std) = {"train": dataset.train, "test": dataset.test}, statistics
    description = {
        **more,
        "sha256": dataset.sha256(),
        "unordered_sha256": dataset.unordered_sha256(),
        **_layout(dataset),
        "images_per_class": {
            part: np.bincount(split.labels, minlength=len(dataset.classes)).tolist() for part, split in splits.items()
        },
        "duplicates": dataset.duplicates(),
        "train_mean": mean,
        "train_std": std,
    }
    write_json(folder / DESCRIPTION, description)
    return description


def _write(path: Path, splits: Sequence[Split], title: str) -> None:
    """Write a .npy file chunk by chunk, not through a map: there a full disk would end the process by a signal."""
    from tqdm import tqdm

    shape = (sum(len(split.labels) for split in splits), *splits[0].shape[1:])
    with path.open("wb") as file, tqdm(total=shape[0], desc=title, unit="image", disable=None, leave=False) as bar:
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for chunk in chain.from_iterable(split.chunks() for split in splits):
            file.write(chunk.data)
            bar.update(len(chunk))


def _read(folder: Path, description: Json) -> Dataset:
    """Map the images and read the labels, which must have the shapes that the description says."""
    if "photographs" in description:
        from tripletkd.data import photographs

        return photographs.read(folder, description)
    train, images = description["images"]["train"], sum(description["images"].values())
    stored = map_file(folder / IMAGES, "|u1", (images, *description["image_shape"]))
    labels = np.array(map_file(folder / LABELS, "<i8", (images,)))
    first, rest = slice(train), slice(train, None)
    classes = tuple(description["classes"])
    return Dataset(Split(stored[first], labels[first]), Split(stored[rest], labels[rest]), classes)


def map_file(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map a .npy file; UserError unless it has that type and shape."""
    try:
        found = npy.open_memmap(path, mode="r")
        if (found.dtype, found.shape) != (np.dtype(dtype), shape):
            raise ValueError(f"{found.dtype} {found.shape}, {DESCRIPTION} says {np.dtype(dtype)} {shape}")
    except OSError:
        raise
    except Exception as error:  # whatever NumPy's parser raises for bytes that anyone may have made
        raise UserError(f"{path}: cannot be read ({error}); {AGAIN}") from None
    return np.asarray(found)


def _channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation a channel of pixels / 255, exactly: from a histogram of the 256 values."""
    counts = np.zeros((split.shape[3], 256), dtype=np.int64)
    for chunk in split.chunks():
        counts += histogram(chunk)
    return statistics(counts)


def histogram(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the 256 values of each channel, [C, 256], of images [..., C]."""
    return np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(images, -1, 0)])


def statistics(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of each channel's values / 255 from their histogram [C, 256]."""
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    return mean.round(6).tolist(), std.round(6).tolist()


def load(folder: Path) -> Dataset:
    """Map what `save` wrote and check its sha256; UserError if the files are not there or not what they were."""
    for name in (DESCRIPTION, IMAGES, LABELS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: not there; run `python -m stages.fetch suite={folder.name}` first")
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        dataset, expected = _read(folder, description), description["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / DESCRIPTION}: cannot be read ({error!r}); {AGAIN}") from None
    if (found := dataset.sha256()) != expected:
        raise UserError(
            f"{folder}: sha256 of the images is {found}, {DESCRIPTION} says {expected}; a file was changed: {AGAIN}"
        )
    return dataset
