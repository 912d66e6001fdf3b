"""One training loop for the teacher and for every method, all seeds of a group at once."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tripletkd.data.batches import Plan
from tripletkd.errors import UserError
from tripletkd.training.checkpoint import Checkpoint, Progress
from tripletkd.training.cuda_graph import Captured
from tripletkd.training.progress import Unseen, Watch
from tripletkd.training.trainer import Terms, Trainer, accuracy

MetricsFn = Callable[[Tensor], dict[str, list[float]]]  # the test split's logits [S, N, classes] -> figures by seed


@dataclass(frozen=True)
class Monitoring:
    """Says what is measured while a run trains, and who looks on; nothing of it changes what is trained."""

    evaluate_every: int = 1  # epochs; the last one is always evaluated
    metrics_fn: MetricsFn | None = None
    watch: Watch = field(default_factory=Unseen)


@dataclass(frozen=True)
class TrainResult:
    """Holds what training leaves: the networks of the seeds that did not fail, the history, why the others failed."""

    networks: dict[int, nn.Module]
    history: list[dict[str, float]]  # a row for each seed and epoch
    failed: dict[int, str]
    seconds: float  # of all its epochs, those before an interruption among them
    environments: list[dict[str, object]] = field(default_factory=list)  # of the machines that trained it, in order


def fit(trainer: Trainer, monitoring: Monitoring | None = None, checkpoint: Checkpoint | None = None) -> TrainResult:
    """Train all seeds to the last epoch. The test split is measured, never used to choose.

    The history has a row for each seed and epoch: the terms (means over the epoch's images, before each update), and
    with every evaluation the accuracy and the loss on either split, in eval mode over all its images, and what
    `metrics_fn` makes of the test split's logits. A seed whose loss is not finite fails alone: its rows end before that
    epoch.

    Raises:
        errors.Paused: if the run was stopped at a checkpoint.
    """
    shown = monitoring or Monitoring()
    done = checkpoint.load(trainer.tensors()) if checkpoint else Progress()
    step = Captured(trainer.step) if trainer.compute.cuda_graph else trainer.step
    steps = -(-len(trainer.data.train) // trainer.recipe.batch_size)
    shown.watch.begin(done, trainer.recipe.epochs, steps)
    with ExitStack() as stack:
        stack.callback(shown.watch.end)
        if checkpoint:
            stack.enter_context(checkpoint)
        plan = _next_plan(trainer, done)
        while plan and len(done.failed) < len(trainer.seeds):
            started = time.monotonic()
            epoch = done.epoch + 1
            trainer.begin_epoch(epoch)
            terms = _train_epoch(step, plan, trainer, shown.watch)
            plan = _next_plan(trainer, done, ahead=1)  # drawn while a GPU is still at work on this epoch
            evaluated = epoch % shown.evaluate_every == 0 or epoch == trainer.recipe.epochs
            rows = _rows(trainer, epoch, terms, _measure(trainer, shown.metrics_fn) if evaluated else {}, done)
            done.history += rows
            done.epoch = epoch
            done.seconds += time.monotonic() - started
            shown.watch.epoch(rows, done)
            if checkpoint:
                checkpoint.after_epoch(trainer.tensors(), done, trainer.recipe.epochs)
    return _finish(trainer, done)


def _next_plan(trainer: Trainer, done: Progress, ahead: int = 0) -> Plan | None:
    """Draw the next epoch's plan, or that of a later one; None after the last."""
    epoch = done.epoch + 1 + ahead
    return trainer.plan(epoch) if epoch <= trainer.recipe.epochs else None


def _train_epoch(step: Callable[[Plan], Terms], plan: Plan, trainer: Trainer, watch: Watch) -> Terms:
    """Pass once over the training split; returns the terms of every step, [steps, S], not waiting for the device."""
    rows = []
    for batch in trainer.data.train.batches(plan, trainer.recipe.batch_size):
        rows.append(step(batch))
        watch.step()
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _measure(trainer: Trainer, metrics_fn: MetricsFn | None) -> dict[str, list[float]]:
    """Compute the accuracy of every seed on either split, the loss where it is of logits alone, and further metrics."""
    data = trainer.data
    train_logits, logits = trainer.predictions(data.train), trainer.predictions(data.test)
    figures = {
        "train_accuracy": accuracy(train_logits, data.train.labels).tolist(),
        "test_accuracy": accuracy(logits, data.test.labels).tolist(),
    }
    if trainer.objective.is_of_logits:
        figures["train_loss"] = trainer.evaluated_loss(train_logits, data.train).tolist()
        figures["test_loss"] = trainer.evaluated_loss(logits, data.test).tolist()
    return figures | (metrics_fn(logits) if metrics_fn else {})


def _rows(
    trainer: Trainer, epoch: int, terms: Terms, measured: dict[str, list[float]], done: Progress
) -> list[dict[str, float]]:
    """Make an epoch's rows of the history; a seed with a term that is not finite fails instead."""
    rows = []
    steps = {name: value.double().cpu() for name, value in terms.items()}
    images, size = len(trainer.data.train), trainer.recipe.batch_size
    batch_sizes = torch.full((len(steps["loss"]),), size, dtype=torch.float64)
    batch_sizes[-1] = images - size * (len(batch_sizes) - 1)
    if taken := measured.keys() & terms.keys():
        raise UserError(f"metrics_fn: found {', '.join(sorted(taken))}, a term of the loss; expected other names")
    for i, seed in enumerate(trainer.seeds):
        if seed in done.failed:
            continue
        of_seed = {name: value[:, i] for name, value in steps.items()}
        if reason := _not_finite(of_seed, epoch):
            done.failed[seed] = reason
            tqdm.write(f"seed {seed} failed: {reason}; the other seeds go on")
            continue
        means = {name: float(value @ batch_sizes / images) for name, value in of_seed.items()}
        figures = {name: values[i] for name, values in measured.items()}
        rows.append({"seed": seed, "epoch": epoch, "lr": trainer.recipe.lr_at(epoch), **means, **figures})
    return rows


def _not_finite(terms: Terms, epoch: int) -> str | None:
    """Say which term [steps] of one seed was the first that is not finite; None if all are.

    Of the terms of one step the summands are named before their sum.
    """
    if all(value.isfinite().all() for value in terms.values()):
        return None
    summands_first = sorted(terms, key=lambda name: name == "loss")
    for step in range(len(terms["loss"])):
        for name in summands_first:
            value = terms[name][step]
            if not value.isfinite():
                return f"{name} is {value.item()} at epoch {epoch}, step {step + 1}"
    return None


def _finish(trainer: Trainer, done: Progress) -> TrainResult:
    networks = {}
    for i, seed in enumerate(trainer.seeds):
        if seed in done.failed:
            continue
        network = trainer.students.member(i)
        if all(p.isfinite().all() for p in network.parameters()):
            networks[seed] = network
        else:
            done.failed[seed] = f"weights are not finite after epoch {done.epoch}"
    return TrainResult(networks, done.history, done.failed, done.seconds, done.environments)
