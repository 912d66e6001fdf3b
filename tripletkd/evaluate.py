"""Weights in, measurements out: what is reported of each seed, on whole splits in eval mode."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Problem
from .data import DeviceSplit, Inputs, Sampler
from .ensemble import Ensemble
from .methods._terms import kl_divergence
from .models import parameter_count, weights
from .record import Record
from .train import EVALUATION_BATCH, accuracy

CALIBRATION_BINS = 15
TOP_5_FROM = 20  # classes: with fewer, five guesses say little
TOLERANCE = 0.005  # of an accuracy computed in another order or on another machine: some images on the edge


def measure(
    made: Record,
    networks: Mapping[int, nn.Module],
    history: Sequence[Mapping[str, float]],
    train: DeviceSplit,
    test: DeviceSplit,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """All that is reported of one run record: what it is, what its network costs, and the figures of each seed.

    Problem if the weights do not reach the accuracy of the history's last epoch: then the two do not belong together;
    and if there are none.
    """
    if not networks:
        raise Problem(f"{made.suite}/{made.method}: every seed failed, there is nothing to measure: {made.failed}")
    example = next(iter(networks.values()))
    seeds = [figures | _of_history(figures, history) for figures in _figures(networks, train, test, teacher)]
    return {
        "suite": made.suite,
        "method": made.method,
        "network": made.network,
        "parameters": parameter_count(example),
        "multiply_adds": multiply_adds(example, made.image_shape),
        "weights_bytes": sum(tensor.nbytes for tensor in weights(example).values()),
        "params": made.params,
        "data_sha256": made.data_sha256,
        "teacher_sha256": made.teacher_sha256,
        "weights_sha256": made.weights_sha256,
        "environment": made.environment,
        "failed": made.failed,
        "seeds": seeds,
    }


def _of_history(figures: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The best epoch by the test split, and the check of the last one."""
    tested = [row for row in history if row["seed"] == figures["seed"] and "test_accuracy" in row]
    best = max(tested, key=lambda row: row["test_accuracy"])
    if abs(tested[-1]["test_accuracy"] - figures["test_accuracy"]) > TOLERANCE:
        raise Problem(
            f"seed {figures['seed']}: its weights reach {figures['test_accuracy']:.4f} on the test split, its "
            f"history ends with {tested[-1]['test_accuracy']:.4f}; they are not of one run: train again"
        )
    return {"best_test_accuracy": best["test_accuracy"], "best_epoch": best["epoch"]}


def _figures(
    networks: Mapping[int, nn.Module], train: DeviceSplit, test: DeviceSplit, teacher: nn.Module | None
) -> list[dict[str, Any]]:
    """Of each seed; with a teacher also of the two together."""
    ensemble = Ensemble(list(networks.values()), test.images.device, test.dtype, folded=False)
    target = None
    if teacher is not None:
        target = _logits(Ensemble([teacher], test.images.device, test.dtype, folded=False), test)[0]
    found = []
    for seed, of_train, logits in zip(networks, accuracy(ensemble, train), _logits(ensemble, test), strict=True):
        figures = {"seed": seed, "train_accuracy": of_train, **of_student(logits, test.labels)}
        found.append(figures if target is None else figures | of_both(logits, target, test.labels))
    return found


def of_student(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Figures of one network on the test split, from its logits [N, classes] and the labels [N]."""
    correct = (logits.argmax(1) == labels).double()
    classes = logits.shape[1]
    figures = {
        "test_accuracy": correct.mean().item(),
        "test_cross_entropy": F.cross_entropy(logits, labels).item(),
        "test_calibration_error": calibration_error(logits, labels),
        "test_accuracy_by_class": [correct[labels == label].mean().item() for label in range(classes)],
    }
    if classes > TOP_5_FROM:
        top = logits.topk(5, dim=1).indices
        figures["test_top5_accuracy"] = (top == labels[:, None]).any(1).double().mean().item()
    return figures


def of_both(logits: Tensor, target: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of student and teacher together, from their logits [N, classes] on the test split.

    agreement: share of images for which both predict the same class; kl_to_teacher: mean KL(teacher || student);
    anchor_positive, anchor_negative: mean ||t(x) - s(x)|| and ||t(x) - s(x')||, x' drawn from the other classes' test
    images, the same for all; violated_triplets: share of images for which the first is not the smaller one.
    """
    negatives = Sampler(labels.cpu().numpy(), Inputs(), negatives=True).draw(seed=0, epoch=0)
    index, other = negatives.index.to(labels.device)
    positive = torch.linalg.vector_norm(target[index] - logits[index], dim=1)
    negative = torch.linalg.vector_norm(target[index] - logits[other], dim=1)
    return {
        "agreement": (logits.argmax(1) == target.argmax(1)).double().mean().item(),
        "kl_to_teacher": kl_divergence(logits, target, temperature=1.0).item(),
        "anchor_positive": positive.mean().item(),
        "anchor_negative": negative.mean().item(),
        "violated_triplets": (positive >= negative).double().mean().item(),
    }


def _logits(ensemble: Ensemble, split: DeviceSplit) -> Tensor:
    """[S, N, classes]."""
    return torch.cat([ensemble.predict(images) for images, _ in split.chunks(EVALUATION_BATCH)], dim=1)


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """sum over bins of |mean confidence - accuracy| * share of the images, 15 equal bins of the confidence.

    logits: [N, classes]. Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    sums = torch.zeros(CALIBRATION_BINS, dtype=gap.dtype, device=gap.device).index_add_(0, bins, gap)
    return sums.abs().sum().item() / len(gap)


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
