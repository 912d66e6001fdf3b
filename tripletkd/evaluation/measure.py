"""Measure a trained run: the figures of each seed on whole splits in eval mode, and what its network costs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from tripletkd import models
from tripletkd.errors import UserError
from tripletkd.evaluation import metrics
from tripletkd.evaluation.measurement import Measurement, SeedMeasurement, are_close
from tripletkd.files import Json
from tripletkd.training.trainer import accuracy, predict

if TYPE_CHECKING:
    from tripletkd.data.batches import DeviceData
    from tripletkd.training.run_record import TrainedRun

MAPPED_A_CLASS = 20  # images of each class in the output map


def sound(run: "TrainedRun", data: "DeviceData") -> "TrainedRun":
    """Return a run in which a seed has failed, too, whose network's outputs on the test split are not finite.

    Its weights may be finite, and batch norm's statistics or the outputs not: argmax of NaN is the first class.
    """
    logits = {seed: predict(network, data.test) for seed, network in run.networks.items()}
    networks = {seed: network for seed, network in run.networks.items() if logits[seed].isfinite().all()}
    records = [
        replace(record, failed="its outputs are not finite", weights_sha256=None)
        if record.seed in logits.keys() - networks.keys()
        else record
        for record in run.records
    ]
    return replace(run, records=records, networks=networks)


def measure(run: "TrainedRun", data: "DeviceData", teacher_logits: Tensor | None) -> Measurement:
    """Measure all that is reported of a run.

    Args:
        run: its records, its networks and its history.
        data: the images that it was trained and is tested on.
        teacher_logits: t(x) of the test split, [N, classes]; None for the teacher itself.

    Raises:
        UserError: if the weights of a seed do not reach the accuracy at which its history ends: then the two do not
            belong together.
    """
    record = run.records[0]  # what is read of it, the records of all seeds share
    example = models.build(record.identity.network, record.image_shape, record.classes, seed=0)
    weights = models.weights(next(iter(run.networks.values()), example))
    seeds = []
    measured = tqdm(run.networks.items(), f"measuring {record.identity}", unit="seed", disable=None, leave=False)
    for seed, network in measured:
        tested = [row for row in run.history if row["seed"] == seed and "test_accuracy" in row]
        seeds.append(measure_seed(seed, network, tested, data, teacher_logits))
    return Measurement(
        identity=record.identity,
        parameters=models.parameter_count(example),
        multiply_adds=multiply_adds(example, record.image_shape),
        weights_bytes=sum(tensor.nbytes for tensor in weights.values()),
        weights_sha256={r.seed: r.weights_sha256 for r in run.records if r.weights_sha256 is not None},
        code={
            code: tuple(r.seed for r in run.records if r.code == code) for code in sorted({r.code for r in run.records})
        },
        failed=run.failed,
        test_images=len(data.test.labels),
        seeds=tuple(seeds),
        class_names=tuple(data.dataset.classes) if record.identity.is_teacher else None,
    )


def measure_seed(
    seed: int,
    network: nn.Module,
    tested: Sequence[Mapping[str, float]],
    data: "DeviceData",
    teacher_logits: Tensor | None,
) -> SeedMeasurement:
    """Measure one seed's network.

    Args:
        seed: its seed.
        network: with the weights of the last epoch.
        tested: the rows of its history with an accuracy on the test split.
        data: the images.
        teacher_logits: t(x) of the test split, [N, classes]; None for the teacher itself.

    Raises:
        UserError: if the network's accuracy is not the last row's.
    """
    logits, labels = predict(network, data.test), data.test.labels
    train_logits, train_labels = predict(network, data.train), data.train.labels
    test_accuracy = accuracy(logits, labels).item()
    if not are_close(tested[-1]["test_accuracy"], test_accuracy, len(labels)):
        raise UserError(
            f"seed {seed}: its weights reach {test_accuracy:.4f} on the test split, its history ends with "
            f"{tested[-1]['test_accuracy']:.4f}; they are not of one run: train again"
        )
    best = max(tested, key=lambda row: row["test_accuracy"])
    calibration_error, calibration = metrics.calibration(logits, labels)
    return SeedMeasurement(
        seed=seed,
        train_accuracy=accuracy(train_logits, train_labels).item(),
        train_cross_entropy=metrics.cross_entropy(train_logits, train_labels),
        test_accuracy=test_accuracy,
        test_correct=metrics.packed_hits(logits, labels),
        test_cross_entropy=metrics.cross_entropy(logits, labels),
        test_calibration_error=calibration_error,
        test_calibration=calibration,
        test_accuracy_by_class=metrics.accuracy_by_class(logits, labels),
        test_top5_accuracy=metrics.top5_accuracy(logits, labels),
        **({} if teacher_logits is None else metrics.against_teacher(logits, teacher_logits, labels)),
        best_test_accuracy=best["test_accuracy"],
        best_epoch=int(best["epoch"]),
    )


def output_map(
    run: "TrainedRun", teacher_logits: Tensor, data: "DeviceData", initial: Mapping[str, Tensor] | None = None
) -> list[dict[str, float]]:
    """Project the first test images of every class to a plane, by the teacher's and a student's outputs.

    The plane is spanned by the two main directions of the teacher's logits on the test split (PCA). The student is that
    of the first seed that did not fail, before training and after.

    Args:
        run: the student's run.
        teacher_logits: t(x) of the test split, [N, classes].
        data: the images.
        initial: weights that the student starts from, in the place of those that its seed draws.

    Returns:
        A row an image: its label, and the coordinates teacher_x, teacher_y, before_x, ... after_y to four digits; no
        row if every seed failed.
    """
    if not run.networks:
        return []
    seed, student = next(iter(run.networks.items()))
    record, labels = run.records[0], data.test.labels
    untrained = models.build(record.identity.network, record.image_shape, record.classes, seed)
    untrained.load_state_dict({**untrained.state_dict(), **(initial or {})})
    logits = {
        "teacher": teacher_logits.double(),
        "before": predict(untrained, data.test).double(),
        "after": predict(student, data.test).double(),
    }
    centre, directions = main_plane(logits["teacher"])
    shown = [i for label in range(record.classes) for i in (labels == label).nonzero()[:MAPPED_A_CLASS, 0].tolist()]
    columns = {"label": labels[shown].tolist()}
    for name, values in logits.items():
        for axis, column in zip("xy", ((values[shown] - centre) @ directions.mT).mT.tolist(), strict=True):
            columns[f"{name}_{axis}"] = [float(f"{value:.4g}") for value in column]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def main_plane(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean [classes] and the two main directions [2, classes] of logits [N, classes]."""
    centre = logits.mean(0)
    _, _, directions = torch.linalg.svd(logits - centre, full_matrices=False)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()  # which the decomposition leaves open, and machines choose differently
    return centre, directions[:2]


