"""Each figure against plain loops, scikit-learn and cases worked out by hand."""

import math

import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

from tripletkd.evaluation import metrics

torch.manual_seed(0)
LOGITS, TARGET = torch.randn(200, 30).double(), torch.randn(200, 30).double()
LABELS = torch.arange(200) % 30
HITS = [bool(row.argmax() == label) for row, label in zip(LOGITS, LABELS, strict=True)]


def test_figures_of_hits_and_probabilities() -> None:
    assert metrics.cross_entropy(LOGITS, LABELS) == pytest.approx(log_loss(LABELS, LOGITS.softmax(1)))
    assert metrics.top5_accuracy(LOGITS, LABELS) == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=5))
    assert metrics.top5_accuracy(LOGITS[:, :20], LABELS % 20) is None  # of few classes
    bits = "".join(f"{byte:08b}" for byte in bytes.fromhex(metrics.packed_hits(LOGITS, LABELS)))[:200]
    assert bits == "".join("01"[hit] for hit in HITS)
    third = [hit for hit, label in zip(HITS, LABELS, strict=True) if label == 3]
    assert metrics.accuracy_by_class(LOGITS, LABELS)[3] == pytest.approx(sum(third) / len(third))


def test_calibration_error_in_a_plain_loop() -> None:
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, hit in zip(LOGITS.softmax(1), HITS, strict=True):
        bins[min(max(math.ceil(row.max().item() * 15), 1), 15) - 1].append((row.max().item(), hit))
    error, sums = metrics.calibration(LOGITS, LABELS)
    assert error == pytest.approx(sum(abs(sum(hit - sure for sure, hit in group)) for group in bins) / 200)
    assert sums.share == pytest.approx([len(group) / 200 for group in bins])
    assert sums.accuracy == pytest.approx([sum(hit for _, hit in group) / 200 for group in bins], abs=1e-6)
    sure = torch.eye(30)[LABELS] * 100
    assert metrics.calibration(sure, LABELS)[0] == pytest.approx(0, abs=1e-9)
    assert metrics.calibration(sure.roll(1, 1), LABELS)[0] == pytest.approx(1)


def test_figures_of_student_and_teacher() -> None:
    same = metrics.against_teacher(TARGET, TARGET, LABELS)
    assert (same["agreement"], same["anchor_positive"], same["violated_triplets"]) == (1, 0, 0)
    constant = metrics.against_teacher(torch.zeros(200, 30), TARGET, LABELS)  # as near to any image as to any other
    assert constant["violated_triplets"] == 1
    assert constant["anchor_positive"] == pytest.approx(constant["anchor_negative"])
    other, p, q = metrics.against_teacher(LOGITS, TARGET, LABELS), TARGET.softmax(1), LOGITS.softmax(1)
    assert other["kl_to_teacher"] == pytest.approx((p * (p / q).log()).sum(1).mean().item())
    both = metrics.TripletMetrics(TARGET, LABELS)(torch.stack([LOGITS, TARGET]))  # each seed's own
    assert both["violated_triplets"] == [other["violated_triplets"], 0]
    assert both["anchor_positive"][0] == pytest.approx((TARGET - LOGITS).norm(dim=1).mean().item())
