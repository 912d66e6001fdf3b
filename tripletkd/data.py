"""The canonical data set, and batches of it on the device: order, different-class negatives, augmentation."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import Problem
from .provenance import write_json

IMAGES, DESCRIPTION = "images.safetensors", "dataset.json"


@dataclass(frozen=True)
class Split:
    """images: uint8 [N, H, W, C]; labels: int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def select(self, index: NDArray[np.intp]) -> "Split":
        return Split(np.ascontiguousarray(self.images[index]), self.labels[index])

    def hashes(self) -> list[bytes]:
        """The sha256 of each image's pixels."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images]

    def per_class(self, count: int) -> NDArray[np.intp]:
        """The indices of the first `count` images of each class, in the order of the split."""
        by_class = np.argsort(self.labels, kind="stable")
        begins = np.searchsorted(self.labels[by_class], self.labels[by_class])
        return np.sort(by_class[np.arange(len(by_class)) - begins < count])


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over the same classes."""

    train: Split
    test: Split
    classes: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def sha256(self) -> str:
        """Of pixels, labels and class names; the order of the images counts."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for split in (self.train, self.test):
            digest.update(json.dumps(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
        return digest.hexdigest()

    def unordered_sha256(self) -> str:
        """As sha256, but the order of the images does not count: whether two sources hold the same ones."""
        digest = hashlib.sha256(json.dumps([self.classes, self.image_shape]).encode())
        for split in (self.train, self.test):
            labelled = sorted(zip(split.labels.tolist(), split.hashes(), strict=True))
            digest.update(json.dumps([(label, pixels.hex()) for label, pixels in labelled]).encode())
        return digest.hexdigest()

    def duplicates(self) -> dict[str, int]:
        """How many different images stand in both splits, and under several labels; equal is what has equal bytes."""
        places: dict[bytes, set[tuple[str, int]]] = defaultdict(set)
        for part, split in (("train", self.train), ("test", self.test)):
            for pixels, label in zip(split.hashes(), split.labels.tolist(), strict=True):
                places[pixels].add((part, label))
        return {
            "train_and_test": sum(len({part for part, _ in where}) > 1 for where in places.values()),
            "contradicting_labels": sum(len({label for _, label in where}) > 1 for where in places.values()),
        }

    def limited(self, per_class: int) -> "Dataset":
        """The first `per_class` images of each class, of either split."""
        train, test = (s.select(s.per_class(per_class)) for s in (self.train, self.test))
        return Dataset(train, test, self.classes)

    def with_holdout(self, per_class: int) -> "Dataset":
        """The first `per_class` training images of each class in the place of the test split.

        For choosing hyper-parameters: the test images are not even in memory. Problem if nothing is left to train on.
        """
        held = np.zeros(len(self.train.labels), dtype=bool)
        held[self.train.per_class(per_class)] = True
        train, holdout = self.train.select(np.flatnonzero(~held)), self.train.select(np.flatnonzero(held))
        if len(np.unique(train.labels)) < len(self.classes):
            raise Problem(f"holdout: {per_class} images a class leave a class of the training split empty; take fewer")
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
    """Mean and standard deviation a channel of pixels / 255, exact: from a histogram of the 256 values."""
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in np.moveaxis(images, -1, 0):
        share = np.bincount(channel.ravel(), minlength=256) / channel.size
        mean = float(share @ values)
        means.append(round(mean, 6))
        stds.append(round(float(np.sqrt(share @ (values - mean) ** 2)), 6))
    return means, stds


def load(folder: Path) -> Dataset:
    """Read what `save` wrote and check its sha256; Problem if the files are not there or not what they were."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    for path in (folder / DESCRIPTION, folder / IMAGES):
        if not path.is_file():
            raise Problem(f"{path}: not there; run `python -m stages.fetch suite={folder.name}` first")
    again = "delete the folder and run the fetch stage again"
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        expected, classes = description["sha256"], tuple(description["classes"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise Problem(f"{folder / DESCRIPTION}: cannot be read ({error!r}); {again}") from None
    try:
        (folder / IMAGES).open("rb").close()  # safetensors calls a file that may not be read "not there"
        arrays = load_file(folder / IMAGES)
        train, test = (Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "test"))
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise Problem(f"{folder / IMAGES}: cannot be read ({error!r}); {again}") from None
    dataset = Dataset(train, test, classes)
    types = {array.dtype for array in arrays.values()}  # which the sha256 does not cover
    if (found := dataset.sha256()) != expected or types != {np.dtype(np.uint8), np.dtype(np.int64)}:
        raise Problem(
            f"{folder}: sha256 of the images is {found}, {DESCRIPTION} says {expected}; a file was changed: {again}"
        )
    return dataset


# --- batches on the device --------------------------------------------------------------------------------------------

ORDER, NEGATIVES, AUGMENTATION = range(3)  # independent streams of random numbers, see `draw`


@dataclass(frozen=True)
class Inputs:
    """How pixels become a network's input: (pixels / 255 - mean) / std a channel, after a random crop and flip."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop_padding: int = 0
    flip: bool = False

    @property
    def augments(self) -> bool:
        return self.flip or self.crop_padding > 0

    def statistics(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and std, [C] each: made once, for a CUDA graph cannot hold a copy from the host."""
        mean, std = (torch.tensor(values, dtype=dtype, device=device) for values in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class Plan:
    """All randomness of an epoch, of one seed or stacked over several: `index` [..., views, N] and what augments it.

    View 0 is the images x in training order; view 1, where there is one, an x' of another class for each x.
    shift: [..., views, N, 2], where the crop begins in the padded image; flip: [..., views, N].
    """

    index: Tensor
    shift: Tensor | None = None
    flip: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Plan":
        shift, flip = (None if t is None else function(t) for t in (self.shift, self.flip))
        return Plan(function(self.index), shift, flip)

    def copy_(self, other: "Plan") -> None:
        """In place; of the same shape."""
        for mine, its in ((self.index, other.index), (self.shift, other.shift), (self.flip, other.flip)):
            if mine is not None and its is not None:
                mine.copy_(its)

    @staticmethod
    def stack(plans: Sequence["Plan"]) -> "Plan":
        """Of several seeds: a leading dimension for the seed."""
        shift = None if plans[0].shift is None else torch.stack([p.shift for p in plans if p.shift is not None])
        flip = None if plans[0].flip is None else torch.stack([p.flip for p in plans if p.flip is not None])
        return Plan(torch.stack([p.index for p in plans]), shift, flip)

    def batches(self, size: int) -> Iterator["Plan"]:
        """Consecutive batches; the last one may be smaller."""
        for start in range(0, self.index.shape[-1], size):
            at = slice(start, start + size)
            yield Plan(
                self.index[..., at],
                None if self.shift is None else self.shift[..., at, :],
                None if self.flip is None else self.flip[..., at],
            )


class Sampler:
    """Draws the Plan of an epoch. Each number is a function of (seed, epoch, stream): no state to save or to share.

    All methods thus see the same images in the same order for the same seed, whether or not they use negatives.
    """

    def __init__(self, labels: NDArray[np.int64], inputs: Inputs, negatives: bool) -> None:
        self.labels, self.inputs, self.negatives = labels, inputs, negatives
        self.by_class = np.argsort(labels, kind="stable")
        self.count = np.bincount(labels)
        self.first = np.cumsum(self.count) - self.count

    def draw(self, seed: int, epoch: int) -> Plan:
        order = np.random.default_rng([seed, epoch, ORDER]).permutation(len(self.labels))
        views = [order]
        if self.negatives:
            views.append(self.other_class(order, np.random.default_rng([seed, epoch, NEGATIVES])))
        index = torch.from_numpy(np.stack(views))
        if not self.inputs.augments:
            return Plan(index)
        # A stream a view: whether there is an x' makes no difference to x.
        drawn = [
            self._augmentation(np.random.default_rng([seed, epoch, AUGMENTATION, view])) for view in range(len(views))
        ]
        shift, flip = (torch.from_numpy(np.stack(column)) for column in zip(*drawn, strict=True))
        return Plan(index, shift, flip)

    def _augmentation(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        count = len(self.labels)
        shift = rng.integers(0, 2 * self.inputs.crop_padding, (count, 2), endpoint=True)
        return shift, (rng.random(count) < 0.5) & self.inputs.flip

    def other_class(self, index: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """For each image one drawn uniformly from all images of other classes: its own class is skipped over."""
        label = self.labels[index]
        draw = rng.integers(0, len(self.labels) - self.count[label])
        return self.by_class[draw + np.where(draw >= self.first[label], self.count[label], 0)]


class DeviceSplit:
    """A split resident on the device, and its images as network inputs."""

    def __init__(self, split: Split, inputs: Inputs, device: torch.device, dtype: torch.dtype) -> None:
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.inputs, self.dtype = inputs, dtype
        self.mean, self.std = inputs.statistics(device, dtype)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, plan: Plan) -> Tensor:
        """The planned images, augmented and normalised: [*plan.index.shape, C, H, W]."""
        images = self.images[plan.index]
        if plan.shift is not None and plan.flip is not None:
            images = crop_and_flip(images, plan.shift, plan.flip, self.inputs.crop_padding)
        return normalise(images, self.mean, self.std)

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs [B, C, H, W], labels [B]) in the order of the split, not augmented, for evaluation."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield normalise(images, self.mean, self.std), labels


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(pixels / 255 - mean) / std: uint8 [..., H, W, C] -> [..., C, H, W] of the statistics' type, channels last."""
    return ((images.to(mean.dtype) / 255 - mean) / std).movedim(-1, -3)


def crop_and_flip(images: Tensor, shift: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Each image padded with black, cropped to its old size from `shift` (row, column) on, then mirrored where `flip`.

    images: [..., H, W, C]; shift: [..., 2], 0 to 2 * padding; flip: [...].
    """
    height, width = images.shape[-3:-1]
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
    rows = shift[..., 0, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = shift[..., 1, None] + torch.where(flip[..., None], columns.flip(0), columns)
    flat = padded.flatten(0, -4)
    image = torch.arange(len(flat), device=images.device)[:, None, None]
    return flat[image, rows.flatten(0, -2)[:, :, None], columns.flatten(0, -2)[:, None, :]].view(images.shape)
