"""Photographs that stay encoded: one file of all of them, decoded when they are asked for.

images.npy has the files of all photographs one after the other, uint8 [bytes]. labels.npy has a row for each of them,
int64 [N, 2]: its label, and where its file ends in images.npy. Photographs are RGB, whatever they were.
"""

import io
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch.utils.data
from numpy.lib import format as npy
from numpy.typing import NDArray

from tripletkd.data.dataset import (
    AGAIN,
    IMAGES,
    LABELS,
    Dataset,
    Images,
    Split,
    describe,
    histogram,
    map_file,
    statistics,
)
from tripletkd.errors import UserError
from tripletkd.files import Json

if TYPE_CHECKING:
    from PIL import Image

    from tripletkd.data.sources import Originals

T = TypeVar("T")
R = TypeVar("R")
QUALITY = 95  # of a JPEG that is encoded here
KEPT = ("JPEG", "PNG", "WEBP")  # formats of which a small photograph's file is kept as it is
RULE = (
    "shorter side resized (bilinear, antialiased) to short_side where it is longer, then JPEG of quality "
    f"{QUALITY}; a photograph that is no larger keeps its file if that is {', '.join(KEPT)}"
)
AHEAD = 2  # results of each process that wait to be used


@dataclass(frozen=True)
class View:
    """What evaluation sees of a photograph: the shorter side resized, and a square cropped from the center.

    resize: pixels of the shorter side; size: of either side of the square.
    """

    resize: int
    size: int

    def __call__(self, image: "Image.Image") -> "Image.Image":
        """Return what is seen of an upright RGB image."""
        from torchvision.transforms import functional

        from tripletkd.data.sources import shorter

        return functional.center_crop(shorter(image, self.resize), [self.size])


