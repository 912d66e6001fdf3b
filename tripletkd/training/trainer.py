"""One optimisation step of all seeds, from the indices of a batch to the update."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tripletkd.data.batches import DeviceSplit, Plan
from tripletkd.training.cuda_graph import Terms
from tripletkd.training.ensemble import Ensemble, State, stack
from tripletkd.training.optim import SGD, Recipe
from tripletkd.types import Batch, Outputs, Term, total

EVALUATION_BATCH = 500


Loss = Callable[[Batch], dict[str, Term]]


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


def update(trainer: Trainer, train: DeviceSplit, teacher: Teacher | None, batch: Plan) -> Terms:
    """All of a step that the device does, from the indices of its images on."""
    views = train.take(batch)
    index, images = batch.index[:, 0], views[:, 0]
    guide = {"teacher": teacher(index, images)} if teacher else {}
    if teacher and teacher.negatives:
        guide["teacher_negative"] = teacher(batch.index[:, 1], views[:, 1])
    negatives = views[:, 1] if views.shape[1] > 1 else None
    return trainer.step(images, train.labels[index], negatives, **guide)


def predictions(students: Ensemble, split: DeviceSplit) -> Tensor:
    """Logits [S, N, classes] of every seed on a whole split, in eval mode."""
    return torch.cat([students.predict(images) for images, _ in split.chunks(EVALUATION_BATCH)], dim=1)


def accuracy(students: Ensemble, split: DeviceSplit) -> list[float]:
    """Of every seed on a whole split, in [0, 1]."""
    correct = torch.stack([(students.predict(x).argmax(2) == y).sum(1) for x, y in split.chunks(EVALUATION_BATCH)])
    return (correct.sum(0).double() / len(split)).tolist()
