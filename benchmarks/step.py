"""Images per second and seed of a distillation epoch: this project against a plain loop, in one process.

    python -m benchmarks.step paper    # the paper's epoch: CIFAR-10's shape, its networks, triplet loss
    python -m benchmarks.step field    # resnet32x4 to resnet8x4, batch 64, augmented, KD
    python -m benchmarks.step paper --seeds 1 2 4 8 16 32 --images 1000 10000 50000 --plain-images 0    # growth
    python -m benchmarks.step paper --precision float32 tf32 bfloat16 --cuda-graph on off --fuse-seeds always never

benchmarks/README.md says how to read what it prints.
"""

import argparse
import dataclasses
import itertools
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, triplet_margin_loss
from torch.utils import data as torch_data
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from tripletkd import methods, models
from tripletkd.data.batches import DeviceData, Inputs
from tripletkd.data.dataset import Dataset, Split
from tripletkd.methods.functional import kl_divergence
from tripletkd.training.compute import PRECISIONS, Compute, select_compute, set_up_process
from tripletkd.training.identity import RunIdentity, described
from tripletkd.training.job import Job, build_trainer
from tripletkd.training.loop import fit
from tripletkd.training.optim import SGD, MultiStep, Recipe
from tripletkd.training.trainer import Teacher, Trainer


@dataclass(frozen=True)
class Case:
    """An experiment whose epoch is timed."""

    teacher: str
    student: str
    method: str
    params: dict[str, float]
    classes: int
    recipe: Recipe
    inputs: Inputs
    transform: Callable[[Image.Image], Tensor]  # what the plain loop does to an image it trains on

    def loss(self, student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, negative: Tensor) -> Tensor:
        """The plain loop's, with PyTorch's own functions; a forward pass for each of its parts."""
        with torch.no_grad():
            target = teacher(x).logits
        output = student(x).logits
        if self.method == "triplet":
            return cross_entropy(output, y) + 2 * triplet_margin_loss(
                target, output, student(negative).logits, margin=5.0
            )
        return 0.1 * cross_entropy(output, y) + 0.9 * kl_divergence(output, target, 4.0)


def _recipe(batch_size: int, lr: float, weight_decay: float) -> Recipe:
    """One epoch."""
    optimizer = SGD(lr=lr, momentum=0.9, weight_decay=weight_decay)
    schedule = MultiStep(decay_epochs=(), decay_factor=1.0)
    return Recipe(epochs=1, batch_size=batch_size, optimizer=optimizer, schedule=schedule)


MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
CASES = {
    "paper": Case(
        "paper_teacher",
        "paper_student",
        "triplet",
        {"ce": 1.0, "triplet": 2.0, "margin": 5.0},
        10,
        _recipe(batch_size=100, lr=0.01, weight_decay=0.007),
        Inputs(),
        transforms.ToTensor(),
    ),
    "field": Case(
        "resnet32x4",
        "resnet8x4",
        "kd",
        {"ce": 0.1, "kl": 0.9, "temperature": 4.0},
        100,
        _recipe(batch_size=64, lr=0.05, weight_decay=0.0005),
        Inputs(MEAN, STD, crop_padding=4, flip=True),
        transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        ),
    ),
}


# --- the plain loop ---------------------------------------------------------------------------------------------------


class PerImage(torch_data.Dataset[tuple[Tensor, int, Tensor]]):
    """One image, its label and an image of another class, each converted on its own."""

    def __init__(self, split: Split, case: Case, training: bool) -> None:
        self.split = split
        plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(case.inputs.mean, case.inputs.std)])
        self.convert = case.transform if training else plain
        self.pairs = training and case.method == "triplet"
        self.others = [np.flatnonzero(split.labels != label) for label in range(case.classes)]

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        label = int(self.split.labels[i])
        x = self.convert(Image.fromarray(self.split.images[i]))
        if not self.pairs:
            return x, label, x
        other = self.others[label][int(torch.randint(len(self.others[label]), ()))]
        return x, label, self.convert(Image.fromarray(self.split.images[other]))


