"""Photographs a second that reach a training step: this project against torchvision's ImageFolder with a DataLoader.

    python -m benchmarks.photographs --images 2000 --workers 2 --rounds 5

All ways take turns in one process. benchmarks/README.md says how to read what it prints.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tripletkd.data import photograph_batches, photographs, sources
from tripletkd.data.batches import DeviceSplit, Inputs, Sampler, normalise
from tripletkd.data.dataset import Split, load
from tripletkd.data.photograph_batches import PhotographInputs
from tripletkd.data.photographs import View
from tripletkd.training.compute import Compute, set_up_process

SIZE, SHORT, CPU = 224, 256, torch.device("cpu")


def write(folder: Path, images: int) -> None:
    """Write JPEG files of 500 x 375 and 375 x 500 pixels, of the quality and about the bytes of ImageNet's."""
    for number in range(images):
        random = np.random.default_rng(number)
        width, height = (500, 375) if number % 3 else (375, 500)
        rough = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
        fine = random.normal(0, 12, (height, width, 1))
        pixels = np.clip(np.asarray(rough) + fine, 0, 255).astype(np.uint8)
        path = folder / ("val" if number < 2 else "train") / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def image_folder(folder: Path, batch: int, workers: int) -> Callable[[], Iterable[Tensor]]:
    """torchvision's way; pixels are normalised as ours are, a batch at once."""
    transform = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    loader = DataLoader(ImageFolder(str(folder), transform), batch, shuffle=True, num_workers=workers)
    mean, std = Inputs().statistics(CPU, torch.float32)
    return lambda: (normalise(images.movedim(1, -1), mean, std) for images, _ in loader)


def ours(split: DeviceSplit, inputs: Inputs, batch: int) -> Callable[[], Iterable[Tensor]]:
    """What a trainer reads in an epoch of one seed."""
    sampler = Sampler(split.split.labels, inputs, negatives=False)
    return lambda: (split.take(each) for each in split.batches(sampler.draw(1, 1), batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    images, batch, workers = options.images, options.batch, options.workers
    set_up_process(Compute(CPU), "float32", deterministic=True, image_height=SIZE)
    with tempfile.TemporaryDirectory() as place:
        folder, stored, small = (Path(place, name) for name in ("originals", "stored", "small"))
        write(folder, images + 2)
        stored.mkdir()
        began = time.perf_counter()
        found = sources.folder(folder, short_side=SHORT)
        photographs.save(found, stored, {"source": "made up"}, View(SHORT, SIZE), workers)
        print(f"stored: {images / (time.perf_counter() - began):.0f} images/s")
        dataset = load(stored)
        for number, label in enumerate(dataset.train.labels):
            path = small / str(label) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dataset.train.stored.file(number))  # type: ignore[attr-defined]
        inputs = PhotographInputs(flip=True, view=View(SHORT, SIZE), train={"random_resized_crop": [0.08, 1]})
        split = photograph_batches.load(dataset, inputs, CPU, torch.float32, workers).train
        pixels = Split(dataset.train.images, dataset.train.labels)
        decoded = DeviceSplit(pixels, Inputs(crop_padding=4, flip=True), CPU, torch.float32)
        ways = {
            "ImageFolder": image_folder(folder / "train", batch, workers),
            "ImageFolder, files of short_side": image_folder(small, batch, workers),
            "ours": ours(split, inputs, batch),
            "decoded already": ours(decoded, decoded.inputs, batch),
        }
        taken_by: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(options.rounds + 1):
            for name, way in ways.items():
                began, busy = time.perf_counter(), processor_seconds()
                for _ in way():
                    pass
                taken = images / (time.perf_counter() - began), 1000 * (processor_seconds() - busy) / images
                taken_by[name] += [taken] if turn else []  # the first warms up
        for name, values in taken_by.items():
            rates, costs = zip(*values, strict=True)
            print(
                f"{name:34} {statistics.median(rates):5.0f} images/s, {min(rates):.0f} to {max(rates):.0f}; "
                f"{statistics.median(costs):.2f} ms of a processor an image, {min(costs):.2f} to {max(costs):.2f}"
            )


def processor_seconds() -> float:
    """Of this process and of its workers that have ended: what else the machine does counts less in it."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
