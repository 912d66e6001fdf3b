"""Say, before a long run, what it needs on this machine: a few batches of each cell are timed on made-up images.

python -m stages.plan suite=cifar10
"""

import dataclasses
import json
import time
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from stages import Stage, run
from stages._training import Setting, guide, own_layers
from tripletkd import data, methods, models
from tripletkd.data import Dataset, Sampler, Split
from tripletkd.train import Recipe, Trainer, fit

BATCHES = 6
# (training, test images), image shape, classes of what torchvision will fetch
TO_FETCH = {"CIFAR10": ((50000, 10000), (32, 32, 3), 10), "CIFAR100": ((50000, 10000), (32, 32, 3), 100)}


def main(stage: Stage) -> None:
    description = stage.place("data") / data.DESCRIPTION
    if description.is_file():
        known = json.loads(description.read_text())
        counts, shape, classes = known["images"].values(), known["image_shape"], len(known["classes"])
    elif stage.suite.data.name in TO_FETCH:
        counts, shape, classes = TO_FETCH[stage.suite.data.name]
    else:
        print(f"{stage.config.suite}: its images are not fetched yet, so nothing can be said of the time it needs")
        return
    train_images, test_images = counts
    teacher, student, seeds = stage.suite.teacher, stage.suite.student, stage.config.run.seeds
    setting = Setting.of(
        stage, made_up(student.recipe.batch_size * BATCHES, tuple(shape), classes, test_images / train_images)
    )
    networks = {name: models.build(name, tuple(shape), classes, 1) for name in (teacher.network, student.network)}
    print(f"{stage.config.suite} on {setting.device}, {len(seeds)} seeds, from {BATCHES} batches each:")
    total = 0.0
    for name in ["teacher", *stage.config.run.methods]:
        block, count = (teacher, 1) if name == "teacher" else (student, len(seeds))
        method = "scratch" if name == "teacher" else name
        cell = seconds(
            stage, setting, method, [networks[block.network]] * count, networks[teacher.network], block.recipe
        )
        cell *= train_images / len(setting.train) * block.recipe.epochs
        total += cell
        print(f"  {name:12} {block.recipe.epochs} epochs of {train_images} images: about {readable(cell)}")
    print(f"  together about {readable(total)}, and {disk_gib(sum(counts), shape):.1f} GiB of disk for the data")


def made_up(images: int, shape: tuple[int, int, int], classes: int, test_share: float) -> Dataset:
    """Noise with as many test images to a training image as the real data set has."""
    rng = np.random.default_rng(0)
    train, test = (
        Split(rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n, dtype=np.int64) % classes)
        for n in (max(images, 2 * classes), max(round(images * test_share), classes))
    )
    return Dataset(train, test, tuple(map(str, range(classes))))


def seconds(
    stage: Stage, setting: Setting, name: str, students: list[nn.Module], teacher: nn.Module, recipe: Recipe
) -> float:
    """Of one epoch over the made-up images, evaluation included, after one to warm up."""
    method, params = methods.load(name), stage.config.methods[name]
    seeds, needs = list(range(len(students))), methods.needs(method, params)
    layers = own_layers(method, params, students, teacher, seeds, setting)
    loss: Any = partial(method.loss, params=params)
    trainer = Trainer(
        students, loss, recipe, setting.device, setting.dtype, setting.folded, "features" in needs, layers
    )
    sampler = Sampler(setting.dataset.train.labels, setting.train.inputs, "negative" in needs)
    one = dataclasses.replace(recipe, epochs=1)
    for _ in range(2):
        started = time.perf_counter()
        asked = guide(teacher, setting, needs)
        fit(trainer, seeds, one, sampler, setting.train, setting.test, teacher=asked, description=f"timing {name}")
    return time.perf_counter() - started


def readable(duration: float) -> str:
    return f"{duration / 3600:.1f} hours" if duration > 5400 else f"{duration / 60:.1f} minutes"


def disk_gib(images: int, shape: Any) -> float:
    """The canonical file and its copy in DVC's cache."""
    return 2 * images * float(np.prod(shape)) / 2**30


if __name__ == "__main__":
    run(main)
