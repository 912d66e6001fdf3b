"""Say what a run will do and how long it will take here: a few batches of each cell are timed on made-up images.

python -m stages.plan [suite=cifar10]
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
from tripletkd import methods, models
from tripletkd.config.load import ABLATED
from tripletkd.data import dataset as data
from tripletkd.data.batches import Sampler
from tripletkd.data.dataset import Dataset, Split
from tripletkd.training.loop import fit
from tripletkd.training.optim import Recipe
from tripletkd.training.trainer import Trainer

BATCHES = 6
OVERHEAD_S = 6.0  # of a stage beside the training: imports, evaluation, files
KNOWN = {  # training and test images, their shape, classes of what will be fetched
    "digits": (898, 899, (8, 8, 1), 10),
    "CIFAR10": (50000, 10000, (32, 32, 3), 10),
    "CIFAR100": (50000, 10000, (32, 32, 3), 100),
}


def main(stage: Stage) -> None:
    run, suites = stage.config.run, [stage.config.suite] if stage.config.suite else stage.config.run.suites
    stages = 1 + len(run.splits) + 2 * len(run.methods) + len(run.ablations) + 1
    print(
        f"{len(suites)} suite(s) of {stages} stages: fetch; train_teacher for {' and '.join(run.splits)}; distill and "
        f"evaluate {len(run.methods)} methods with {len(run.seeds)} seeds; {len(run.ablations)} ablation(s); tabulate"
    )
    for name in suites:
        stage.config.suite = name
        print_plan(stage)


def print_plan(stage: Stage) -> None:
    """A line a cell that is trained, and their sum."""
    found = size_of_data(stage)
    if found is None:
        print(f"{stage.config.suite}: its images are not fetched yet, so nothing can be said of the time it needs")
        return
    train_images, test_images, shape, classes = found
    run, teacher, student = stage.config.run, stage.suite.teacher, stage.suite.student
    setting = Setting.of(
        stage, made_up(student.recipe.batch_size * BATCHES, shape, classes, test_images / train_images)
    )
    networks = {name: models.build(name, shape, classes, 1) for name in (teacher.network, student.network)}
    ablated = [variant.recipe.epochs for name in run.ablations for variant in stage.config.ablations[name]]
    print(f"{stage.config.suite} on {setting.device}, from {BATCHES} batches of each cell:")
    total = 0.0
    cells = [("teacher", "scratch", teacher, 1, [teacher.recipe.epochs] * len(run.splits))]
    cells += [(method, method, student, len(run.seeds), [student.recipe.epochs]) for method in run.methods]
    cells += [("ablations", ABLATED, student, len(run.seeds), ablated)] if ablated else []
    for label, method, block, seeds, epochs in cells:
        epoch = seconds(
            stage, setting, method, [networks[block.network]] * seeds, networks[teacher.network], block.recipe
        )
        cell = len(epochs) * OVERHEAD_S + sum(epochs) * epoch * train_images / len(setting.train)
        total += cell
        print(f"  {label:12} {sum(epochs)} epochs, {seeds} seed(s): about {readable(cell)}")
    disk = disk_mib(train_images + test_images, shape)
    print(f"  together about {readable(total)}; the data takes {disk:.1f} MiB of disk")


def size_of_data(stage: Stage) -> tuple[int, int, tuple[int, int, int], int] | None:
    """Training and test images, their shape, classes: of what was fetched, or will be; None if nobody knows."""
    description = stage.place("data") / data.DESCRIPTION
    if description.is_file():
        known = json.loads(description.read_text())
        height, width, channels = known["image_shape"]
        return known["images"]["train"], known["images"]["test"], (height, width, channels), len(known["classes"])
    settings = stage.suite.data
    return KNOWN.get(settings.name or settings.source)


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
    """Of one epoch over the made-up images, after a warm-up, evaluated as often as the suite says; not captured.

    A teacher whose logits are kept for all epochs is asked before.
    """
    method, params = methods.load(name), stage.config.methods[name]
    seeds, needs = list(range(len(students))), methods.needs(method, params)
    layers = own_layers(method, params, students, teacher, seeds, setting)
    loss: Any = partial(method.loss, params=params)
    trainer = Trainer(
        students,
        loss,
        recipe,
        setting.device,
        setting.dtype,
        setting.folded,
        features="features" in needs,
        layers=layers,
        autocast=setting.autocast,
    )
    sampler = Sampler(setting.dataset.train.labels, setting.train.inputs, "negative" in needs)
    asked, every = guide(teacher, setting, needs), stage.suite.evaluate_every
    for epochs in (1, every):
        started = time.perf_counter()
        shortened = dataclasses.replace(recipe, epochs=epochs)
        fit(
            trainer,
            seeds,
            shortened,
            sampler,
            setting.train,
            setting.test,
            teacher=asked,
            evaluate_every=every,
            quiet=True,
        )
    return (time.perf_counter() - started) / every


def readable(duration: float) -> str:
    if duration < 90:
        return f"{duration:.0f} s"
    return f"{duration / 60:.0f} minutes" if duration < 5400 else f"{duration / 3600:.1f} hours"


def disk_mib(images: int, shape: tuple[int, int, int]) -> float:
    """The canonical file and its copy in DVC's cache."""
    return 2 * images * float(np.prod(shape)) / 2**20


if __name__ == "__main__":
    run(main, needs=(), logs=False)
