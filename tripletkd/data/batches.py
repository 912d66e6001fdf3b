"""Batches of a split on the device: order, different-class negatives, augmentation, normalisation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripletkd.data.dataset import Dataset, Split

ORDER, NEGATIVES, AUGMENTATION, CONTRAST = range(4)  # independent streams of random numbers, see `draw`


@dataclass(frozen=True)
class Inputs:
    """Says how pixels become a network's input: (pixels / 255 - mean) / std, after a random crop and flip."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop_padding: int = 0
    flip: bool = False

    @property
    def augments(self) -> bool:
        """Tell whether an image is another one each time it is taken."""
        return self.flip or self.crop_padding > 0

    def statistics(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Put mean and std, [C] each, on a device, once: a CUDA graph cannot hold a copy from the host."""
        mean, std = (torch.tensor(values, dtype=dtype, device=device) for values in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class Plan:
    """Holds all randomness of an epoch, of one seed or of several: `index` [..., views, N] and what augments it.

    View 0 is the images x in training order; view 1, where there is one, an x' of another class for each x.
    shift: [..., views, N, 2], where the crop begins in the padded image; flip: [..., views, N].
    draw_contrast: of an epoch, draws `contrast` for the images at a slice of N: all at once would not fit into memory.
    contrast: of a batch, how often each image of the split is drawn to contrast with each x, [..., N, images].
    images: of a batch, its images as they are stored, [..., views, N, H, W, C]; None where the device has them all.
    """

    index: Tensor
    shift: Tensor | None = None
    flip: Tensor | None = None
    draw_contrast: Callable[[slice], Tensor] | None = None
    contrast: Tensor | None = None
    images: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Plan":
        """Apply a function to every tensor."""
        optional = (self.shift, self.flip, self.contrast, self.images)
        shift, flip, contrast, images = (None if t is None else function(t) for t in optional)
        draw = self.draw_contrast
        return Plan(function(self.index), shift, flip, draw and (lambda at: function(draw(at))), contrast, images)

    def copy_(self, other: "Plan") -> None:
        """Copy the numbers of a plan of the same shape into this one."""
        for name in ("index", "shift", "flip", "contrast", "images"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine is not None and its is not None:
                mine.copy_(its)

    @staticmethod
    def stack(plans: Sequence["Plan"]) -> "Plan":
        """Stack the plans of several seeds along a new first dimension."""
        shift = None if plans[0].shift is None else torch.stack([p.shift for p in plans if p.shift is not None])
        flip = None if plans[0].flip is None else torch.stack([p.flip for p in plans if p.flip is not None])
        draws = [p.draw_contrast for p in plans if p.draw_contrast is not None]
        draw_all = (lambda at: torch.stack([draw(at) for draw in draws])) if draws else None
        return Plan(torch.stack([p.index for p in plans]), shift, flip, draw_all)

    def batches(self, size: int) -> Iterator["Plan"]:
        """Cut the plan into consecutive batches; the last one may be smaller."""
        for start in range(0, self.index.shape[-1], size):
            at = slice(start, start + size)
            yield Plan(
                self.index[..., at],
                None if self.shift is None else self.shift[..., at, :],
                None if self.flip is None else self.flip[..., at],
                contrast=None if self.draw_contrast is None else self.draw_contrast(at),
            )


class Sampler:
    """Draws the Plan of an epoch. Each number is a function of (seed, epoch, stream): no state to save or to share.

    All methods thus see the same images in the same order for the same seed, whether or not they use negatives.
    """

    def __init__(self, labels: NDArray[np.int64], inputs: Inputs, negatives: bool, contrasts: int = 0) -> None:
        """Sort the images by class.

        Args:
            labels: of the split, [N].
            inputs: says how images are augmented.
            negatives: whether there is an x' for each x.
            contrasts: how many images contrast with each x, at most 32767.
        """
        self.labels, self.inputs, self.negatives, self.contrasts = labels, inputs, negatives, contrasts
        self.by_class = np.argsort(labels, kind="stable")
        self.count = np.bincount(labels)
        self.first = np.cumsum(self.count) - self.count

    def draw(self, seed: int, epoch: int) -> Plan:
        """Draw what one seed does in an epoch, counted from 1."""
        order = np.random.default_rng([seed, epoch, ORDER]).permutation(len(self.labels))
        views = [order]
        if self.negatives:
            views.append(self.other_class(order, np.random.default_rng([seed, epoch, NEGATIVES])))
        index = torch.from_numpy(np.stack(views))
        contrast = partial(self._contrast, seed, epoch, order) if self.contrasts else None
        if not self.inputs.augments:
            return Plan(index, draw_contrast=contrast)
        # A stream a view: whether there is an x' makes no difference to x.
        drawn = [
            self._augmentation(np.random.default_rng([seed, epoch, AUGMENTATION, view])) for view in range(len(views))
        ]
        shift, flip = (torch.from_numpy(np.stack(column)) for column in zip(*drawn, strict=True))
        return Plan(index, shift, flip, contrast)

    def _augmentation(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        count = len(self.labels)
        shift = rng.integers(0, 2 * self.inputs.crop_padding, (count, 2), endpoint=True)
        return shift, (rng.random(count) < 0.5) & self.inputs.flip

    def other_class(self, index: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """Draw for each image one of all images of other classes, uniformly."""
        label = self.labels[index]
        return self._outside(label, rng.integers(0, len(self.labels) - self.count[label]))

    def _outside(self, label: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.intp]:
        """Take the image of this rank among those of all classes but the label's: that class is skipped over."""
        return self.by_class[rank + np.where(rank >= self.first[label], self.count[label], 0)]

    def _contrast(self, seed: int, epoch: int, order: NDArray[np.intp], at: slice) -> Tensor:
        """Count how often each image of the split, [N], is drawn for each of order[at]."""
        rng = np.random.default_rng([seed, epoch, CONTRAST, at.start])
        return torch.from_numpy(np.stack([self.contrast(image, rng) for image in order[at]]))

    def contrast(self, image: np.intp, rng: np.random.Generator) -> NDArray[np.int16]:
        """Draw `contrasts` images of other classes than an image's, without replacement if there are so many.

        Returns how often each image of the split, [N], is among them.
        """
        label = self.labels[image]
        others = len(self.labels) - self.count[label]
        rank = rng.choice(others, self.contrasts, replace=self.contrasts > others, shuffle=False)
        return np.bincount(self._outside(label, rank), minlength=len(self.labels)).astype(np.int16)


class DeviceSplit:
    """Makes network inputs of a split's images, which lie on the device, or on the host and travel in batches."""

    def __init__(
        self, split: Split, inputs: Inputs, device: torch.device, dtype: torch.dtype, resident: bool = True
    ) -> None:
        """Copy the labels to the device, and, where they are to be resident there, the images."""
        self.split, self.inputs, self.device, self.dtype = split, inputs, device, dtype
        self.labels = torch.from_numpy(split.labels).to(device)
        self.mean, self.std = inputs.statistics(device, dtype)
        self.images = self._copy() if resident else None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" and not resident else None

    def _copy(self) -> Tensor:
        """Copy all images to the device, a few at a time."""
        images = torch.empty(self.split.shape, dtype=torch.uint8, device=self.device)
        begin = 0
        for chunk in self.split.chunks():
            images[begin : begin + len(chunk)] = torch.from_numpy(chunk).to(self.device)
            begin += len(chunk)
        return images

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, plan: Plan, size: int) -> Iterator[Plan]:
        """Cut an epoch's plan, which is on the host, into batches on the device."""
        batches = plan.map(lambda t: t.to(self.device)).batches(size)
        if self.images is not None:
            yield from batches
            return
        for batch, images in zip(batches, self._arriving(plan.index.split(size, dim=-1)), strict=True):
            yield replace(batch, images=images)

    def take(self, plan: Plan) -> Tensor:
        """Take the planned images, augmented and normalised: [*plan.index.shape, C, H, W]."""
        images = plan.images if self.images is None else self.images[plan.index]
        assert images is not None
        if plan.shift is not None and plan.flip is not None:
            images = crop_and_flip(images, plan.shift, plan.flip, self.inputs.crop_padding)
        return normalise(images, self.mean, self.std)

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs [B, C, H, W], labels [B]) in the order of the split, not augmented, for evaluation."""
        places = (slice(start, start + size) for start in range(0, len(self), size))
        chunks = self._arriving(places) if self.images is None else iter(self.images.split(size))
        for images, labels in zip(chunks, self.labels.split(size), strict=True):
            yield normalise(images, self.mean, self.std), labels

    def _arriving(self, places: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        """Give the images at each of these places on the device, which is sent the next ones meanwhile."""
        for images, _ in pairwise(chain(map(self._send, places), [None])):
            assert images is not None
            if self.stream:
                torch.cuda.current_stream().wait_stream(self.stream)
                images.record_stream(torch.cuda.current_stream())
            yield images

    def _send(self, at: Tensor | slice) -> Tensor:
        """Gather images on the host; a GPU gets them on a stream of their own, and nobody waits."""
        images = torch.from_numpy(self.split.take(at if isinstance(at, slice) else at.numpy()))
        if self.stream is None:
            return images
        with torch.cuda.stream(self.stream):
            return images.pin_memory().to(self.device, non_blocking=True)


@dataclass(frozen=True)
class DeviceData:
    """Holds a data set, and makes network inputs of both of its splits."""

    dataset: Dataset
    train: DeviceSplit
    test: DeviceSplit

    @classmethod
    def load(
        cls, dataset: Dataset, inputs: Inputs, device: torch.device, dtype: torch.dtype, resident: bool = True
    ) -> "DeviceData":
        """Set up both splits; their images become inputs of that type, batch by batch.

        Args:
            dataset: whose images may be mapped from a file.
            inputs: what is made of the images.
            device: where the inputs are wanted.
            dtype: of the inputs.
            resident: whether all images are copied to the device now.
        """
        train, test = (DeviceSplit(split, inputs, device, dtype, resident) for split in (dataset.train, dataset.test))
        return cls(dataset, train, test)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Compute (pixels / 255 - mean) / std.

    Args:
        images: uint8 [..., H, W, C].
        mean: [C].
        std: [C].

    Returns:
        [..., C, H, W] of the statistics' type, channels last in memory.
    """
    return ((images.to(mean.dtype) / 255 - mean) / std).movedim(-1, -3)


def crop_and_flip(images: Tensor, shift: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Pad each image with black, crop it to its old size from `shift` (row, column) on, and mirror it where `flip`.

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
