"""The paper's method, the triplet loss between the outputs of teacher and student.

Oki, Abe, Miyao, Kurita, "Triplet Loss for Knowledge Distillation", IJCNN 2020, arXiv 2004.08116. The student's output
s(x) is drawn to the teacher's output t(x) for the same image, while its output s(x') for an image x' of another class,
drawn uniformly from the training images of all other classes, is pushed away from t(x).
"""

from dataclasses import dataclass

from tripletkd.methods.functional import NonNegative, cross_entropy, triplet_margin
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "negative"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and sets the triplets' margin."""

    ce: NonNegative  # weight of the cross-entropy
    triplet: NonNegative  # weight of the triplet loss; the paper's lambda
    margin: NonNegative  # in units of the logits, or of their z-scores
    standardize: bool = False  # compare z-scores of the logits (Sun et al., CVPR 2024)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + triplet * mean max(0, ||t(x) - s(x)|| - ||t(x) - s(x')|| + margin)."""
    assert batch.teacher is not None and batch.negative is not None
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "triplet": Term(
            params.triplet,
            triplet_margin(
                anchor=batch.teacher.logits,
                positive=batch.student.logits,
                negative=batch.negative.logits,
                margin=params.margin,
                standardize=params.standardize,
            ),
        ),
    }