@dataclass(frozen=True)
class Photographs(Images):
    """Encoded photographs of any sizes; as Images, they are what evaluation sees of them.

    content: the files of all, one after the other, uint8 [bytes]; ends: of each file, [N]; name: for messages.
    """

    content: NDArray[np.uint8]
    ends: NDArray[np.int64]
    view: View
    name: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return how many there are, and height, width and channels of a view."""
        return len(self.ends), self.view.size, self.view.size, 3

    def file(self, place: int) -> bytes:
        """Return the file of one photograph."""
        return self.content[self.ends[place - 1] if place else 0 : self.ends[place]].tobytes()

    def open(self, place: int) -> "Image.Image":
        """Decode one photograph, upright and in RGB."""
        from tripletkd.data.sources import opened, upright

        with opened(f"{self.name}, photograph {place} from 0", io.BytesIO(self.file(place))) as image:
            return upright(image).convert("RGB")

    def __getitem__(self, at: slice | NDArray[np.intp], /) -> NDArray[np.uint8]:
        places = np.arange(len(self.ends))[at]
        pixels = np.empty((len(places), *self.shape[1:]), dtype=np.uint8)
        for image, place in zip(pixels, places, strict=True):
            image[:] = np.asarray(self.view(self.open(int(place))))
        return pixels


@dataclass(frozen=True)
class PhotographSplit(Split):
    """Labelled photographs, which are known again by their files: another view of them is of the same data."""

    stored: Photographs

    @property
    def _all(self) -> NDArray[np.intp]:
        return np.arange(len(self.labels)) if self.places is None else self.places

    def contents(self) -> Iterator[bytes | memoryview]:
        """Yield what the hash of a data set covers: the lengths of the files, and the files in order."""
        ends = self.stored.ends[self._all]
        begins = np.concatenate([[0], self.stored.ends])[self._all]
        yield json.dumps((ends - begins).tolist()).encode()
        yield from self.items()

    def items(self) -> Iterator[bytes | memoryview]:
        """Yield by what each photograph is known again: its file."""
        return (self.stored.file(place) for place in self._all.tolist())


def seen_as(dataset: Dataset, view: View) -> Dataset:
    """Return the same photographs with another view of them."""

    def seen(split: Split) -> Split:
        assert isinstance(split, PhotographSplit)
        return replace(split, stored=replace(split.stored, view=view))

    return replace(dataset, train=seen(dataset.train), test=seen(dataset.test))


def read(folder: Path, description: Json) -> Dataset:
    """Map photographs and read their labels, which must have the shapes that the description says."""
    said, train, images = (
        description["photographs"],
        description["images"]["train"],
        sum(description["images"].values()),
    )
    content = map_file(folder / IMAGES, "|u1", (said["bytes"],))
    labels, ends = np.array(map_file(folder / LABELS, "<i8", (images, 2))).T
    if not (np.diff(ends, prepend=0) > 0).all() or ends[-1] != len(content):
        raise UserError(f"{folder / LABELS}: is not of {IMAGES}; {AGAIN}")
    stored = Photographs(content, ends, View(said["resize"], description["image_shape"][0]), str(folder / IMAGES))
    places, classes = np.arange(images), tuple(description["classes"])
    first, rest = (PhotographSplit(stored, labels[part], part) for part in (places[:train], places[train:]))
    return Dataset(first, rest, classes)


@dataclass(frozen=True)
class _Encoded:
    """A photograph as it is stored, and the histogram of its pixels, [3, 256]."""

    file: bytes
    is_kept: bool
    counts: NDArray[np.int64]


def encode(path: Path, short_side: int) -> _Encoded:
    """Encode a photograph as RULE says, decoded whole in any case.

    Raises:
        UserError: If it cannot be decoded, or is too narrow to be resized.
    """
    from tripletkd.data.sources import opened, shorter, upright

    with opened(path) as image:
        is_kept = image.format in KEPT and min(image.size) <= short_side
        rgb = upright(image).convert("RGB")
        small = rgb if min(rgb.size) <= short_side else shorter(rgb, short_side)
        counts = histogram(np.asarray(small))
        if is_kept:
            return _Encoded(path.read_bytes(), is_kept, counts)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=QUALITY)
        return _Encoded(buffer.getvalue(), is_kept, counts)


def save(dataset: Dataset, folder: Path, more: Mapping[str, object], view: View, workers: int) -> Json:
    """Write the canonical files of photographs, each of which is decoded once.

    Args:
        dataset: Of Originals.
        folder: Where to write.
        more: What dataset.json is to say beside.
        view: What evaluation sees of them.
        workers: Processes that encode.

    Returns:
        What dataset.json says.

    Raises:
        UserError: If a photograph cannot be decoded, or there is no room.
    """
    from tqdm import tqdm

    splits = [dataset.train, dataset.test]
    stored: list[Originals] = [split.stored for split in splits]  # type: ignore[misc]
    short_side, files = (
        stored[0].short_side,
        [
            each.files[place]
            for each, split in zip(stored, splits, strict=True)
            for place in (range(len(split.labels)) if split.places is None else split.places)
        ],
    )
    ends, kept, counts = list[int](), 0, np.zeros((3, 256), dtype=np.int64)
    train, encoded = len(splits[0].labels), in_order(partial(encode, short_side=short_side), files, workers)
    with (folder / IMAGES).open("wb") as out:
        begin = _write_header(out, 0)
        for number, photograph in enumerate(tqdm(encoded, "encoding", len(files), disable=None, leave=False)):
            out.write(photograph.file)
            ends.append(out.tell() - begin)
            kept += photograph.is_kept
            counts += photograph.counts if number < train else 0
        out.seek(0)
        assert _write_header(out, ends[-1]) == begin  # NumPy leaves room in it for a larger number
    labels = np.concatenate([split.labels for split in splits])
    np.save(folder / LABELS, np.stack([labels, np.array(ends)], axis=1).astype("<i8"))
    said = {"short_side": short_side, "rule": RULE, "bytes": ends[-1], "kept": kept, "resize": view.resize}
    layout = {"image_shape": [view.size, view.size, 3], "classes": dataset.classes, "photographs": said}
    layout["images"] = {"train": train, "test": len(files) - train}
    return describe(folder, read(folder, layout), {**more, "photographs": said}, statistics(counts))


def _write_header(out: IO[bytes], count: int) -> int:
    """Write the head of a .npy file of so many bytes; returns where they begin."""
    npy.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (count,)})
    return out.tell()


# --- ahead of who waits for it ----------------------------------------------------------------------------------------


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Apply a function to items in processes, ahead of their use, and yield the results in the items' order.

    At most AHEAD results of each process wait to be used. Tensors come through shared memory.

    Args:
        function: What is applied; it draws nothing by a generator of the process.
        items: May be endless.
        workers: How many processes; 0 for this one.

    Raises:
        UserError: If the function does, for an item whose turn it is.
    """
    loader: torch.utils.data.DataLoader[R | UserError] = torch.utils.data.DataLoader(
        _Applied(function),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context="fork" if workers else None,  # the file is mapped already
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # PyTorch's global one is not drawn from
    )
    for result in loader:
        if isinstance(result, UserError):
            raise result
        yield result


class _Applied(torch.utils.data.Dataset["R | UserError"], Generic[T, R]):
    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function

    def __getitem__(self, item: T) -> R | UserError:
        try:
            return self.function(item)
        except UserError as error:  # which the loader would wrap in a traceback
            return error


def _as_it_is(result: R) -> R:
    return result


def _ignore_signals(_: int) -> None:
    """Leave it to the process that trains to stop at a checkpoint; the workers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
