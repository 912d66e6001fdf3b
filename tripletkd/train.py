"""One training loop for the teacher and for every method, all seeds at once."""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from . import Problem
from .data import DeviceSplit, Plan, Sampler
from .ensemble import Ensemble, State, stack
from .methods._terms import Batch, Outputs, Term, total
from .provenance import whole

EVALUATION_BATCH = 500

Loss = Callable[[Batch], dict[str, Term]]


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


class Teacher:
    """A frozen network in eval mode. Where nothing is augmented and no features are used, its logits are computed once."""

    def __init__(self, network: nn.Module, train: DeviceSplit, features: bool) -> None:
        self.network = copy.deepcopy(network).to(train.images.device, train.dtype).eval().requires_grad_(False)
        self.features = features
        self.logits = None if features or train.inputs.augments else self._all_logits(train)

    @torch.no_grad()
    def _all_logits(self, split: DeviceSplit) -> Tensor:
        return torch.cat([self.network(images).logits for images, _ in split.chunks(EVALUATION_BATCH)])

    @torch.no_grad()
    def __call__(self, index: Tensor, images: Tensor) -> Outputs:
        """Outputs with leading dimensions [S, B] for images [S, B, C, H, W], which stand at `index` [S, B] of the split."""
        if self.logits is not None:
            return Outputs(self.logits[index], {})
        logits, features = self.network(images.flatten(0, 1))
        return Outputs(logits, features if self.features else {}).map(lambda t: t.unflatten(0, index.shape))


class Trainer:
    """The optimisation step of all seeds: a batch in, one SGD update of every student, its terms out.

    loss: from a Batch of one seed to its terms. layers: the method's own layers, one module a seed, trained along.
    """

    def __init__(
        self,
        students: Sequence[nn.Module],
        loss: Loss,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        folded: bool = True,
        layers: Sequence[nn.Module] | None = None,
    ) -> None:
        self.loss, self.epoch = loss, torch.ones((), device=device, dtype=dtype)
        self.students = Ensemble(students, device, dtype, folded)
        self.layers = copy.deepcopy(layers[0]) if layers else None
        self.layer_params, self.layer_buffers = stack(layers, device, dtype) if layers else ({}, {})
        # x and x' share a forward pass where no buffer (batch norm's statistics, dropout's noise) tells them apart.
        # Worth it where kernels are small, as folding is.
        self.joint = folded and not self.students.buffers
        self.optimiser = torch.optim.SGD(
            [*self.students.params.values(), *self.layer_params.values()],
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )

    def begin_epoch(self, epoch: int, lr: float) -> None:
        self.epoch.fill_(epoch)
        self.optimiser.param_groups[0]["lr"] = lr

    def step(
        self, images: Tensor, labels: Tensor, negatives: Tensor | None = None, teacher: Outputs | None = None
    ) -> dict[str, Tensor]:
        """One update. images, negatives: [S, B, C, H, W]; labels: [S, B]; teacher: [S, B, ...].

        Returns the unweighted terms before the update by name, and their weighted sum as "loss": [S] each.
        """
        student, negative = self._outputs(images, negatives)
        given = {"labels": labels, "student": student, "negative": negative, "teacher": teacher}
        seen = {name: value for name, value in given.items() if value is not None}
        terms: dict[str, Tensor] = torch.vmap(self._terms)(seen, self.layer_params, self.layer_buffers)
        self.optimiser.zero_grad()
        terms["loss"].sum().backward()
        self.optimiser.step()
        return {name: value.detach() for name, value in terms.items()}

    def _outputs(self, images: Tensor, negatives: Tensor | None) -> tuple[Outputs, Outputs | None]:
        if negatives is None:
            return self.students(images), None
        if not self.joint:
            return self.students(images), self.students(negatives)
        both, size = self.students(torch.cat([images, negatives], dim=1)), images.shape[1]
        return both.map(lambda t: t[:, :size]), both.map(lambda t: t[:, size:])

    def _terms(self, seen: dict[str, Any], layer_params: State, layer_buffers: State) -> dict[str, Tensor]:
        """Of one seed."""
        layers = self.layers and partial(functional_call, self.layers, (layer_params, layer_buffers))
        terms = self.loss(Batch(**seen, epoch=self.epoch, layers=layers))
        return {"loss": total(terms), **{name: term.value for name, term in terms.items()}}

    def tensors(self) -> dict[str, Tensor]:
        """All that changes in training, by name: parameters, buffers and momentum, as they are, not copies."""
        params = self.students.params | {f"layers/{name}": param for name, param in self.layer_params.items()}
        state = {f"param/{name}": param.detach() for name, param in params.items()}
        state |= {f"buffer/{name}": buffer for name, buffer in self.students.buffers.items()}
        state |= {f"buffer/layers/{name}": buffer for name, buffer in self.layer_buffers.items()}
        for name, param in params.items():
            # The first update sets the velocity to the gradient, which is what a velocity of zero gives too.
            velocity = self.optimiser.state[param].setdefault("momentum_buffer", torch.zeros_like(param.detach()))
            state[f"momentum/{name}"] = velocity
        return state


