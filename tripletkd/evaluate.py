"""Weights in, measurements out: what is reported of each seed, on whole splits in eval mode."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Problem
from .data import DeviceSplit
from .ensemble import Ensemble
from .models import parameter_count
from .record import Record
from .train import EVALUATION_BATCH, accuracy

CALIBRATION_BINS = 15
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

    Problem if the weights do not reach the accuracy of the history's last epoch: then the two do not belong together.
    """
    example = next(iter(networks.values()))
    seeds = [figures | _of_history(figures, history) for figures in _figures(networks, train, test, teacher)]
    return {
        "suite": made.suite,
        "method": made.method,
        "network": made.network,
        "parameters": parameter_count(example),
        "multiply_adds": multiply_adds(example, made.image_shape),
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
    """Of each seed: accuracy on either split; on the test split also cross-entropy, calibration, accuracy by class.

    agreement: the share of test images on which student and teacher predict the same class.
    """
    ensemble = Ensemble(list(networks.values()), test.images.device, test.dtype, folded=False)
    train_accuracy = accuracy(ensemble, train)
    logits = _logits(ensemble, test)
    predicted = logits.argmax(2)
    agreement = None
    if teacher is not None:
        single = Ensemble([teacher], test.images.device, test.dtype, folded=False)
        agreement = (predicted == _logits(single, test).argmax(2)).double().mean(1)
    correct = (predicted == test.labels).double()
    per_class = torch.stack([correct[:, test.labels == label].mean(1) for label in test.labels.unique()], dim=1)
    return [
        {
            "seed": seed,
            "train_accuracy": train_accuracy[i],
            "test_accuracy": correct[i].mean().item(),
            "test_cross_entropy": F.cross_entropy(logits[i], test.labels).item(),
            "test_calibration_error": calibration_error(logits[i], test.labels),
            "test_accuracy_by_class": per_class[i].tolist(),
            **({} if agreement is None else {"agreement": agreement[i].item()}),
        }
        for i, seed in enumerate(networks)
    ]


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
    return torch.zeros(CALIBRATION_BINS, dtype=gap.dtype, device=gap.device).index_add_(
        0, bins, gap
    ).abs().sum().item() / len(gap)


def multiply_adds(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Of one forward pass of one image [H, W, C], by PyTorch's flop counter (two operations a multiply-add)."""
    from torch.utils.flop_counter import FlopCounterMode

    height, width, channels = image_shape
    image = torch.zeros(1, channels, height, width, dtype=next(network.parameters()).dtype)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.cpu().eval()(image)
    return int(counter.get_total_flops()) // 2
