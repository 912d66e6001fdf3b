"""One training loop for the teacher and for every method, all seeds at once."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from .capture import Captured, Terms
from .checkpoint import Checkpoint, Progress
from .data import DeviceSplit, Plan, Sampler
from .ensemble import Ensemble, State, stack
from .methods._terms import Batch, Outputs, Term, total

EVALUATION_BATCH = 500
TELL_EVERY = 60.0  # seconds, where there is no terminal to show a bar on

Loss = Callable[[Batch], dict[str, Term]]
Watch = Callable[[Tensor], dict[str, list[float]]]  # the test split's logits [S, N, classes] -> figures by seed


@dataclass
class Recipe:
    """SGD with momentum; the learning rate falls by `decay_factor` after each of `decay_epochs`."""

    epochs: Annotated[int, ">= 1"]
    batch_size: Annotated[int, ">= 1"]
    lr: Annotated[float, "> 0"]
    momentum: Annotated[float, ">= 0", "< 1"]
    weight_decay: Annotated[float, ">= 0"]
    decay_epochs: list[int]
    decay_factor: Annotated[float, "> 0", "<= 1"]

    def lr_at(self, epoch: int) -> float:
        """Of an epoch, counted from 1."""
        return self.lr * self.decay_factor ** sum(epoch > boundary for boundary in self.decay_epochs)


def passed(network: Callable[[Tensor], Outputs], images: Tensor, autocast: torch.dtype | None) -> Outputs:
    """A network's outputs in the images' type; on the way, what PyTorch deems safe is computed in `autocast`."""
    if autocast is None:
        return network(images)
    with torch.autocast(images.device.type, autocast, cache_enabled=False):  # a cache would hold a graph's memory
        outputs = network(images)
    return outputs.map(lambda t: t.to(images.dtype))


class Teacher:
    """A frozen network in eval mode. Where nothing is augmented and no features are used, logits are computed once.

    features, negatives: whether the method uses its features, and its outputs for x'.
    """

    def __init__(
        self,
        network: nn.Module,
        train: DeviceSplit,
        features: bool = False,
        negatives: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.network = copy.deepcopy(network).to(train.images.device, train.dtype).eval().requires_grad_(False)
        self.features, self.negatives, self.autocast = features, negatives, autocast
        self.logits = None if features or train.inputs.augments else self._all_logits(train)

    @torch.no_grad()
    def _all_logits(self, split: DeviceSplit) -> Tensor:
        return torch.cat([self.network(images).logits for images, _ in split.chunks(EVALUATION_BATCH)])

    @torch.no_grad()
    def __call__(self, index: Tensor, images: Tensor) -> Outputs:
        """Outputs [S, B, ...] for images [S, B, C, H, W], which stand at `index` [S, B] of the training split."""
        if self.logits is not None:
            return Outputs(self.logits[index], {})
        outputs = passed(self._look, images.flatten(0, 1), self.autocast)
        return outputs.map(lambda t: t.unflatten(0, index.shape))

    def _look(self, images: Tensor) -> Outputs:
        logits, features = self.network(images)
        return Outputs(logits, features if self.features else {})


class SGD:
    """g = grad + weight_decay w;  v = momentum v + g, from v = 0;  w = w - lr v: as torch.optim.SGD.

    That one imports a compiler (2 s a process); here the learning rate is a tensor, and the state plain to see.
    """

    def __init__(self, params: Sequence[Tensor], recipe: Recipe) -> None:
        self.params = list(params)
        self.velocity = [torch.zeros_like(param.detach()) for param in params]
        self.lr = torch.tensor(recipe.lr, dtype=params[0].dtype, device=params[0].device)
        self.momentum, self.weight_decay = recipe.momentum, recipe.weight_decay

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor]) -> None:
        decayed = torch._foreach_add(list(grads), self.params, alpha=self.weight_decay)
        torch._foreach_mul_(self.velocity, self.momentum)
        torch._foreach_add_(self.velocity, decayed)
        torch._foreach_sub_(self.params, torch._foreach_mul(self.velocity, self.lr))


class Trainer:
    """The optimisation step of all seeds: a batch in, one SGD update of every student, its terms out.

    loss: from a Batch of one seed to its terms. features: whether it uses them, or the logits alone. layers: the
    method's own layers, one module a seed, trained along. autocast: the type of the networks' forward and backward
    passes; weights, losses and measurements keep `dtype`.
    """

    def __init__(
        self,
        students: Sequence[nn.Module],
        loss: Loss,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        folded: bool = True,
        features: bool = False,
        layers: Sequence[nn.Module] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.autocast = autocast
        self.loss, self.epoch = loss, torch.ones((), device=device, dtype=dtype)
        self.students = Ensemble(students, device, dtype, folded, features)
        self.layers = copy.deepcopy(layers[0]) if layers else None
        self.layer_params, self.layer_buffers = stack(layers, device, dtype) if layers else ({}, {})
        # x and x' share a forward pass where no buffer (batch norm's statistics, dropout's noise) tells them apart.
        # Worth it where kernels are small, as folding is.
        self.joint = folded and not self.students.buffers
        self.optimiser = SGD([*self.students.params.values(), *self.layer_params.values()], recipe)

    def begin_epoch(self, epoch: int, lr: float) -> None:
        self.epoch.fill_(epoch)
        self.optimiser.lr.fill_(lr)

    def step(self, images: Tensor, labels: Tensor, negatives: Tensor | None = None, **teacher: Outputs) -> Terms:
        """One update. images, negatives: [S, B, C, H, W]; labels: [S, B]; `teacher`, `teacher_negative`: [S, B, ...].

        Returns the unweighted terms before the update by name, and their weighted sum as "loss": [S] each.
        """
        student, negative = self._outputs(images, negatives)
        seen: dict[str, Any] = {"labels": labels, "student": student, **teacher}
        seen |= {} if negative is None else {"negative": negative}
        terms: Terms = torch.vmap(self._terms)(seen, self.layer_params, self.layer_buffers)
        self.optimiser.step(torch.autograd.grad(terms["loss"].sum(), self.optimiser.params))
        return {name: value.detach() for name, value in terms.items()}

    def _outputs(self, images: Tensor, negatives: Tensor | None) -> tuple[Outputs, Outputs | None]:
        look = partial(passed, self.students, autocast=self.autocast)
        if negatives is None:
            return look(images), None
        if not self.joint:
            return look(images), look(negatives)
        both, size = look(torch.cat([images, negatives], dim=1)), images.shape[1]
        return both.map(lambda t: t[:, :size]), both.map(lambda t: t[:, size:])

    def _terms(self, seen: dict[str, Any], layer_params: State, layer_buffers: State) -> Terms:
        """Of one seed."""
        layers = self.layers and partial(functional_call, self.layers, (layer_params, layer_buffers))
        terms = self.loss(Batch(**seen, epoch=self.epoch, layers=layers))
        return {"loss": total(terms), **{name: term.value for name, term in terms.items()}}

    def tensors(self) -> dict[str, Tensor]:
        """All that changes in training, by name: parameters, buffers and velocities, as they are, not copies."""
        params = self.students.params | {f"layers/{name}": param for name, param in self.layer_params.items()}
        state = {f"param/{name}": param.detach() for name, param in params.items()}
        state |= {f"buffer/{name}": buffer for name, buffer in self.students.buffers.items()}
        state |= {f"buffer/layers/{name}": buffer for name, buffer in self.layer_buffers.items()}
        state |= {f"velocity/{name}": v for name, v in zip(params, self.optimiser.velocity, strict=True)}
        return state


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


def update(trainer: Trainer, train: DeviceSplit, teacher: Teacher | None, batch: Plan) -> Terms:
    """All of a step that the device does, from the indices of its images on."""
    views = train.take(batch)
    index, images = batch.index[:, 0], views[:, 0]
    guide = {"teacher": teacher(index, images)} if teacher else {}
    if teacher and teacher.negatives:
        guide["teacher_negative"] = teacher(batch.index[:, 1], views[:, 1])
    negatives = views[:, 1] if views.shape[1] > 1 else None
    return trainer.step(images, train.labels[index], negatives, **guide)


def _train_epoch(step: Callable[[Plan], Terms], plan: Plan, batch_size: int, bar: Any) -> Terms:
    """One pass over the training split; the terms of every step, [steps, S] each, without waiting for the device."""
    rows = []
    for batch in plan.batches(batch_size):
        rows.append(step(batch))
        bar.update()
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def predictions(students: Ensemble, split: DeviceSplit) -> Tensor:
    """Logits [S, N, classes] of every seed on a whole split, in eval mode."""
    return torch.cat([students.predict(images) for images, _ in split.chunks(EVALUATION_BATCH)], dim=1)


def accuracy(students: Ensemble, split: DeviceSplit) -> list[float]:
    """Of every seed on a whole split, in [0, 1]."""
    correct = torch.stack([(students.predict(x).argmax(2) == y).sum(1) for x, y in split.chunks(EVALUATION_BATCH)])
    return (correct.sum(0).double() / len(split)).tolist()


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
