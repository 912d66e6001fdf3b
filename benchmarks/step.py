"""Images per second and seed of the paper's distillation epoch: this project against a plain per-image loop.

    python -m benchmarks.step [--images 2000] [--seeds 1 5 10] [--size 32] [--width 32] [--device cpu] [--repeats 3]

The plain loop is the protocol of the authors' public code: a torchvision-style data set that returns one PIL image and
its negative at a time, ToTensor, a DataLoader with two workers, three forward passes a step (teacher, student, student
of the negative), torch.optim.SGD, and a full evaluation of training and test images after each epoch. Both do the same
work on the same images in one process, in turn; the ratio is the figure to quote, times depend on the machine's mood.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, triplet_margin_loss
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from tripletkd import models
from tripletkd.data import DeviceSplit, Inputs, Sampler, Split
from tripletkd.methods import triplet
from tripletkd.train import Recipe, Teacher, Trainer, fit

RECIPE = Recipe(epochs=1, batch_size=100, lr=0.01, momentum=0.9, weight_decay=0.007, decay_epochs=[], decay_factor=1.0)


class PerImage(Dataset[tuple[Tensor, int, Tensor]]):
    """One image, its label and an image of another class, each converted on its own."""

    def __init__(self, split: Split) -> None:
        self.split, self.convert = split, ToTensor()
        self.others = [np.flatnonzero(split.labels != label) for label in range(10)]

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        label = int(self.split.labels[i])
        other = self.others[label][torch.randint(len(self.others[label]), ()).item()]
        x, negative = (self.convert(Image.fromarray(self.split.images[j])) for j in (i, other))
        return x, label, negative


def plain_epoch(student: nn.Module, teacher: nn.Module, train: Split, test: Split, device: torch.device) -> float:
    """Seconds of one epoch, evaluation included."""
    loader, test_loader = (
        DataLoader(
            PerImage(split), batch_size=RECIPE.batch_size, shuffle=shuffle, num_workers=2, persistent_workers=True
        )
        for split, shuffle in ((train, True), (test, False))
    )
    student.to(device), teacher.to(device).eval()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=0.007)
    for batches in (loader, test_loader):  # the workers' start is not counted
        next(iter(batches))
    started = time.perf_counter()
    for batch in loader:
        x, y, negative = (t.to(device) for t in batch)
        with torch.no_grad():
            target = teacher(x).logits
        output = student(x).logits
        loss = cross_entropy(output, y) + 2 * triplet_margin_loss(target, output, student(negative).logits, margin=5.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        for batches in (loader, test_loader):
            sum((student(x.to(device)).logits.argmax(1).cpu() == y).sum().item() for x, y, _ in batches)
    return time.perf_counter() - started


def our_epoch(
    students: list[nn.Module], teacher: nn.Module, train: Split, test: Split, device: torch.device, folded: bool
) -> float:
    """Seconds of one epoch of all seeds, evaluation and the teacher's logits included."""
    started = time.perf_counter()
    splits = [DeviceSplit(split, Inputs(), device, torch.float32) for split in (train, test)]
    loss = partial(triplet.loss, params=triplet.Params(ce=1, triplet=2, margin=5))
    trainer = Trainer(students, loss, RECIPE, device, folded=folded)
    sampler = Sampler(train.labels, Inputs(), negatives=True)
    guide = Teacher(teacher, splits[0], features=False)
    fit(trainer, list(range(len(students))), RECIPE, sampler, splits[0], splits[1], teacher=guide, description="ours")
    return time.perf_counter() - started


def median(epoch: Callable[[], float], repeats: int) -> float:
    """After one to warm up."""
    epoch()
    return statistics.median(epoch() for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device, shape = torch.device(arguments.device), (arguments.size, arguments.size, 3)
    rng = np.random.default_rng(0)
    train, test = (
        Split(rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n, dtype=np.int64) % 10)
        for n in (arguments.images, arguments.images // 5)
    )
    teacher = models.PaperTeacher(3, arguments.size, 10, arguments.width)

    def student() -> nn.Module:
        return models.PaperStudent(3, arguments.size, 10, arguments.width)

    print(f"torch {torch.__version__}, {platform.machine()}, {device}, {torch.get_num_threads()} threads, {shape}")
    plain = arguments.images / median(lambda: plain_epoch(student(), teacher, train, test, device), arguments.repeats)
    print(f"plain per-image loop: {plain:8.0f} images/s")
    folded = device.type == "cuda" or arguments.size <= 16
    first = None
    for seeds in arguments.seeds:
        spent = median(
            lambda n=seeds: our_epoch([student() for _ in range(n)], teacher, train, test, device, folded),  # type: ignore[misc]
            arguments.repeats,
        )
        first = first or spent / seeds
        ours = arguments.images * seeds / spent
        print(
            f"ours, {seeds:2} seeds:       {ours:8.0f} images/s over all seeds, {ours / plain:5.2f} times the plain "
            f"loop; {spent / first:5.2f} times the time of one seed"
        )


if __name__ == "__main__":
    main()
