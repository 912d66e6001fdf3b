"""Say what a run will do and how long it will take here: a few steps of each run are timed."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import NamedTuple

import click
import numpy as np

from tripletkd import models
from tripletkd.config.schema import ABLATED, Variant
from tripletkd.data import dataset as canonical
from tripletkd.data.dataset import DESCRIPTION, Dataset, Split
from tripletkd.errors import UserError
from tripletkd.pipeline.jobs import Runs, Setup, refuse_other_data, set_up
from tripletkd.pipeline.stage import Stage, open_stage
from tripletkd.training.compute import CORES
from tripletkd.training.job import Job, build_trainer
from tripletkd.training.trainer import Teacher

BATCHES = 2  # of images, stepped over again and again
CALLS, ENOUGH_S = 8, 10.0  # that are timed, or fewer, but two, where they take that long
OVERHEAD_S = 6.0  # of a stage beside the training: imports, evaluation, files
DAYS_S = 48 * 3600.0  # from which on a duration is told in days


class Sizes(NamedTuple):
    """How much data there is, or will be."""

    train: int
    test: int
    shape: tuple[int, int, int]  # of an image, [H, W, C]
    classes: int
    photographs_bytes: int | None = None  # of photographs that stay encoded; None for images of one size

    @property
    def bytes(self) -> int:
        """Return how many bytes the images take."""
        return self.photographs_bytes or (self.train + self.test) * math.prod(self.shape)


KNOWN = {  # what will be fetched
    "digits": Sizes(898, 899, (8, 8, 1), 10),
    "CIFAR10": Sizes(50000, 10000, (32, 32, 3), 10),
    "CIFAR100": Sizes(50000, 10000, (32, 32, 3), 100),
}


def main(overrides: Sequence[str], ask: bool) -> None:
    """Print a line for each run of each suite, and how long they take together.

    Args:
        overrides: Of params.yaml; suite=NAME for one suite only.
        ask: Whether to ask if the work may start, where it takes days.

    Raises:
        UserError: If the answer is no, or there is no terminal to ask at.
    """
    stage = open_stage("plan", overrides)
    suites = [stage.config.suite] if stage.config.suite else stage.config.run.suites
    seconds = sum(print_plan(stage.of_suite(name)) for name in suites)
    print(f"together about {readable(seconds)}; `dvc repro` starts it, and trains only what is not there yet")
    if not ask or seconds < DAYS_S:
        return
    if not sys.stdin.isatty():
        raise UserError(f"about {readable(seconds)} of work, and no terminal to ask at: YES=1 starts it without asking")
    if not click.confirm(f"Start about {readable(seconds)} of work?"):
        raise UserError("nothing was started")


def print_plan(stage: Stage) -> float:
    """Print a line for each run of a suite; return the sum of their seconds, 0 where nobody knows it."""
    name, sizes = stage.suite.name, size_of_data(stage)
    if sizes is None:
        print(f"{name}: its images are not fetched yet, so nothing can be said of the time it needs")
        return 0.0
    setup = set_up(stage, few_images(stage, sizes))
    teacher = Teacher(models.build(stage.suite.teacher.network, sizes.shape, sizes.classes, 1), setup.data)
    disk = 2 * sizes.bytes / 2**20  # and in DVC's cache
    print(f"{name} on {setup.compute.device}, from a few steps of each run; the data takes {disk:.1f} MiB of disk:")
    total = 0.0
    for label, job, epochs in parts(stage):
        an_epoch = seconds_an_epoch(setup, job, teacher, sizes) if any(epochs) else 0.0
        seconds = len(epochs) * OVERHEAD_S + sum(epochs) * an_epoch
        print(f"  {label:12} {sum(epochs)} epochs, {len(job.seeds)} seed(s): about {readable(seconds)}", flush=True)
        total += seconds
    return total


def parts(stage: Stage) -> Iterator[tuple[str, Job, list[int]]]:
    """List what is trained, for how many epochs in each run: the teacher on every split, the methods, the ablations."""
    run, suite, runs = stage.config.run, stage.suite, Runs(stage, "made up", fetched=False)
    yield "teacher", runs.teacher(), [suite.teacher.recipe.epochs if suite.teacher.recipe else 0] * len(run.splits)
    for method in run.methods:
        yield method, runs.student(method), [suite.student.recipe.epochs]
    if epochs := [variant.recipe.epochs for name in run.ablations for variant in suite.ablations[name]]:
        yield "ablations", runs.variant("any", Variant({}, suite.methods[ABLATED], suite.student.recipe)), epochs


def size_of_data(stage: Stage) -> Sizes | None:
    """Read the sizes of what was fetched, or will be; None if nobody knows."""
    description, settings = stage.path("data") / DESCRIPTION, stage.suite.data
    try:
        refuse_other_data(stage)
        is_fetched = description.is_file()
    except UserError:  # other images than params.yaml says: `dvc repro` fetches those first
        is_fetched = False
    if is_fetched:
        known = json.loads(description.read_text(encoding="utf-8"))
        (height, width, channels), stored = known["image_shape"], known.get("photographs", {})
        shape, classes = (height, width, channels), len(known["classes"])
        return Sizes(**known["images"], shape=shape, classes=classes, photographs_bytes=stored.get("bytes"))
    sizes = KNOWN.get(settings.name or settings.source)
    if sizes is None or settings.per_class is None:
        return sizes
    most = settings.per_class * sizes.classes
    return sizes._replace(train=min(sizes.train, most), test=min(sizes.test, most))


def few_images(stage: Stage, sizes: Sizes) -> Dataset:
    """Return some batches of the suite's photographs, whose decoding counts; or noise, for images of one size.

    Noise has as many test images to a training image as the real data set has.
    """
    images = stage.suite.student.recipe.batch_size * BATCHES
    if sizes.photographs_bytes:
        return canonical.load(stage.path("data")).limited(-(-images // sizes.classes))
    rng, counts = np.random.default_rng(0), (images, round(images * sizes.test / sizes.train))
    train, test = (
        Split(rng.integers(0, 256, (n, *sizes.shape), dtype=np.uint8), np.arange(n, dtype=np.int64) % sizes.classes)
        for n in (max(count, 2 * sizes.classes) for count in counts)
    )
    return Dataset(train, test, tuple(map(str, range(sizes.classes))))


def seconds_an_epoch(setup: Setup, job: Job, teacher: Teacher, sizes: Sizes) -> float:
    """Time steps and an evaluation on a few images; compute from them an epoch over as many as `sizes` says.

    Seeds that are not fused go side by side on the processors there are, a thread each, which is taken to be half as
    fast as all threads.
    """
    compute, test = replace(setup.compute, cuda_graph=False), setup.data.test
    spread = not compute.fuse_seeds and compute.device.type == "cpu" and len(job.seeds) > 1
    trainer = build_trainer(job, job.seeds[:1] if spread else job.seeds, setup.data, compute, teacher)
    trainer.begin_epoch(1)
    plan, train, size = trainer.plan(1), setup.data.train, job.recipe.batch_size
    batches = chain.from_iterable(train.batches(plan, size) for _ in repeat(None))
    step = least_seconds(lambda: float(trainer.step(next(batches))["loss"].sum()))
    image = least_seconds(lambda: trainer.predictions(test).cpu()) / len(test)
    epoch = step * -(-sizes.train // size)
    epoch += image * (sizes.train + sizes.test) / job.identity.evaluate_every
    return epoch * len(job.seeds) * (1 if CORES == 1 else 2 / CORES) if spread else epoch


def least_seconds(call: Callable[[], object]) -> float:
    """Return the least time of several calls, the first of which warms up."""
    times, end = list[float](), time.perf_counter() + ENOUGH_S
    while len(times) < 2 or (len(times) < CALLS and time.perf_counter() < end):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def readable(seconds: float) -> str:
    """Say a duration in the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < DAYS_S else f"{seconds / 86400:.1f} days"