@dataclass
class Progress:
    """What of a training run is done: the last whole epoch, the history so far, and the seeds that failed and why."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """A file from which an interrupted run goes on, to the same bits; only for the same fingerprint of all inputs.

    Written after an epoch once `minutes` have passed since the last time, and when the time limit nears. Since every
    random number is a function of seed, epoch and step, whole epochs need no generator's state.
    """

    path: Path
    fingerprint: str
    minutes: float = 5.0
    saved: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        return time.monotonic() - self.saved >= 60 * self.minutes

    def save(self, trainer: Trainer, progress: Progress) -> None:
        from safetensors.torch import save_file

        state = {"fingerprint": self.fingerprint, **vars(progress)}
        with whole(self.path) as beside:
            save_file({k: v.contiguous() for k, v in trainer.tensors().items()}, beside, {"progress": json.dumps(state)})
        self.saved = time.monotonic()

    def load(self, trainer: Trainer) -> Progress:
        """Put the trainer where the file left it; a new Progress if there is no file, or it belongs to another run."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return Progress()
        try:
            with safe_open(self.path, "pt") as file:
                state = json.loads(file.metadata()["progress"])
                if state.pop("fingerprint") != self.fingerprint:
                    tqdm.write(f"{self.path}: belongs to a run with other inputs; starting anew")
                    return Progress()
                saved = {name: file.get_tensor(name) for name in trainer.tensors()}
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            tqdm.write(f"{self.path}: cannot be read ({error}); starting anew")
            return Progress()
        for name, tensor in trainer.tensors().items():
            tensor.copy_(saved[name])
        state["failed"] = {int(seed): why for seed, why in state["failed"].items()}
        progress = Progress(**state)
        tqdm.write(f"{self.path}: going on after epoch {progress.epoch}")
        return progress

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class Paused(Problem):
    """The time limit was reached; the run goes on from its checkpoint when it is started again."""


@dataclass(frozen=True)
class Fitted:
    """A finished run: the networks of the seeds that did not fail, the history, and why the others failed."""

    networks: dict[int, nn.Module]
    history: list[dict[str, float]]
    failed: dict[int, str]


