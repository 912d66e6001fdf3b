"""Weights in, measurements out: what is reported of each seed, on whole splits in eval mode."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tripletkd import models
from tripletkd.data.batches import DeviceSplit, Inputs, Sampler
from tripletkd.errors import UserError
from tripletkd.methods.functional import kl_divergence
from tripletkd.tracking.run_record import Record
from tripletkd.training.ensemble import Ensemble
from tripletkd.training.trainer import accuracy, predictions

CALIBRATION_BINS = 15
MAPPED_A_CLASS = 20
TOP_5_FROM = 20  # classes: with fewer, five guesses say little
TOLERANCE = 0.005  # of an accuracy computed in another order or on another machine: a few borderline images


def measure(
    made: Record,
    networks: Mapping[int, nn.Module],
    history: Sequence[Mapping[str, float]],
    train: DeviceSplit,
    test: DeviceSplit,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """All that is reported of one run record: what it is, what its network costs, and the figures of each seed.

    UserError if the weights do not reach the accuracy of the history's last epoch: then the two do not belong together.
    """
    example = models.build(made.network, made.image_shape, made.classes, seed=0)
    seeds = [figures | _of_history(figures, history) for figures in _figures(networks, train, test, teacher)]
    return {
        "suite": made.suite,
        "split": made.split,
        "cell": made.cell,
        "method": made.method,
        "network": made.network,
        "parameters": models.parameter_count(example),
        "multiply_adds": multiply_adds(example, made.image_shape),
        "weights_bytes": sum(t.nbytes for t in models.weights(next(iter(networks.values()), example)).values()),
        "params": made.params,
        "data_sha256": made.data_sha256,
        "teacher_sha256": made.teacher_sha256,
        "weights_sha256": made.weights_sha256,
        "environment": made.environment,
        "failed": made.failed,
        "test_images": len(test.labels),
        "seeds": seeds,
    }


def _of_history(figures: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The best epoch by the test split, and the check of the last one."""
    tested = [row for row in history if row["seed"] == figures["seed"] and "test_accuracy" in row]
    best = max(tested, key=lambda row: row["test_accuracy"])
    if abs(tested[-1]["test_accuracy"] - figures["test_accuracy"]) > TOLERANCE:
        raise UserError(
            f"seed {figures['seed']}: its weights reach {figures['test_accuracy']:.4f} on the test split, its "
            f"history ends with {tested[-1]['test_accuracy']:.4f}; they are not of one run: train again"
        )
    return {"best_test_accuracy": best["test_accuracy"], "best_epoch": best["epoch"]}


def _figures(
    networks: Mapping[int, nn.Module], train: DeviceSplit, test: DeviceSplit, teacher: nn.Module | None
) -> list[dict[str, Any]]:
    """Of each seed; with a teacher also of the two together."""
    if not networks:
        return []
    ensemble = Ensemble(list(networks.values()), test.images.device, test.dtype, folded=False)
    target = None
    if teacher is not None:
        target = teacher_logits(teacher, test)
    found = []
    for seed, of_train, logits in zip(networks, accuracy(ensemble, train), predictions(ensemble, test), strict=True):
        figures = {"seed": seed, "train_accuracy": of_train, **of_student(logits, test.labels)}
        found.append(figures if target is None else figures | of_both(logits, target, test.labels))
    return found


def teacher_logits(teacher: nn.Module, split: DeviceSplit) -> Tensor:
    """[N, classes], in eval mode."""
    return predictions(Ensemble([teacher], split.images.device, split.dtype, folded=False), split)[0]


