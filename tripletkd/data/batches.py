"""Batches of a split on the device: order, different-class negatives, augmentation, normalisation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripletkd.data.dataset import Dataset, Split

ORDER, NEGATIVES, AUGMENTATION, METHOD = range(4)  # independent streams of random numbers, see `Sampler`


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

    def draw(self, random: np.random.Generator, count: int) -> dict[str, NDArray[np.generic]]:
        """Draw how so many images are augmented, [count] each, by the name that a Plan has for it."""
        corner = random.integers(0, 2 * self.crop_padding, (count, 2), endpoint=True)
        return {"row": corner[:, 0], "column": corner[:, 1], "flip": (random.random(count) < 0.5) & self.flip}  # nosec B311

    def statistics(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Put mean and std, [C] each, on a device, once: a CUDA graph cannot hold a copy from the host."""
        mean, std = (torch.tensor(values, dtype=dtype, device=device) for values in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class Plan:
    """Holds all randomness of an epoch, which `batches` cuts into plans of a batch each; of one seed or of several.

    View 0 is the images x in training order. View 1, where there is one, has for each x an x' of another class.

    Attributes:
        index: Where the images are in the split, [..., views, N], as the next four.
        row: Where the crop begins in the padded image.
        column: As row.
        flip: Whether the image is mirrored.
        key: What the view of a photograph is drawn from (data.photograph_batches).
        drawn: In a batch, what the method drew for it, or how it is mixed, [..., N, ...].
        images: In a batch, the stored images, [..., views, N, H, W, C]; None where the device holds the whole split.
        draw: In an epoch, draws `drawn` for a slice of N.
    """

    index: Tensor
    row: Tensor | None = None
    column: Tensor | None = None
    flip: Tensor | None = None
    drawn: Tensor | None = None
    images: Tensor | None = None
    key: Tensor | None = None
    draw: Callable[[slice], Tensor] | None = field(default=None, kw_only=True)

    def tensors(self) -> dict[str, Tensor]:
        """Name the tensors that are there."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def map(self, function: Callable[[Tensor], Tensor]) -> "Plan":
        """Apply a function to every tensor."""
        changed: dict[str, Any] = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def copy_(self, other: "Plan") -> None:
        """Copy the numbers of a plan of the same shape into this one."""
        for name, tensor in other.tensors().items():
            self.tensors()[name].copy_(tensor)

    @staticmethod
    def stack(plans: Sequence["Plan"]) -> "Plan":
        """Stack the plans of several seeds, for an epoch, along a new first dimension."""
        names, draws = plans[0].tensors(), [plan.draw for plan in plans if plan.draw]
        stacked: dict[str, Any] = {name: torch.stack([plan.tensors()[name] for plan in plans]) for name in names}
        return Plan(**stacked, draw=(lambda at: torch.stack([draw(at) for draw in draws])) if draws else None)

    def batches(self, size: int) -> Iterator["Plan"]:
        """Cut an epoch's plan into consecutive batches; the last one may be smaller."""
        for start in range(0, self.index.shape[-1], size):
            at = slice(start, start + size)
            batch = replace(self.map(itemgetter((..., at))), draw=None)
            yield replace(batch, drawn=self.draw(at)) if self.draw else batch


class ByClass:
    """Sorts a split's images by class, so that images of other classes can be drawn."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        """Sort the labels [N]."""
        self.labels = labels
        self.order, self.count = np.argsort(labels, kind="stable"), np.bincount(labels)
        self.first = np.cumsum(self.count) - self.count

    def others(self, label: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the images that are of other classes."""
        return len(self.labels) - self.count[label]

    def other(self, label: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.intp]:
        """Find the image of this rank among those of other classes; 0 <= rank < `others(label)`."""
        return self.order[rank + np.where(rank >= self.first[label], self.count[label], 0)]


@dataclass(frozen=True)
class Drawing:
    """Holds what a method's `draw` may use for a batch of one seed; NumPy's arrays, on the host.

    Attributes:
        index: where the batch's images stand in the training split, [B].
        split: the training split's images by class.
        random: numbers that are a function of seed, epoch and the batch's place in it, and used for nothing else.
    """

    index: NDArray[np.intp]
    split: ByClass
    random: np.random.Generator


class Sampler:
    """Draws the Plan of an epoch. Each number is a function of (seed, epoch, stream): no state to save or to share.

    All methods thus see the same images in the same order for the same seed, whether or not they use negatives.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        inputs: Inputs,
        negatives: bool,
        draw: Callable[[Drawing], Tensor] | None = None,
    ) -> None:
        """Sort the images by class.

        Args:
            labels: of the split, [N].
            inputs: says how images are augmented.
            negatives: whether there is an x' for each x.
            draw: what a method draws for each batch beside.
        """
        self.split, self.inputs, self.negatives, self.draw_batch = ByClass(labels), inputs, negatives, draw

    def draw(self, seed: int, epoch: int) -> Plan:
        """Draw what one seed does in an epoch, counted from 1."""
        order = np.random.default_rng([seed, epoch, ORDER]).permutation(len(self.split.labels))
        views = [order]
        if self.negatives:
            views.append(self.other_class(order, np.random.default_rng([seed, epoch, NEGATIVES])))
        # Each view has its own random stream: x is augmented alike with and without an x'
        augmented = range(len(views)) if self.inputs.augments else ()
        randoms = [np.random.default_rng([seed, epoch, AUGMENTATION, view]) for view in augmented]
        drawn = [self.inputs.draw(random, len(order)) for random in randoms]
        parts = {"index": views} | {name: [each[name] for each in drawn] for name in (drawn[0] if drawn else ())}
        stacked: dict[str, Any] = {name: torch.from_numpy(np.stack(part)) for name, part in parts.items()}
        return Plan(**stacked, draw=partial(self._draw, seed, epoch, order) if self.draw_batch else None)

    def other_class(self, index: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
        """Draw for each image one of all images of other classes, uniformly."""
        label = self.split.labels[index]
        return self.split.other(label, rng.integers(0, self.split.others(label)))

    def _draw(self, seed: int, epoch: int, order: NDArray[np.intp], at: slice) -> Tensor:
        assert self.draw_batch is not None
        random = np.random.default_rng([seed, epoch, METHOD, at.start])
        return self.draw_batch(Drawing(order[at], self.split, random))


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
        batches = map(self._placed, self._placed(plan).batches(size))
        if self.images is not None:
            return batches
        images = self._arriving(plan.index.split(size, dim=-1))
        return (replace(batch, images=its) for batch, its in zip(batches, images, strict=True))

    def _placed(self, plan: Plan) -> Plan:
        return plan.map(lambda t: t.to(self.device))

    def take(self, plan: Plan) -> Tensor:
        """Take the planned images, augmented and normalised: [*plan.index.shape, C, H, W]."""
        images = plan.images if self.images is None else self.images[plan.index]
        assert images is not None
        if plan.row is not None and plan.column is not None and plan.flip is not None:
            images = crop_and_flip(images, (plan.row, plan.column), plan.flip, self.inputs.crop_padding)
        return normalise(images, self.mean, self.std)

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs [B, C, H, W], labels [B]) in the order of the split, not augmented, for evaluation."""
        places = (slice(start, start + size) for start in range(0, len(self), size))
        chunks = self._arriving(places) if self.images is None else iter(self.images.split(size))
        for images, labels in zip(chunks, self.labels.split(size), strict=True):
            yield normalise(images, self.mean, self.std), labels

    def _arriving(self, places: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        """Give the images at each of these places on the device, which is sent the next ones meanwhile."""
        for images, _ in pairwise(chain(map(self._send, self._gathered(places)), [None])):
            assert images is not None
            if self.stream:
                torch.cuda.current_stream().wait_stream(self.stream)
                images.record_stream(torch.cuda.current_stream())
            yield images

    def _gathered(self, places: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        """Gather the images at each of these places on the host."""
        for at in places:
            yield torch.from_numpy(self.split.take(at if isinstance(at, slice) else at.numpy()))

    def _send(self, images: Tensor) -> Tensor:
        """Send images to the device; a GPU gets them on a stream of their own, and nobody waits."""
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


def crop_and_flip(images: Tensor, corner: tuple[Tensor, Tensor], flip: Tensor, padding: int) -> Tensor:
    """Pad each image with black, crop it to its old size from a row and a column on, and mirror it where `flip`.

    images: [..., H, W, C]; corner: row and column, [...] each, 0 to 2 * padding; flip: [...].
    """
    height, width = images.shape[-3:-1]
    padded = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding)).flatten(0, -4)
    columns = torch.arange(width, device=images.device)
    row = corner[0][..., None] + torch.arange(height, device=images.device)
    column = corner[1][..., None] + torch.where(flip[..., None], columns.flip(0), columns)
    image = torch.arange(len(padded), device=images.device)[:, None, None]
    return padded[image, row.flatten(0, -2)[:, :, None], column.flatten(0, -2)[:, None, :]].view(images.shape)