def plain_epoch(
    case: Case, student: nn.Module, teacher: nn.Module, splits: Sequence[Split], device: torch.device, workers: int
) -> float:
    """Seconds of one epoch, evaluation included: on the test images, and in the paper's case on the training images."""

    def loader(split: Split, training: bool) -> torch_data.DataLoader[tuple[Tensor, int, Tensor]]:
        made = torch_data.DataLoader(
            PerImage(split, case, training),
            batch_size=case.recipe.batch_size,
            shuffle=training,
            num_workers=workers,
            persistent_workers=True,
        )
        next(iter(made))  # the workers' start is not counted
        return made

    train, *evaluated = loader(splits[0], True), loader(splits[1], False)
    if case.method == "triplet":
        evaluated.append(loader(splits[0], False))
    student.to(device), teacher.to(device).eval()
    settings = case.recipe.optimizer
    assert isinstance(settings, SGD)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    started = time.perf_counter()
    for batch in train:
        loss = case.loss(student, teacher, *(t.to(device) for t in batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for batches in evaluated:
            sum((student(x.to(device)).logits.argmax(1).cpu() == y).sum().item() for x, y, _ in batches)
    return time.perf_counter() - started


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class How:
    """Of our epoch: seeds at once, and how a device computes it."""

    device: torch.device
    seeds: int
    precision: str = "float32"
    cuda_graph: bool = True
    fuse_seeds: str = "auto"

    def compute(self, height: int) -> Compute:
        """As the stages choose it; the device `meta` computes nothing, and knows no autocast."""
        if self.device.type == "meta":
            return Compute(self.device)
        return select_compute(self.device.type, self.precision, self.fuse_seeds, self.cuda_graph, height)


def our_trainer(case: Case, how: How, splits: Sequence[Split]) -> Trainer:
    """The trainer of all seeds, as the stages make it."""
    train, test = splits
    method, shape = methods.load(case.method), (*train.images.shape[1:3], 3)
    compute = how.compute(shape[0])
    dataset = Dataset(train, test, tuple(map(str, range(case.classes))))
    data = DeviceData.load(dataset, case.inputs, compute.device, compute.dtype)
    teacher = Teacher(models.build(case.teacher, shape, case.classes, 1), data)
    params, seeds = method.Params(**case.params), range(how.seeds)
    identity = RunIdentity(
        suite="benchmark",
        split="test",
        name=case.method,
        method=case.method,
        network=case.student,
        params=described(params),
        recipe=described(case.recipe),
        inputs=described(case.inputs),
        precision=how.precision,
        deterministic=True,
        evaluate_every=1,
        data_sha256="",
        teacher_sha256="",
    )
    job = Job(identity, params, case.recipe, seeds, case.teacher)
    return build_trainer(job, seeds, data, compute, teacher)


def our_epoch(case: Case, how: How, splits: Sequence[Split]) -> float:
    """Seconds of one epoch of all seeds; making the networks, teacher's logits and evaluation are part of it."""
    started = time.perf_counter()
    fit(our_trainer(case, how, splits))
    return time.perf_counter() - started


def operations(case: Case, how: How, splits: Sequence[Split]) -> float:
    """Floating-point operations of our epoch's convolutions and matrix products, counted by PyTorch; none is computed.

    A step's times the number of steps, and the evaluation's forward passes. Seed by seed: the counter takes the
    gradients of grouped convolutions for those of whole ones.
    """
    train, test = splits
    meta, size = torch.device("meta"), case.recipe.batch_size
    with FlopCounterMode(display=False) as step_counter:
        trainer = our_trainer(case, dataclasses.replace(how, device=meta), (train.select(np.arange(size)), test))
        trainer.step(trainer.plan(1).map(lambda t: t.to(meta)))
        total = step_counter.get_total_flops()
    with FlopCounterMode(display=False) as forward:
        trainer.students.predict(torch.zeros(size, 3, *train.images.shape[1:3], device=meta))
    return total / size * len(train.labels) + forward.get_total_flops() / size * (len(train.labels) + len(test.labels))


def matrix_rate(how: How) -> float:
    """Floating-point operations a second of one large matrix product: what this device can do at best."""
    dtype, autocast = PRECISIONS[how.precision]
    size = 8192 if how.device.type == "cuda" else 2048
    a = torch.randn(size, size, device=how.device, dtype=autocast or dtype)
    return 2 * size**3 / median(lambda: timed(lambda: a @ a, how.device), 5)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds, until the device is done."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def median(seconds: Callable[[], float], repeats: int) -> float:
    """After one to warm up."""
    seconds()
    return statistics.median(seconds() for _ in range(repeats))


def peak_gib(device: torch.device) -> float:
    """Of the GPU's memory; on a CPU of this process so far, all that it imported among it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def made_up(case: Case, images: int, size: int) -> tuple[Split, Split]:
    """Noise: a training split, and a test split of a fifth of its size."""
    rng = np.random.default_rng(0)
    train, test = (
        Split(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n, dtype=np.int64) % case.classes)
        for n in (images, max(images // 5, case.classes))
    )
    return train, test


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--images", type=int, nargs="+", default=[2000], help="of the training split")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5, 10], help="trained at once")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument(
        "--cuda-graph", nargs="+", choices=["on", "off"], default=["on"], help="on a GPU: as CUDA graphs"
    )
    parser.add_argument("--fuse-seeds", nargs="+", choices=["auto", "always", "never"], default=["auto"])
    parser.add_argument("--not-deterministic", action="store_true")
    parser.add_argument("--plain-images", type=int, default=2000, help="of the plain loop; 0: leave it out")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's loader")
    parser.add_argument("--repeats", type=int, default=3, help="the median counts")
    report(parser.parse_args())


def report(given: argparse.Namespace) -> None:
    """A table, a line a setting."""
    case, device = CASES[given.case], torch.device(given.device)

    def network(name: str) -> nn.Module:
        return models.build(name, (given.size, given.size, 3), case.classes, 1)

    teacher, plain = network(case.teacher), None
    print(f"torch {torch.__version__}, {platform.machine()}, {device}, {torch.get_num_threads()} threads")
    if given.plain_images:
        set_up_process(Compute(device), "float32", not given.not_deterministic, given.size)
        splits = made_up(case, given.plain_images, given.size)
        work = partial(plain_epoch, case, network(case.student), teacher, splits, device, given.workers)
        plain = given.plain_images / median(work, given.repeats)
        print(f"plain loop: {plain:.0f} images/s, peak {peak_gib(device):.2f} GiB")
    words, numbers = ["images", "seeds"], ["s", "images/s/seed", "images/s", "times plain", "roofline", "peak GiB"]
    print(f"| {' | '.join([*words, 'precision', 'graph', 'fuse', *numbers])} |")
    print("| ---: | ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for precision in given.precision:
        set_up_process(Compute(device), precision, not given.not_deterministic, given.size)
        rate = matrix_rate(How(device, 1, precision))
        settings = itertools.product(given.cuda_graph, given.fuse_seeds, given.images, given.seeds)
        for graph, fuse, images, seeds in settings:
            how, splits = How(device, seeds, precision, graph == "on", fuse), made_up(case, images, given.size)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = median(partial(our_epoch, case, how, splits), given.repeats)
            share = operations(case, how, splits) / seconds / rate
            speed = images * seeds / seconds
            times = "" if plain is None else f"{speed / plain:.2f}"
            graphs = "yes" if how.compute(given.size).cuda_graph else "no"
            print(
                f"| {images} | {seeds} | {precision} | {graphs} | {fuse} | {seconds:.2f} "
                f"| {images / seconds:.0f} | {speed:.0f} | {times} | {100 * share:.0f} % | {peak_gib(device):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
