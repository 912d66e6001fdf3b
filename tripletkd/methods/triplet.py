"""The paper's method. Oki, Abe, Miyao, Kurita, "Triplet Loss for Knowledge Distillation", IJCNN 2020, arXiv 2004.08116.

The student's output s(x) is drawn to the teacher's output t(x) for the same image and pushed away from it for an
image x' of another class, drawn uniformly from the training images of all other classes.
"""

from dataclasses import dataclass

from tripletkd.methods.functional import NonNegative, cross_entropy, triplet_margin
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "negative"})


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy
    triplet: NonNegative  # the paper's lambda
    margin: NonNegative  # in units of the logits


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y) + triplet * mean max(0, ||t(x) - s(x)|| - ||t(x) - s(x')|| + margin)."""
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
            ),
        ),
    }
