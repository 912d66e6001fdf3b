"""One training loop for the teacher and for every method, all seeds at once."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tripletkd.data.batches import DeviceSplit, Plan, Sampler
from tripletkd.training.checkpoint import Checkpoint, Progress
from tripletkd.training.cuda_graph import Captured, Terms
from tripletkd.training.ensemble import Ensemble
from tripletkd.training.optim import Recipe
from tripletkd.training.trainer import Teacher, Trainer, accuracy, predictions, update

TELL_EVERY = 60.0  # seconds, where there is no terminal to show a bar on

Watch = Callable[[Tensor], dict[str, list[float]]]  # the test split's logits [S, N, classes] -> figures by seed


@dataclass(frozen=True)
class Fitted:
    """A finished run: the networks of the seeds that did not fail, the history, why the others failed, and its time."""

    networks: dict[int, nn.Module]
    history: list[dict[str, float]]
    failed: dict[int, str]
    seconds: float  # of all its epochs, those before an interruption among them


def fit(
    trainer: Trainer,
    seeds: Sequence[int],
    recipe: Recipe,
    sampler: Sampler,
    train: DeviceSplit,
    test: DeviceSplit,
    *,
    teacher: Teacher | None = None,
    watch: Watch | None = None,
    evaluate_every: int = 1,
    checkpoint: Checkpoint | None = None,
    description: str = "training",
    captured: bool = False,
    quiet: bool = False,
) -> Fitted:
    """Train all seeds to the last epoch. The test split is measured, never used to choose.

    The history has a row for each seed and epoch: the terms (means over the epoch's images, before each update), and
    every `evaluate_every` epochs and at the last one the accuracy on either split, in eval mode over all its images,
    and what `watch` makes of the test split's logits. captured: on a GPU, run the steps as a CUDA graph.
    A seed whose loss is not finite fails alone: its rows end before that epoch. Raises checkpoint.Paused. Unless
    `quiet`, a terminal shows a bar with the time that is left, and a log gets a line a minute.
    """
    done = checkpoint.load(trainer.tensors()) if checkpoint else Progress()
    steps = -(-len(train) // recipe.batch_size)
    hidden = True if quiet else None  # None: shown on a terminal only
    bar = tqdm(total=recipe.epochs * steps, initial=done.epoch * steps, desc=description, unit="step", disable=hidden)
    step: Callable[[Plan], Terms] = partial(update, trainer, train, teacher)
    step = Captured(step) if captured else step
    plans = _plans(sampler, seeds, range(done.epoch + 1, recipe.epochs + 1))
    told = time.monotonic()
    with bar, checkpoint or nullcontext():
        upcoming = next(plans, None)
        while upcoming and len(done.failed) < len(seeds):
            epoch, started = done.epoch + 1, time.monotonic()
            trainer.begin_epoch(epoch, recipe.lr_at(epoch))
            terms = _train_epoch(step, upcoming.map(lambda t: t.to(train.images.device)), recipe.batch_size, bar)
            upcoming = next(plans, None)  # drawn while a GPU is still at work on this epoch and the host is idle
            measured: dict[str, list[float]] = {}
            if epoch % evaluate_every == 0 or epoch == recipe.epochs:
                measured = _measure(trainer.students, train, test, watch)
            rows = _record(done, seeds, epoch, recipe, terms, measured, len(train))
            bar.set_postfix(summary := _summary(rows, terms), refresh=False)
            done.seconds += time.monotonic() - started
            if bar.disable and not quiet and time.monotonic() - told >= TELL_EVERY:
                print(_line(description, done, recipe.epochs, summary), flush=True)
                told = time.monotonic()
            if checkpoint:
                checkpoint.after_epoch(trainer.tensors(), done, recipe.epochs)
    return _finish(trainer, seeds, done)


def _plans(sampler: Sampler, seeds: Sequence[int], epochs: Sequence[int]) -> Iterator[Plan]:
    """What all seeds do in each epoch."""
    for epoch in epochs:
        yield Plan.stack([sampler.draw(seed, epoch) for seed in seeds])


def _train_epoch(step: Callable[[Plan], Terms], plan: Plan, batch_size: int, bar: Any) -> Terms:
    """One pass over the training split; the terms of every step, [steps, S] each, without waiting for the device."""
    rows = []
    for batch in plan.batches(batch_size):
        rows.append(step(batch))
        bar.update()
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _measure(students: Ensemble, train: DeviceSplit, test: DeviceSplit, watch: Watch | None) -> dict[str, list[float]]:
    logits = predictions(students, test)
    correct = (logits.argmax(2) == test.labels).double().mean(1).tolist()
    figures = {"train_accuracy": accuracy(students, train), "test_accuracy": correct}
    return figures | (watch(logits) if watch else {})


def _record(
    done: Progress,
    seeds: Sequence[int],
    epoch: int,
    recipe: Recipe,
    terms: Terms,
    measured: dict[str, list[float]],
    images: int,
) -> list[dict[str, float]]:
    """Append an epoch's rows to the history, and return them; a seed with a term that is not finite fails instead."""
    rows = []
    steps = {name: value.double().cpu() for name, value in terms.items()}
    batch_sizes = torch.full((len(steps["loss"]),), recipe.batch_size, dtype=torch.float64)
    batch_sizes[-1] = images - recipe.batch_size * (len(batch_sizes) - 1)
    for i, seed in enumerate(seeds):
        if seed in done.failed:
            continue
        # The first step with a bad term, and among its terms the summands before their sum.
        finite = {name: value[:, i].isfinite() for name, value in steps.items()}
        bad = [(int((~f).nonzero()[0]), name == "loss", name) for name, f in finite.items() if not f.all()]
        if bad:
            step, _, name = min(bad)
            done.failed[seed] = f"{name} is {steps[name][step, i].item()} at epoch {epoch}, step {step + 1}"
            tqdm.write(f"seed {seed} failed: {done.failed[seed]}; the other seeds go on")
            continue
        means = {name: float(value[:, i] @ batch_sizes / images) for name, value in steps.items()}
        figures = {name: values[i] for name, values in measured.items()}
        rows.append({"seed": seed, "epoch": epoch, "lr": recipe.lr_at(epoch), **means, **figures})
    done.history += rows
    done.epoch = epoch
    return rows


def _summary(rows: Sequence[dict[str, float]], terms: Iterable[str]) -> dict[str, str]:
    """For the progress bar: an epoch's means over the seeds that did not fail."""
    if not rows:
        return {}

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    shown = {name: f"{mean(name):.3f}" for name in terms}
    measured = [part for part in ("train", "test") if f"{part}_accuracy" in rows[0]]
    return shown | {part: f"{100 * mean(f'{part}_accuracy'):.1f}%" for part in measured}


def _line(description: str, done: Progress, epochs: int, summary: dict[str, str]) -> str:
    """For a log: how far a run is, and the time that is left at the pace so far."""
    left = tqdm.format_interval(done.seconds / done.epoch * (epochs - done.epoch))
    figures = ", ".join(f"{name} {value}" for name, value in summary.items())
    return f"{description}: epoch {done.epoch} of {epochs}, {figures}; {left} left"


def _finish(trainer: Trainer, seeds: Sequence[int], done: Progress) -> Fitted:
    networks = {}
    for i, seed in enumerate(seeds):
        if seed in done.failed:
            continue
        network = trainer.students.member(i)
        if all(p.isfinite().all() for p in network.parameters()):
            networks[seed] = network
        else:
            done.failed[seed] = f"weights are not finite after epoch {done.epoch}"
    return Fitted(networks, done.history, done.failed, done.seconds)