def fit(
    trainer: Trainer,
    seeds: Sequence[int],
    recipe: Recipe,
    sampler: Sampler,
    train: DeviceSplit,
    test: DeviceSplit,
    *,
    teacher: Teacher | None = None,
    evaluate_every: int = 1,
    checkpoint: Checkpoint | None = None,
    max_minutes: float | None = None,
    description: str = "training",
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> Fitted:
    """Train all seeds to the last epoch. The test split is measured, never used to choose.

    The history has a row for each seed and epoch: the terms (means over the epoch's images, before each update), and
    every `evaluate_every` epochs and at the last one the accuracy on either split, in eval mode over all its images.
    A seed whose loss is not finite fails alone: its rows end before that epoch. Raises Paused at the time limit.
    """
    started = time.monotonic()
    done = checkpoint.load(trainer) if checkpoint else Progress()
    steps = -(-len(train) // recipe.batch_size)
    with tqdm(total=recipe.epochs * steps, initial=done.epoch * steps, desc=description, unit="step", disable=None) as bar:
        while done.epoch < recipe.epochs and len(done.failed) < len(seeds):
            epoch = done.epoch + 1
            trainer.begin_epoch(epoch, recipe.lr_at(epoch))
            terms = _train_epoch(trainer, [sampler.draw(seed, epoch) for seed in seeds], recipe, train, teacher, bar)
            accuracies: dict[str, list[float]] = {}
            if epoch % evaluate_every == 0 or epoch == recipe.epochs:
                accuracies = {f"{name}_accuracy": accuracy(trainer.students, split) for name, split in (("train", train), ("test", test))}
            _record(done, seeds, epoch, recipe, terms, accuracies, len(train))
            bar.set_postfix(_summary(terms, accuracies), refresh=False)
            done.epoch = epoch
            after_epoch(epoch)
            if checkpoint and epoch < recipe.epochs:
                _save_if_due(checkpoint, trainer, done, recipe, started, max_minutes)
    return _finish(trainer, seeds, done)


def _train_epoch(
    trainer: Trainer, plans: list[Plan], recipe: Recipe, train: DeviceSplit, teacher: Teacher | None, bar: Any
) -> dict[str, Tensor]:
    """One pass over the training split; the terms of every step, [steps, S] each, without waiting for the device."""
    rows = []
    for batch in Plan.stack(plans).to(train.images.device).batches(recipe.batch_size):
        views = train.take(batch)
        index, images = batch.index[:, 0], views[:, 0]
        rows.append(
            trainer.step(
                images,
                train.labels[index],
                negatives=views[:, 1] if views.shape[1] > 1 else None,
                teacher=teacher(index, images) if teacher else None,
            )
        )
        bar.update()
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def accuracy(students: Ensemble, split: DeviceSplit) -> list[float]:
    """Of every seed on a whole split, in [0, 1]."""
    correct = torch.stack([(students.predict(x).argmax(2) == y).sum(1) for x, y in split.chunks(EVALUATION_BATCH)])
    return (correct.sum(0).double() / len(split)).tolist()


def _record(
    done: Progress,
    seeds: Sequence[int],
    epoch: int,
    recipe: Recipe,
    terms: dict[str, Tensor],
    accuracies: dict[str, list[float]],
    images: int,
) -> None:
    """Append an epoch's rows to the history; a seed with a term that is not finite fails instead."""
    steps = {name: value.double().cpu() for name, value in terms.items()}
    batch_sizes = torch.full((len(steps["loss"]),), recipe.batch_size, dtype=torch.float64)
    batch_sizes[-1] = images - recipe.batch_size * (len(batch_sizes) - 1)
    for i, seed in enumerate(seeds):
        if seed in done.failed:
            continue
        # The first step with a bad term, and among its terms the summands before their sum.
        bad = [(int((~value[:, i].isfinite()).nonzero()[0]), name == "loss", name) for name, value in steps.items() if not value[:, i].isfinite().all()]
        if bad:
            step, _, name = min(bad)
            done.failed[seed] = f"{name} is {steps[name][step, i].item()} at epoch {epoch}, step {step + 1}"
            tqdm.write(f"seed {seed} failed: {done.failed[seed]}; the other seeds go on")
            continue
        means = {name: float(value[:, i] @ batch_sizes / images) for name, value in steps.items()}
        measured = {name: values[i] for name, values in accuracies.items()}
        done.history.append({"seed": seed, "epoch": epoch, "lr": recipe.lr_at(epoch), **means, **measured})


def _summary(terms: dict[str, Tensor], accuracies: dict[str, list[float]]) -> dict[str, str]:
    """For the progress bar: means over seeds."""
    values = {name: f"{value.nanmean().item():.3f}" for name, value in terms.items()}
    return values | {name.replace("_accuracy", ""): f"{100 * sum(v) / len(v):.1f}%" for name, v in accuracies.items()}


def _save_if_due(
    checkpoint: Checkpoint, trainer: Trainer, done: Progress, recipe: Recipe, started: float, max_minutes: float | None
) -> None:
    elapsed = (time.monotonic() - started) / 60
    out_of_time = max_minutes is not None and elapsed >= max_minutes
    if out_of_time or checkpoint.due():
        checkpoint.save(trainer, done)
    if out_of_time:
        raise Paused(
            f"stopped after {elapsed:.1f} minutes at epoch {done.epoch} of {recipe.epochs}, as asked; "
            f"the same command goes on from {checkpoint.path}"
        )


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
    return Fitted(networks, done.history, done.failed)
