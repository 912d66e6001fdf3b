"""One optimisation step of several seeds: from the indices of a batch to the update of every student."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tripletkd.data.batches import DeviceData, DeviceSplit, Drawing, Inputs, Plan, Sampler
from tripletkd.errors import UserError
from tripletkd.training.compute import Compute
from tripletkd.training.mixup import mixed, shares
from tripletkd.training.optim import Optimizer, Recipe
from tripletkd.training.stacked_seeds import Ensemble, State, stack
from tripletkd.types import Batch, Outputs, Term, total

EVALUATION_BATCH = 500

Terms = dict[str, Tensor]  # by name, a value for each seed
Loss = Callable[[Batch], dict[str, Term]]


def forward_autocast(network: Callable[[Tensor], Outputs], images: Tensor, dtype: torch.dtype | None) -> Outputs:
    """Compute a network's outputs in the images' type; inside, in `dtype` what PyTorch deems safe to compute in it."""
    if dtype is None:
        return network(images)
    with torch.autocast(images.device.type, dtype, cache_enabled=False):  # a cache would hold a graph's memory
        outputs = network(images)
    return outputs.map(lambda t: t.to(images.dtype))


class Teacher:
    """Holds a frozen network in eval mode, and what it says of a data set."""

    def __init__(self, network: nn.Module, data: DeviceData) -> None:
        """Copy the network to the device of the data."""
        self.network = copy.deepcopy(network).to(data.train.device, data.train.dtype)
        self.network.eval().requires_grad_(False)
        self.data = data

    @cached_property
    def train_logits(self) -> Tensor:
        """t(x) of the training split, not augmented: [N, classes]."""
        return predict(self.network, self.data.train)

    @cached_property
    def test_logits(self) -> Tensor:
        """t(x) of the test split: [N, classes]."""
        return predict(self.network, self.data.test)

    @property
    def test_accuracy(self) -> float:
        """Compute the share of the test split that it classifies as labelled."""
        return accuracy(self.test_logits, self.data.test.labels).item()


@torch.no_grad()
def predict(network: nn.Module, split: DeviceSplit) -> Tensor:
    """Compute a network's logits [N, classes] of a whole split in eval mode; the network itself is left as it was."""
    frozen = copy.deepcopy(network).to(split.device, split.dtype).eval()
    return torch.cat([frozen(images).logits for images, _ in split.chunks(EVALUATION_BATCH)])


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the share of images whose class is predicted, [...] in float64: logits [..., N, classes], labels [N]."""
    return (logits.argmax(-1) == labels).double().mean(-1)


@dataclass(frozen=True)
class Objective:
    """Says what a student is trained toward: a loss, and what it uses beside the student's logits for x."""

    loss: Loss
    needs: frozenset[str] = frozenset()  # of "teacher", "negative", "teacher_negative", "features", "index"
    teacher: Teacher | None = None
    adapters: Sequence[nn.Module] | None = None  # one a seed, trained with the student and dropped afterwards
    draw: Callable[[Drawing], Tensor] | None = None  # what the method draws for a batch beside
    method: str = "the method"  # whose loss it is, for messages

    @property
    def is_of_logits(self) -> bool:
        """Tell whether the loss is a function of logits and labels alone."""
        return not self.needs & {"features", "index"} and self.adapters is None and self.draw is None

    @property
    def draws_negatives(self) -> bool:
        """Tell whether an image x' is drawn for each x: for the student, the teacher, or both."""
        return not self.needs.isdisjoint({"negative", "teacher_negative"})


