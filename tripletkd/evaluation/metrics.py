"""The figures of a network on a split, each a function of its logits.

A new one is a function here, a field of measurement.SeedMeasurement and the line of measure.measure_seed that fills it;
reporting.tables.COLUMNS names those that the tables show.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tripletkd.data.batches import Inputs, Sampler
from tripletkd.evaluation.measurement import Calibration
from tripletkd.methods.functional import kl_divergence

CALIBRATION_BINS = 15
TOP_5_FROM = 20  # classes: with fewer, five guesses say little


def accuracy_by_class(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Compute the accuracy on the images of each class, from logits [N, classes] and labels [N]."""
    correct = (logits.argmax(1) == labels).double()
    return tuple(correct[labels == label].mean().item() for label in range(logits.shape[1]))


def packed_hits(logits: Tensor, labels: Tensor) -> str:
    """Pack into hexadecimal digits a bit an image, in the split's order: set where its class is predicted."""
    return np.packbits((logits.argmax(1) == labels).cpu().numpy()).tobytes().hex()


def top5_accuracy(logits: Tensor, labels: Tensor) -> float | None:
    """Compute the share of images whose class is among the five largest logits; None up to TOP_5_FROM classes."""
    if logits.shape[1] <= TOP_5_FROM:
        return None
    return (logits.topk(5, dim=1).indices == labels[:, None]).any(1).double().mean().item()


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Compute the mean of -log softmax(logits)[label]."""
    return F.cross_entropy(logits, labels).item()


def calibration(logits: Tensor, labels: Tensor) -> tuple[float, Calibration]:
    """Compute the calibration error, and the sums that a reliability diagram shows.

    The error is the sum over 15 equal bins of the confidence of |mean confidence - accuracy|, weighted by the bin's
    share of the images.

    Args:
        logits: [N, classes].
        labels: [N].

    Returns:
        The error, and the sums of each bin over N, to six decimals.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1

    def sums(column: Tensor) -> Tensor:
        return confidence.new_zeros(CALIBRATION_BINS).index_add_(0, bins, column) / len(labels)

    def rounded(values: Tensor) -> tuple[float, ...]:
        return tuple(round(value, 6) for value in values.tolist())

    share, confident, correct = (
        sums(torch.ones_like(confidence)),
        sums(confidence),
        sums((predicted == labels).double()),
    )
    error = (confident - correct).abs().sum().item()
    return error, Calibration(rounded(share), rounded(confident), rounded(correct))


def agreement(logits: Tensor, teacher_logits: Tensor) -> float:
    """Compute the share of images for which student and teacher, [N, classes] each, predict the same class."""
    return (logits.argmax(1) == teacher_logits.argmax(1)).double().mean().item()


def kl_to_teacher(logits: Tensor, teacher_logits: Tensor) -> float:
    """Compute the mean KL(teacher || student) over images, from logits [N, classes] at temperature 1."""
    return kl_divergence(logits, teacher_logits, temperature=1.0).item()


def against_teacher(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute by name the figures of student and teacher together.

    Args:
        logits: s(x), [N, classes].
        teacher_logits: t(x), [N, classes].
        labels: [N].
    """
    triplets = TripletMetrics(teacher_logits, labels)(logits[None])
    return {
        "agreement": agreement(logits, teacher_logits),
        "kl_to_teacher": kl_to_teacher(logits, teacher_logits),
        **{name: value for name, [value] in triplets.items()},
    }


class TripletMetrics:
    """The paper's idea as figures on the test split, computed from students' logits: a metrics_fn for `fit` to log.

    anchor_positive and anchor_negative are the means of ||t(x) - s(x)|| and ||t(x) - s(x')||, with x' drawn from the
    test images of other classes, the same for all students; violated_triplets is the share of images for which the
    first distance is not the smaller one.
    """

    def __init__(self, teacher_logits: Tensor, labels: Tensor) -> None:
        """Draw the negatives.

        Args:
            teacher_logits: t(x), [N, classes].
            labels: [N].
        """
        negatives = Sampler(labels.cpu().numpy(), Inputs(), negatives=True).draw(seed=0, epoch=0)
        self.index, self.other = negatives.index.to(labels.device)
        self.anchor = teacher_logits[self.index]

    def __call__(self, logits: Tensor) -> dict[str, list[float]]:
        """Return each figure of each seed, by the figure's name; logits: s(x), [S, N, classes]."""
        positive = torch.linalg.vector_norm(self.anchor - logits[:, self.index], dim=2)
        negative = torch.linalg.vector_norm(self.anchor - logits[:, self.other], dim=2)
        figures = {"anchor_positive": positive, "anchor_negative": negative, "violated_triplets": positive >= negative}
        return {name: values.double().mean(1).tolist() for name, values in figures.items()}
