"""One training in several processes, as torchrun starts them: each passes its part of every batch through the networks.

The outputs are then gathered, and every process computes the loss of the whole batch, so that a method need not know.
Batch norm takes the statistics of the whole batch, dropout the noise of the whole batch, and gradients are summed. The
results are those of one process but for the last bits. As the device does, the number of processes therefore counts
neither in a run's identity nor in its code.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tripletkd.data.batches import DeviceSplit, Plan
from tripletkd.errors import Paused, UserError
from tripletkd.models.dropout import Dropout
from tripletkd.training.checkpoint import Checkpoint, Progress
from tripletkd.training.compute import Compute
from tripletkd.training.optim import Optimizer
from tripletkd.training.trainer import EVALUATION_BATCH, Terms, Trainer
from tripletkd.types import Outputs

T = TypeVar("T")


def on_own_device(compute: Compute) -> Compute:
    """Choose the GPU of this process, which torchrun numbers, or the processor. Steps are not recorded as CUDA graphs.

    Raises:
        UserError: if there are more processes than GPUs.
    """
    if compute.device.type == "cpu":
        return compute
    here, found = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > found:
        raise UserError(f"--nproc-per-node: found {here}, more than the {found} GPUs here; expected a GPU each")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return replace(compute, device=device, cuda_graph=False)


class Processes:
    """The processes of one training, as one of them sees them.

    Attributes:
        rank: The number of this process; the first, 0, decides and writes.
        count: Their number.
        batch: The images of the batch at work, those of all processes.
    """

    def __init__(self) -> None:
        self.rank, self.count, self.batch = dist.get_rank(), dist.get_world_size(), 0

    def part(self, size: int) -> slice:
        """Say which of so many images this process computes."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def gather(self, own: Tensor) -> Tensor:
        """Put the parts of all processes together: [S, B, ...]. A gradient goes to this process's own part."""
        at = self.part(self.batch)
        whole = own.new_zeros(own.shape[0], self.batch, *own.shape[2:])
        whole[:, at] = own.detach()
        dist.all_reduce(whole)
        return torch.cat([whole[:, : at.start], own, whole[:, at.stop :]], dim=1)

    def widen(self, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Give a layer that draws noise the whole batch, with zeros in the place of the others' parts."""
        [x], at = inputs, self.part(self.batch)
        around = [0, 0] * (x.dim() - 1) + [at.start, self.batch - at.stop]
        return (F.pad(x, around),) if layer.training else None

    def narrow(self, layer: nn.Module, _: tuple[Tensor], output: Tensor) -> Tensor | None:
        """Keep of such a layer's output the own part."""
        return output[self.part(self.batch)] if layer.training else None

    def agreed(self, decide: Callable[[], T]) -> T:
        """Return what the first process decides."""
        found: list[Any] = [None if self.rank else decide()]
        dist.broadcast_object_list(found, device=torch.device("cpu"))
        decided: T = found[0]
        return decided


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the other processes of this training.

    Raises:
        UserError: if one of them has ended.
        Paused: if all of them were stopped at a checkpoint.
    """
    on_gpu = device.type == "cuda"
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    try:
        yield Processes()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            "another process of this training has ended, and so does this one; the same command goes on from the last "
            "checkpoint"
        ) from error
    except Paused:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


class _Normalized(torch.autograd.Function):
    """Normalizes a part of a batch by the mean and the variance of the whole one.

    y = (x - m) / sqrt(v + eps) * weight + bias; the gradient with respect to x is
    weight / sqrt(v + eps) * (g - mean g - n mean (g n)), n the normalized x, means over all processes too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        """Return y, and the mean, the variance and the number of the values of each channel."""
        ctx.dims, ctx.eps = [0, *range(2, x.dim())], eps
        variance, mean = torch.var_mean(x.to(weight.dtype), ctx.dims, correction=0)
        own = torch.stack([mean, variance, torch.full_like(mean, x.numel() / x.shape[1])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances, counts = torch.stack(parts, dim=1)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to x, weight and bias, the last two of the part alone."""
        x, weight, mean, variance, count = ctx.saved_tensors
        shape = [1, -1, *(1 for _ in ctx.dims[1:])]
        scale, grad = torch.rsqrt(variance + ctx.eps), grads[0].to(weight.dtype)
        normal = (x.to(weight.dtype) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([grad.sum(ctx.dims), (grad * normal).sum(ctx.dims)])
        whole = own.clone()
        dist.all_reduce(whole)
        of_grad, of_both = (m.view(shape) for m in whole / count)
        of_x = (grad - of_grad - normal * of_both) * (weight * scale).view(shape)
        return of_x.to(x.dtype), own[1], own[0], None


class WholeBatchNorm(_BatchNorm):
    """Takes in training the statistics of the whole batch, as torch.nn.SyncBatchNorm does, which needs CUDA."""

    def _check_input_dim(self, _: Tensor) -> None:
        """Accept images and vectors: the layer whose place this takes was made for what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, [B, C, ...]."""
        if not self.training:
            return super().forward(x)
        channels = x.new_ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        weight, bias = (self.weight, self.bias) if self.affine else (channels, torch.zeros_like(channels))
        y, mean, variance, count = _Normalized.apply(x, weight, bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
        normalized: Tensor = y
        return normalized


def _divide(network: nn.Module, processes: Processes, compute: Compute) -> None:
    """Change the layers that look at the whole batch; an ensemble holds the numbers of all layers itself."""
    for name, old in list(network.named_modules()):
        if isinstance(old, Dropout):
            old.register_forward_pre_hook(processes.widen)
            old.register_forward_hook(processes.narrow)
        elif type(old) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            new = WholeBatchNorm(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
            network.set_submodule(name, new.to(device=compute.device, dtype=compute.dtype))
        elif isinstance(old, _BatchNorm):
            raise UserError(
                f"torchrun: the network's {name} is a {type(old).__name__}, a batch norm whose statistics are not "
                "summed over processes; train this network in one process"
            )


class Part(DeviceSplit):
    """Makes inputs of this process's part of each batch, and of its part of the split."""

    processes: Processes

    @staticmethod
    def of(split: DeviceSplit, processes: Processes) -> "Part":
        """Return a part of a split of any kind; the images are shared."""
        made: Any = copy.copy(split)
        made.__class__ = type("Part", (Part, type(split)), {})
        made.processes = processes
        part: Part = made
        return part

    def take(self, plan: Plan) -> Tensor:
        """Take this process's part of the images of a whole batch's plan."""
        at = self.processes.part(plan.index.shape[-1])
        own = replace(plan, images=None, drawn=None).map(lambda t: t[..., at])
        return super().take(replace(own, images=plan.images))

    def _gathered(self, places: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        part = self.processes.part
        return super()._gathered(at[..., part(at.shape[-1])] if isinstance(at, Tensor) else at for at in places)

    def own_chunks(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the places and the inputs of this process's part of the split, not augmented, for evaluation."""
        at, own = self.processes.part(len(self)), copy.copy(self)
        own.split, own.labels = self.split.select(np.arange(at.start, at.stop)), self.labels[at]
        own.images = None if self.images is None else self.images[at]
        begin = at.start
        for images, labels in own.chunks(size):
            yield slice(begin, begin + len(labels)), images
            begin += len(labels)


class _SummingOptimizer(Optimizer):
    """Updates by the sum of all processes' gradients."""

    divided = 0  # how many parameters, the first ones, have a gradient of the own part; the others have the whole one

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor]) -> None:
        """Update the parameters, to the same bits in every process."""
        counts = [i < self.divided or dist.get_rank() == 0 for i in range(len(grads))]
        flat = torch.cat([(g if c else torch.zeros_like(g)).reshape(-1) for g, c in zip(grads, counts, strict=True)])
        dist.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in grads])
        super().step([part.view(grad.shape) for part, grad in zip(parts, grads, strict=True)])


class ParallelTrainer(Trainer):
    """A trainer that does its part of each step."""

    def __init__(self, trainer: Trainer, processes: Processes) -> None:
        """Take over a trainer that has done no step yet.

        Raises:
            UserError: if the last batch of an epoch has fewer images than there are processes, images are mixed, or a
            batch norm is not one of PyTorch's.
        """
        vars(self).update(vars(trainer))
        self.processes = processes
        if self.recipe.mixes:
            raise UserError(
                "recipe: found mixup or cutmix, which mix an image with one that another process may have; expected "
                "neither, or one process"
            )
        size, images = self.recipe.batch_size, len(self.data.train)
        if (last := images % size or size) < processes.count:
            raise UserError(
                f"recipe.batch_size: found {size}, which leaves a batch of {last} of {images} images for "
                f"{processes.count} processes; expected another, or fewer processes"
            )
        train, test = (Part.of(split, processes) for split in (self.data.train, self.data.test))
        self.data = replace(self.data, train=train, test=test)
        for network in {self.students.single, self.students.template}:
            _divide(network, processes, self.compute)
        params = self.optimizer.params
        self.optimizer = _SummingOptimizer(self.recipe.optimizer, params, self.students.linear())
        self.optimizer.divided = len(self.students.params)

    def step(self, batch: Plan) -> Terms:
        """Update every student once, by the whole batch's plan, and return the whole batch's terms."""
        self.processes.batch = batch.index.shape[-1]
        return super().step(batch)

    def _outputs(self, images: Tensor, negatives: Tensor | None) -> tuple[Outputs, Outputs | None]:
        own, negative = super()._outputs(images, negatives)
        return own.map(self.processes.gather), negative and negative.map(self.processes.gather)

    def _ask_teacher(self, index: Tensor, images: Tensor) -> Outputs:
        own = index[:, self.processes.part(index.shape[1])]
        return super()._ask_teacher(own, images).map(self.processes.gather)

    def predictions(self, split: DeviceSplit) -> Tensor:
        """Compute the logits [S, N, classes] of every student on a whole split, in eval mode, some in each process."""
        assert isinstance(split, Part)
        shape = len(self.seeds), len(split), len(self.data.dataset.classes)
        logits = torch.zeros(shape, device=split.device, dtype=split.dtype)
        for at, images in split.own_chunks(EVALUATION_BATCH):
            logits[:, at] = self.students.predict(images)
        dist.all_reduce(logits)
        return logits


class CommonCheckpoint(Checkpoint):
    """A checkpoint that the first process reads and writes. All stop after the same epoch, whichever is told to."""

    def __init__(self, checkpoint: Checkpoint, processes: Processes) -> None:
        """Take over a checkpoint that is not in use yet."""
        vars(self).update(vars(checkpoint))
        self.processes, self.parent = processes, os.getppid()

    def load(self, tensors: Mapping[str, Tensor]) -> Progress:
        """Put everybody's tensors where the file left them, and return what is done."""
        progress = self.processes.agreed(lambda: super(CommonCheckpoint, self).load(tensors))
        for tensor in tensors.values():
            same = tensor.contiguous()
            dist.broadcast(same, 0)
            tensor.copy_(same)
        return progress

    def decide(self) -> tuple[bool, str | None]:
        """Say whether it is time to save by the first process's clock, and why to stop if any process has a reason."""
        due, reason = super().decide()
        if os.getppid() != self.parent:
            reason = reason or "the process that started this one is gone"
        told: list[Any] = [None] * self.processes.count
        dist.all_gather_object(told, (due, reason))
        return told[0][0], next((reason for _, reason in told if reason), None)

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Write the file; no process goes on, or ends, before it is whole."""
        if self.processes.rank == 0:
            super().save(tensors, progress)
        dist.barrier()
