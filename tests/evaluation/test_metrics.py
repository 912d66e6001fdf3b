"""Each figure against plain loops, scikit-learn and cases worked out by hand."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from tripletkd.evaluation import metrics

torch.manual_seed(0)
LOGITS, TARGET = torch.randn(200, 30).double(), torch.randn(200, 30).double()
LABELS = torch.arange(200) % 30


def test_accuracies_and_cross_entropy_are_those_of_scikit_learn() -> None:
    assert metrics.accuracy(LOGITS, LABELS) == pytest.approx(accuracy_score(LABELS, LOGITS.argmax(1)))
    assert metrics.cross_entropy(LOGITS, LABELS) == pytest.approx(log_loss(LABELS, LOGITS.softmax(1)))
    assert metrics.top5_accuracy(LOGITS, LABELS) == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=5))


def test_five_guesses_of_few_classes_are_not_reported() -> None:
    assert metrics.top5_accuracy(LOGITS[:, :20], LABELS % 20) is None
    assert metrics.top5_accuracy(LOGITS[:, :21], LABELS % 21) is not None


def test_hits_are_a_bit_an_image() -> None:
    hits = "".join(f"{byte:08b}" for byte in bytes.fromhex(metrics.packed_hits(LOGITS, LABELS)))[:200]
    assert hits == "".join("01"[LOGITS[i].argmax() == LABELS[i]] for i in range(200))


def test_accuracy_by_class_in_a_plain_loop() -> None:
    third = [int(LOGITS[i].argmax() == 3) for i in range(200) if LABELS[i] == 3]
    assert metrics.accuracy_by_class(LOGITS, LABELS)[3] == pytest.approx(sum(third) / len(third))


def test_calibration_error_in_a_plain_loop() -> None:
    probabilities = LOGITS.softmax(1)
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(probabilities, LABELS, strict=True):
        confidence = row.max().item()
        bins[min(max(math.ceil(confidence * 15), 1), 15) - 1].append((confidence, bool(row.argmax() == label)))
    expected = sum(abs(sum(hit - confidence for confidence, hit in group)) for group in bins) / 200
    error, sums = metrics.calibration(LOGITS, LABELS)
    assert error == pytest.approx(expected)
    assert sums.share == pytest.approx([len(group) / 200 for group in bins])
    assert sums.accuracy == pytest.approx([sum(hit for _, hit in group) / 200 for group in bins], abs=1e-6)
    sure = torch.eye(30)[LABELS] * 100
    assert metrics.calibration(sure, LABELS)[0] == pytest.approx(0, abs=1e-9)
    assert metrics.calibration(sure.roll(1, 1), LABELS)[0] == pytest.approx(1)


def test_figures_of_student_and_teacher() -> None:
    same = metrics.against_teacher(TARGET, TARGET, LABELS)
    assert same["agreement"] == 1
    assert same["kl_to_teacher"] == pytest.approx(0, abs=1e-12)
    assert (same["anchor_positive"], same["violated_triplets"]) == (0, 0)
    constant = metrics.against_teacher(torch.zeros(200, 30), TARGET, LABELS)  # as near to any image as to any other
    assert constant["violated_triplets"] == 1
    assert constant["anchor_positive"] == pytest.approx(constant["anchor_negative"])
    other = metrics.against_teacher(LOGITS, TARGET, LABELS)
    p, q = TARGET.softmax(1), LOGITS.softmax(1)
    assert other["kl_to_teacher"] == pytest.approx((p * (p / q).log()).sum(1).mean().item())


def test_triplet_metrics_are_of_each_seed() -> None:
    found = metrics.TripletMetrics(TARGET, LABELS)(torch.stack([LOGITS, TARGET]))
    assert found["violated_triplets"][1] == 0
    assert found["anchor_positive"][0] == pytest.approx((TARGET - LOGITS).norm(dim=1).mean().item())
