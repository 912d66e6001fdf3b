"""Batches of photographs: each view is drawn, decoded ahead of the step in processes, and normalised on the device."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tripletkd.data.batches import DeviceData, DeviceSplit, Inputs, Plan
from tripletkd.data.dataset import Dataset, Split
from tripletkd.data.photographs import Photographs, View, in_order, seen_as

if TYPE_CHECKING:
    from PIL import Image

EVALUATED_PIXELS = 2**23  # of images that are evaluated at once


@dataclass(frozen=True)
class PhotographInputs(Inputs):
    """Says what training and evaluation see of photographs; crop_padding is 0.

    view: what evaluation sees. train: what training does to a photograph, as the block `train` of a suite's inputs has
    it: random_resized_crop, color_jitter, rand_augment, trivial_augment; without the first it begins with the view.
    """

    view: View = field(default=View(256, 224))
    train: Mapping[str, Any] = field(default_factory=dict)

    @property
    def augments(self) -> bool:
        """Tell that no photograph's output is remembered: the teacher is asked for the view that the student sees."""
        return True

    def draw(self, random: np.random.Generator, count: int) -> dict[str, NDArray[np.generic]]:
        """Draw for so many photographs, [count], what seeds the generator of their views."""
        return {"key": random.integers(2**63, size=count)}

    def augmentation(self) -> "Callable[[Image.Image], Image.Image]":
        """Make torchvision's transforms of `train`, in the order of its own recipes; PyTorch's generator is theirs."""
        from torchvision.transforms import v2

        made: list[Any] = [self.view]
        if scale := self.train.get("random_resized_crop"):
            made = [v2.RandomResizedCrop(self.view.size, tuple(scale), antialias=True)]
        if self.flip:
            made.append(v2.RandomHorizontalFlip())
        if jitter := self.train.get("color_jitter"):
            made.append(v2.ColorJitter(*jitter))
        if rand := self.train.get("rand_augment"):
            made.append(v2.RandAugment(*rand, interpolation=v2.InterpolationMode.BILINEAR))
        if self.train.get("trivial_augment"):
            made.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
        return v2.Compose(made)


class DevicePhotographs(DeviceSplit):
    """Makes network inputs of a split's photographs, which processes decode while the device computes.

    Whoever reads batches sees the same bytes for any number of processes.
    """

    inputs: PhotographInputs

    def __init__(self, split: Split, inputs: PhotographInputs, device: torch.device, dtype: torch.dtype, workers: int):
        super().__init__(split, inputs, device, dtype, resident=False)
        self.workers, self.augmentation = workers, inputs.augmentation()

    def batches(self, plan: Plan, size: int) -> Iterator[Plan]:
        """Cut an epoch's plan, which is on the host, into batches on the device."""
        assert plan.key is not None
        images = self._arriving(torch.stack([plan.index, plan.key]).split(size, dim=-1))
        batches = map(self._placed, plan.batches(size))
        return (replace(batch, images=its) for batch, its in zip(batches, images, strict=True))

    def chunks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, labels) in the order of the split, not augmented, as many as a device has room for."""
        height, width = self.split.shape[1:3]
        return super().chunks(max(1, min(size, EVALUATED_PIXELS // (height * width))))

    def _gathered(self, places: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        return in_order(self._decode, places, self.workers)

    def _decode(self, at: Tensor | slice) -> Tensor:
        """Decode what evaluation sees of a slice of the split; or the views of photographs and their keys, [2, ...]."""
        if isinstance(at, slice):
            return torch.from_numpy(self.split.take(at))
        (index, keys), stored = at.flatten(1).tolist(), self.split.stored
        assert isinstance(stored, Photographs)
        pixels = np.empty((len(index), *stored.shape[1:]), dtype=np.uint8)
        with torch.random.fork_rng(devices=[]):
            for image, place, key in zip(pixels, index, keys, strict=True):
                torch.default_generator.manual_seed(key)
                photograph = stored.open(place if self.split.places is None else int(self.split.places[place]))
                image[:] = np.asarray(self.augmentation(photograph))
        return torch.from_numpy(pixels).view(*at.shape[1:], *pixels.shape[1:])


def load(
    dataset: Dataset, inputs: PhotographInputs, device: torch.device, dtype: torch.dtype, workers: int
) -> DeviceData:
    """Set up both splits of photographs, which become inputs of that type, batch by batch.

    Args:
        dataset: of photographs.
        inputs: what is seen of them.
        device: where the inputs are wanted.
        dtype: of the inputs.
        workers: processes that decode; 0 for this one.
    """
    dataset = seen_as(dataset, inputs.view)
    splits = (DevicePhotographs(split, inputs, device, dtype, workers) for split in (dataset.train, dataset.test))
    return DeviceData(dataset, *splits)