def multiply_adds(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Count the multiply-adds in one forward pass of one image [H, W, C]: half of what PyTorch's flop counter finds.

    Where every product is that of a Conv2d or a Linear, hooks count them: the counter imports a compiler (1.5 s a
    process).
    """
    height, width, channels = image_shape
    image = torch.zeros(1, channels, height, width, dtype=next(network.parameters()).dtype)
    network.cpu().eval()
    counts = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        weight = layer.get_parameter("weight")  # [outputs, ...]: a product each for every element of an output's place
        counts.append(output.numel() * weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad(), _Products() as products:
        network(image)
    for hook in hooks:
        hook.remove()
    return sum(counts) if products.count == len(counts) else _counted(network, image)


class _Products(TorchFunctionMode):
    """Counts the calls of functions that multiply matrices or convolve."""

    NAMES = re.compile(
        r"_*(r?matmul|(add)?(mm|mv)|(badd)?bmm|dot|einsum|tensordot|bilinear|linear|conv.*|.*attention.*)_*"
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: Json | None = None
    ) -> object:
        """Count one more where it is one."""
        self.count += bool(self.NAMES.fullmatch(func.__name__))
        return func(*args, **(kwargs or {}))


def _counted(network: nn.Module, image: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operation is unknown to the counter
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2