def of_student(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Figures of one network on the test split, from its logits [N, classes] and the labels [N]."""
    hits = logits.argmax(1) == labels
    correct = hits.double()
    classes = logits.shape[1]
    figures = {
        "test_accuracy": correct.mean().item(),
        "test_correct": np.packbits(hits.cpu().numpy()).tobytes().hex(),  # a bit an image, in the split's order
        "test_cross_entropy": F.cross_entropy(logits, labels).item(),
        **_calibration(logits, labels),
        "test_accuracy_by_class": [correct[labels == label].mean().item() for label in range(classes)],
    }
    if classes > TOP_5_FROM:
        top = logits.topk(5, dim=1).indices
        figures["test_top5_accuracy"] = (top == labels[:, None]).any(1).double().mean().item()
    return figures


def of_both(logits: Tensor, target: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of student and teacher together, from their logits [N, classes] on the test split.

    agreement: share of images for which both predict the same class; kl_to_teacher: mean KL(teacher || student);
    and the figures of Triplets.
    """
    return {
        "agreement": (logits.argmax(1) == target.argmax(1)).double().mean().item(),
        "kl_to_teacher": kl_divergence(logits, target, temperature=1.0).item(),
        **{name: values[0] for name, values in Triplets(target, labels)(logits[None]).items()},
    }


class Triplets:
    """The paper's idea as figures of students' logits on the test split, for `fit` to follow through training.

    anchor_positive, anchor_negative: mean ||t(x) - s(x)|| and ||t(x) - s(x')||, x' drawn from the other classes' test
    images, the same for all; violated_triplets: share of images for which the first is not the smaller one.
    """

    def __init__(self, target: Tensor, labels: Tensor) -> None:
        """target: the teacher's logits t(x) [N, classes]; labels: [N]."""
        negatives = Sampler(labels.cpu().numpy(), Inputs(), negatives=True).draw(seed=0, epoch=0)
        self.index, self.other = negatives.index.to(labels.device)
        self.anchor = target[self.index]

    def __call__(self, logits: Tensor) -> dict[str, list[float]]:
        """By name, of each seed; logits: s(x) [S, N, classes]."""
        positive = torch.linalg.vector_norm(self.anchor - logits[:, self.index], dim=2)
        negative = torch.linalg.vector_norm(self.anchor - logits[:, self.other], dim=2)
        figures = {"anchor_positive": positive, "anchor_negative": negative, "violated_triplets": positive >= negative}
        return {name: values.double().mean(1).tolist() for name, values in figures.items()}


def _calibration(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Of 15 equal bins of the confidence: the images in it, as a share of all, and what they add to the mean confidence
    and to the accuracy. The calibration error is the sum over bins of the last two's absolute difference.

    logits: [N, classes]. Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    columns = {
        "share": torch.ones_like(confidence),
        "confidence": confidence,
        "accuracy": (predicted == labels).double(),
    }
    sums = {
        name: confidence.new_zeros(CALIBRATION_BINS).index_add_(0, bins, column) / len(labels)
        for name, column in columns.items()
    }
    return {
        "test_calibration_error": (sums["confidence"] - sums["accuracy"]).abs().sum().item(),
        "test_calibration": {name: [round(v, 6) for v in values.tolist()] for name, values in sums.items()},
    }


def output_map(
    made: Record, networks: Mapping[int, nn.Module], teacher: nn.Module, test: DeviceSplit
) -> list[dict[str, float]]:
    """A row for each of the first images of every class: its label, and where teacher and student put it.

    The plane is spanned by the two main directions of the teacher's logits on the test split (PCA). The student is the
    first seed's that did not fail, before training and after.
    """
    if not networks:
        return []
    seed, student = next(iter(networks.items()))
    before = models.build(made.network, made.image_shape, made.classes, seed)
    logits = {
        name: teacher_logits(network, test).double()
        for name, network in {"teacher": teacher, "before": before, "after": student}.items()
    }
    centre = logits["teacher"].mean(0)
    _, _, directions = torch.linalg.svd(logits["teacher"] - centre, full_matrices=False)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()  # which the decomposition leaves open, and machines choose differently
    shown = [i for label in range(made.classes) for i in (test.labels == label).nonzero()[:MAPPED_A_CLASS, 0].tolist()]
    plane = {name: (z[shown] - centre) @ directions[:2].mT for name, z in logits.items()}
    return [
        {"label": int(test.labels[i])}
        | {
            f"{name}_{axis}": float(f"{xy[row, k].item():.4g}")
            for name, xy in plane.items()
            for k, axis in enumerate("xy")
        }
        for row, i in enumerate(shown)
    ]


def multiply_adds(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Of the convolutions and linear layers in one forward pass of one image [H, W, C].

    Equal to half of what PyTorch's flop counter finds, which imports a compiler (1.5 s a process).
    """
    counts = []

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        weight = layer.get_parameter("weight")  # [outputs, ...]: a product each for every element of an output's place
        counts.append(output.numel() * weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    height, width, channels = image_shape
    with torch.no_grad():
        network.cpu().eval()(torch.zeros(1, channels, height, width, dtype=next(network.parameters()).dtype))
    for hook in hooks:
        hook.remove()
    return sum(counts)
