"""The canonical data set, and batches of it on the device: order, different-class negatives, augmentation."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tripletkd.errors import UserError
from tripletkd.files import write_json

IMAGES, DESCRIPTION = "images.safetensors", "dataset.json"


@dataclass(frozen=True)
class Split:
    """images: uint8 [N, H, W, C]; labels: int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def select(self, index: NDArray[np.intp]) -> "Split":
        """Take the images at these places."""
        return Split(np.ascontiguousarray(self.images[index]), self.labels[index])

    def hashes(self) -> list[bytes]:
        """Hash each image's pixels with sha256."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images]

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
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def sha256(self) -> str:
        """Hash pixels, labels and class names; the order of the images counts."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for split in (self.train, self.test):
            digest.update(json.dumps(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
        return digest.hexdigest()

    def unordered_sha256(self) -> str:
        """Hash as `sha256` does, but in any order of the images: whether two sources hold the same ones."""
        digest = hashlib.sha256(json.dumps([self.classes, self.image_shape]).encode())
        for split in (self.train, self.test):
            labelled = sorted(zip(split.labels.tolist(), split.hashes(), strict=True))
            digest.update(json.dumps([(label, pixels.hex()) for label, pixels in labelled]).encode())
        return digest.hexdigest()

    def duplicates(self) -> dict[str, int]:
        """Count the different images that stand in both splits, and under several labels; equal bytes are one image."""
        places: dict[bytes, set[tuple[str, int]]] = defaultdict(set)
        for part, split in (("train", self.train), ("test", self.test)):
            for pixels, label in zip(split.hashes(), split.labels.tolist(), strict=True):
                places[pixels].add((part, label))
        return {
            "train_and_test": sum(len({part for part, _ in where}) > 1 for where in places.values()),
            "contradicting_labels": sum(len({label for _, label in where}) > 1 for where in places.values()),
        }

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


def save(dataset: Dataset, folder: Path, source: str) -> dict[str, Any]:
    """Write the canonical files, images.safetensors and dataset.json; returns what the latter says."""
    from safetensors.numpy import save as serialised

    arrays: dict[str, NDArray[Any]] = {}
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    # Of an array that is not contiguous, safetensors would write other values.
    (folder / IMAGES).write_bytes(serialised({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    mean, std = _channel_statistics(dataset.train.images)
    description = {
        "source": source,
        "sha256": dataset.sha256(),
        "unordered_sha256": dataset.unordered_sha256(),
        "image_shape": dataset.image_shape,
        "classes": dataset.classes,
        "images": {"train": len(dataset.train.labels), "test": len(dataset.test.labels)},
        "images_per_class": {
            "train": np.bincount(dataset.train.labels, minlength=len(dataset.classes)).tolist(),
            "test": np.bincount(dataset.test.labels, minlength=len(dataset.classes)).tolist(),
        },
        "duplicates": dataset.duplicates(),
        "train_mean": mean,
        "train_std": std,
    }
    write_json(folder / DESCRIPTION, description)
    return description


def _channel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation a channel of pixels / 255, exactly: from a histogram of the 256 values."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in np.moveaxis(images, -1, 0):
        share = np.bincount(channel.ravel(), minlength=256) / channel.size
        mean = float(share @ values)
        means.append(round(mean, 6))
        stds.append(round(float(np.sqrt(share @ (values - mean) ** 2)), 6))
    return means, stds


def load(folder: Path) -> Dataset:
    """Read what `save` wrote and check its sha256; UserError if the files are not there or not what they were."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for path in (folder / DESCRIPTION, folder / IMAGES):
        if not path.is_file():
            raise UserError(f"{path}: not there; run `python -m stages.fetch suite={folder.name}` first")
    again = "delete the folder and run the fetch stage again"
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        expected, classes = description["sha256"], tuple(description["classes"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{folder / DESCRIPTION}: cannot be read ({error!r}); {again}") from None
    try:
        (folder / IMAGES).open("rb").close()  # safetensors calls a file that may not be read "not there"
        arrays = load_file(folder / IMAGES)
        train, test = (Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "test"))
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{folder / IMAGES}: cannot be read ({error!r}); {again}") from None
    dataset = Dataset(train, test, classes)
    types = {array.dtype for array in arrays.values()}  # which the sha256 does not cover
    if (found := dataset.sha256()) != expected or types != {np.dtype(np.uint8), np.dtype(np.int64)}:
        raise UserError(
            f"{folder}: sha256 of the images is {found}, {DESCRIPTION} says {expected}; a file was changed: {again}"
        )
    return dataset


# --- batches on the device --------------------------------------------------------------------------------------------
