"""Say what a run will do and how long it will take here: a few steps of each run are timed on made-up images.

    python -m stages.plan [suite=cifar10] [--ask]

With --ask it ends with a question, and code 1 if the answer is no, where that time is days.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from stages._command import Stage, run
from stages._setup import Setup, conditions, job_of_method, job_of_teacher, key_of, set_up
from torch import Tensor

from tripletkd import models
from tripletkd.config.schema import ABLATED
from tripletkd.data.dataset import DESCRIPTION, Dataset, Split
from tripletkd.errors import UserError
from tripletkd.training.compute import CORES
from tripletkd.training.job import Job, build_trainer
from tripletkd.training.trainer import Teacher

BATCHES = 2  # of made-up images, stepped over again and again
TIMED_S, TIMED_CALLS = 0.3, 3  # for how long steps are timed, and how many at least
OVERHEAD_S = 6.0  # of a stage beside the training: imports, evaluation, files
DAYS_S = 48 * 3600.0  # from which on a duration is told in days
KNOWN = {  # training and test images, their shape, classes of what will be fetched
    "digits": (898, 899, (8, 8, 1), 10),
    "CIFAR10": (50000, 10000, (32, 32, 3), 10),
    "CIFAR100": (50000, 10000, (32, 32, 3), 100),
}


@dataclass(frozen=True)
class Sizes:
    """How much data there is, or will be."""

    train: int
    test: int
    shape: tuple[int, int, int]  # of an image, [H, W, C]
    classes: int


@dataclass(frozen=True)
class Part:
    """A line of the plan: what is trained, and for how many epochs in how many runs."""

    label: str
    job: Job
    epochs: Sequence[int]


def main(stage: Stage) -> None:
    """Print a line a stage, and for each suite a line a run and their sum."""
    run = stage.config.run
    suites = [stage.config.suite] if stage.config.suite else run.suites
    stages = 1 + len(run.splits) + 2 * len(run.methods) + len(run.ablations) + 1
    print(
        f"{len(suites)} suite(s) of {stages} stages: fetch; train_teacher for {' and '.join(run.splits)}; distill and "
        f"evaluate {len(run.methods)} methods; {len(run.ablations)} ablation(s); tabulate"
    )
    total = sum(print_plan(stage.of_suite(name)) for name in suites)
    if stage.options.ask and total >= DAYS_S:
        ask(total)


def ask(seconds: float) -> None:
    """Ask whether to start work of days.

    Raises:
        UserError: the answer is no, or there is no terminal to ask at.
    """
    if not sys.stdin.isatty():
        raise UserError(f"about {readable(seconds)} of work, and no terminal to ask at: YES=1 starts it without asking")
    print(f"Start about {readable(seconds)} of work? [y/N]", end=" ", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was started")


def print_plan(stage: Stage) -> float:
    """Print a line a run of a suite, and their sum, which it returns in seconds; 0 where nobody knows it."""
    name, sizes = stage.suite.name, size_of_data(stage)
    if sizes is None:
        print(f"{name}: its images are not fetched yet, so nothing can be said of the time it needs")
        return 0.0
    setup = set_up(stage, made_up(stage.suite.student.recipe.batch_size * BATCHES, sizes))
    teacher = Teacher(models.build(stage.suite.teacher.network, sizes.shape, sizes.classes, 1), setup.data)
    print(f"{name} on {setup.compute.device}, from a few steps of each run:")
    total = 0.0
    for part in parts(stage, setup):
        epoch = seconds_an_epoch(stage, setup, part.job, teacher, sizes)
        needed = len(part.epochs) * OVERHEAD_S + sum(part.epochs) * epoch
        total += needed
        print(f"  {part.label:12} {sum(part.epochs)} epochs, {len(part.job.seeds)} seed(s): about {readable(needed)}")
    disk = disk_mib(sizes.train + sizes.test, sizes.shape)
    print(f"  together about {readable(total)}; the data takes {disk:.1f} MiB of disk")
    return total


def parts(stage: Stage, setup: Setup) -> Iterator[Part]:
    """List what is trained: the teacher on every split, the methods, the ablations."""
    run, suite, student = stage.config.run, stage.suite, stage.suite.student
    yield Part("teacher", job_of_teacher(stage, setup), [suite.teacher.recipe.epochs] * len(run.splits))
    for method in run.methods:
        of_method = replace(stage, config=replace(stage.config, method=method))
        yield Part(method, job_of_method(of_method, setup, ""), [student.recipe.epochs])
    if ablated := [variant.recipe.epochs for name in run.ablations for variant in suite.ablations[name]]:
        params = suite.methods[ABLATED]
        key, common = key_of(stage, ABLATED), conditions(stage, setup)
        job = Job(key, student.network, ABLATED, params, student.recipe, suite.seeds, common)
        yield Part("ablations", job, ablated)


def size_of_data(stage: Stage) -> Sizes | None:
    """Read the sizes of what was fetched, or will be; None if nobody knows."""
    description, settings = stage.path("data") / DESCRIPTION, stage.suite.data
    if description.is_file():
        known = json.loads(description.read_text(encoding="utf-8"))
        height, width, channels = known["image_shape"]
        images = known["images"]
        return Sizes(images["train"], images["test"], (height, width, channels), len(known["classes"]))
    found = KNOWN.get(settings.name or settings.source)
    if found is None:
        return None
    sizes = Sizes(*found)
    if settings.per_class is None:
        return sizes
    most = settings.per_class * sizes.classes
    return replace(sizes, train=min(sizes.train, most), test=min(sizes.test, most))


def made_up(images: int, sizes: Sizes) -> Dataset:
    """Make noise with as many test images to a training image as the real data set has."""
    rng = np.random.default_rng(0)
    tests = round(images * sizes.test / sizes.train)
    train, test = (
        Split(rng.integers(0, 256, (n, *sizes.shape), dtype=np.uint8), np.arange(n, dtype=np.int64) % sizes.classes)
        for n in (max(images, 2 * sizes.classes), max(tests, sizes.classes))
    )
    return Dataset(train, test, tuple(map(str, range(sizes.classes))))


def seconds_an_epoch(stage: Stage, setup: Setup, job: Job, teacher: Teacher, sizes: Sizes) -> float:
    """Time steps and an evaluation on the made-up images, and compute from them an epoch over as many as `sizes` says.

    Steps are not captured. A teacher whose logits are kept for all epochs is asked before. Seeds that are not fused go
    side by side on the processors there are, a thread each, which is taken to be half as fast as all threads.
    """
    compute = replace(setup.compute, cuda_graph=False)
    spread = not compute.fuse_seeds and compute.device.type == "cpu" and len(job.seeds) > 1
    trainer = build_trainer(job, job.seeds[:1] if spread else job.seeds, setup.data, compute, teacher)
    trainer.begin_epoch(1)
    batches = cycle(setup.data.train.batches(trainer.plan(1), job.recipe.batch_size))
    step = seconds_a_call(lambda: trainer.step(next(batches))["loss"])
    image = seconds_a_call(lambda: trainer.predictions(setup.data.test)) / len(setup.data.test)
    evaluation = image * (sizes.train + sizes.test)
    epoch = step * -(-sizes.train // job.recipe.batch_size) + evaluation / stage.suite.evaluate_every
    if not spread:
        return epoch
    return epoch * len(job.seeds) * (1 if CORES == 1 else 2 / CORES)


def seconds_a_call(function: Callable[[], Tensor]) -> float:
    """Time a function until what it returns is there, after a first call to warm up; the least of several calls.

    A mean would count what else the machine does.
    """
    function().cpu()
    calls: list[float] = []
    started = time.perf_counter()
    while len(calls) < TIMED_CALLS or time.perf_counter() - started < TIMED_S:
        before = time.perf_counter()
        function().cpu()
        calls.append(time.perf_counter() - before)
    return min(calls)


def readable(seconds: float) -> str:
    """Say a duration in the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < DAYS_S else f"{seconds / 86400:.1f} days"


def disk_mib(images: int, shape: tuple[int, int, int]) -> float:
    """Compute what the canonical file and its copy in DVC's cache take."""
    return 2 * images * float(np.prod(shape)) / 2**20


if __name__ == "__main__":
    run(main, needs=(), logs=False, asks=True)