class Trainer:
    """Holds everything that a step of training changes or reads, for all seeds of a group at once."""

    def __init__(
        self,
        students: dict[int, nn.Module],
        objective: Objective,
        recipe: Recipe,
        data: DeviceData,
        compute: Compute,
    ) -> None:
        """Copy the students, by seed, to the device and make their optimizer.

        Raises:
            UserError: if the last batch of an epoch is too small for batch norm.
        """
        self.seeds, self.objective, self.recipe = list(students), objective, recipe
        self.data, self.compute = data, compute
        networks, adapters = list(students.values()), objective.adapters
        self.students = Ensemble(networks, compute, features="features" in objective.needs)
        self.adapters = copy.deepcopy(adapters[0]) if adapters else None
        self.adapter_params, self.adapter_buffers = stack(adapters, compute) if adapters else ({}, {})
        labels, inputs = data.dataset.train.labels, data.train.inputs
        self.sampler = Sampler(labels, inputs, objective.draws_negatives, objective.draw)
        self.epoch = torch.ones((), device=compute.device, dtype=compute.dtype)
        # x and x' share a forward pass where no buffer (batch norm's statistics, dropout's noise) tells them apart.
        # Worth it where kernels are small, as fusing is.
        self.joint = compute.fuse_seeds and not self.students.buffers
        trained = [*self.students.params.values(), *self.adapter_params.values()]
        self.optimizer = Optimizer(recipe.optimizer, trained, self.students.linear())
        self._check_last_batch()

    def _check_last_batch(self) -> None:
        modules = [*self.students.single.modules(), *(self.adapters.modules() if self.adapters else [])]
        images, size = len(self.data.train), self.recipe.batch_size
        if (images % size == 1 or size == 1) and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules):
            raise UserError(
                f"recipe.batch_size: found {size}, which leaves a batch of one of {images} images, and batch norm "
                "needs two; expected another"
            )

    def begin_epoch(self, epoch: int) -> None:
        """Set what changes from epoch to epoch, in place: a CUDA graph has recorded where it lies."""
        self.epoch.fill_(epoch)
        self.optimizer.lr.fill_(self.recipe.lr_at(epoch))

    def plan(self, epoch: int) -> Plan:
        """Draw what all seeds do in an epoch."""
        return Plan.stack([self.sampler.draw(seed, epoch) for seed in self.seeds])

    def step(self, batch: Plan) -> Terms:
        """Update every student once.

        Args:
            batch: the indices [S, views, B] of its images, and their augmentation.

        Returns:
            The unweighted terms before the update by name, and their weighted sum as "loss": [S] each.
        """
        train, needs = self.data.train, self.objective.needs
        views = train.take(batch)
        index, images = batch.index[:, 0], views[:, 0]
        seen: dict[str, Any] = {"labels": train.labels[index]}
        if self.recipe.mixes or self.recipe.label_smoothing:
            classes = len(self.data.dataset.classes)
            seen["labels"] = shares(seen["labels"], classes, self.recipe.label_smoothing, self.compute.dtype)
        if self.recipe.mixes:
            assert batch.drawn is not None
            images, seen["labels"] = mixed(images, seen["labels"], batch.drawn)
        seen["student"], negative = self._outputs(images, views[:, 1] if "negative" in needs else None)
        if negative is not None:
            seen["negative"] = negative
        if "teacher" in needs:
            seen["teacher"] = self._ask_teacher(index, images)
        if "teacher_negative" in needs:
            seen["teacher_negative"] = self._ask_teacher(batch.index[:, 1], views[:, 1])
        if "index" in needs:
            seen["index"] = index
        if batch.drawn is not None and not self.recipe.mixes:
            seen["drawn"] = batch.drawn
        terms: Terms
        terms, remembered = torch.vmap(self._terms)(seen, self.adapter_params, self.adapter_buffers)
        self.optimizer.step(torch.autograd.grad(terms["loss"].sum(), self.optimizer.params))
        for name, buffer in self.adapter_buffers.items():  # only now: the gradient is of what was there before
            buffer.copy_(remembered[name].detach())
        return {name: value.detach() for name, value in terms.items()}

    def _outputs(self, images: Tensor, negatives: Tensor | None) -> tuple[Outputs, Outputs | None]:
        """s(x), and s(x') where there are negatives; both [S, B, ...] for images [S, B, C, H, W]."""
        forward = partial(forward_autocast, self.students, dtype=self.compute.autocast_dtype)
        if negatives is None:
            return forward(images), None
        if not self.joint:
            return forward(images), forward(negatives)
        both, size = forward(torch.cat([images, negatives], dim=1)), images.shape[1]
        return both.map(lambda t: t[:, :size]), both.map(lambda t: t[:, size:])

    @torch.no_grad()
    def _ask_teacher(self, index: Tensor, images: Tensor) -> Outputs:
        """t(x) [S, B, ...] for images [S, B, C, H, W], which stand at `index` [S, B] of the training split.

        Where nothing is augmented and no features are used, its logits are computed once for all epochs.
        """
        teacher, features = self.objective.teacher, "features" in self.objective.needs
        assert teacher is not None
        if not features and not self.data.train.inputs.augments and not self.recipe.mixes:
            return Outputs(teacher.train_logits[index], {})

        def network(images: Tensor) -> Outputs:
            outputs: Outputs = teacher.network(images)
            return outputs if features else Outputs(outputs.logits, {})

        outputs = forward_autocast(network, images.flatten(0, 1), self.compute.autocast_dtype)
        return outputs.map(lambda t: t.unflatten(0, index.shape))

    def _terms(self, seen: dict[str, Any], adapter_params: State, adapter_buffers: State) -> tuple[Terms, State]:
        """Compute the terms of one seed, and what the adapters' buffers are to be afterwards."""
        state = adapter_params | adapter_buffers  # in which functional_call leaves what `forward` assigns to a buffer
        if self.adapters is not None:
            seen = seen | {"adapters": partial(functional_call, self.adapters, state)}
        terms = self.objective.loss(Batch(**seen, epoch=self.epoch))
        values = {"loss": total(terms, self.objective.method), **{name: term.value for name, term in terms.items()}}
        return values, {name: state[name] for name in adapter_buffers}

    @torch.no_grad()
    def evaluated_loss(self, logits: Tensor, split: DeviceSplit) -> Tensor:
        """Compute the loss in eval mode over the training or the test split, of an objective that `is_of_logits`.

        Each image has one x', drawn from the images of other classes, the same for all students and epochs.

        Args:
            logits: s(x), [S, N, classes], in the split's order.
            split: whose images they are of.

        Returns:
            The weighted sum of the terms of each seed, [S].
        """
        drawn = Sampler(split.split.labels, Inputs(), negatives=True).draw(seed=0, epoch=0).index
        index, other = drawn.to(split.device)
        teacher, seen = self.objective.teacher, dict[str, Any]()
        if teacher and self.objective.needs & {"teacher", "teacher_negative"}:
            said = teacher.train_logits if split is self.data.train else teacher.test_logits
            seen = {"teacher": Outputs(said[index], {}), "teacher_negative": Outputs(said[other], {})}

        def of_seed(student: Tensor) -> Tensor:
            outputs: dict[str, Any] = {"student": Outputs(student[index], {}), "negative": Outputs(student[other], {})}
            batch = Batch(split.labels[index], **outputs, **seen, epoch=self.epoch)
            return total(self.objective.loss(batch), self.objective.method)

        return torch.stack([of_seed(student) for student in logits])

    def tensors(self) -> dict[str, Tensor]:
        """Name all that changes in training: parameters, buffers, the optimizer's state; as they are, not copies."""
        groups = {
            "param": {name: param.detach() for name, param in self.students.params.items()},
            "buffer": self.students.buffers,
            "adapter_param": {name: param.detach() for name, param in self.adapter_params.items()},
            "adapter_buffer": self.adapter_buffers,
            "optimizer": self.optimizer.state(),
        }
        return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}

    def predictions(self, split: DeviceSplit) -> Tensor:
        """Compute the logits [S, N, classes] of every student on a whole split, in eval mode."""
        return torch.cat([self.students.predict(images) for images, _ in split.chunks(EVALUATION_BATCH)], dim=1)
