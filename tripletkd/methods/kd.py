"""Knowledge distillation: the student learns the teacher's softened predictions.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

from dataclasses import dataclass

from tripletkd.methods.functional import NonNegative, Positive, cross_entropy, kl_divergence
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and sets the temperature of the predictions that are compared."""

    ce: NonNegative  # weight of the cross-entropy
    kl: NonNegative  # weight of the divergence from the teacher
    temperature: Positive
    standardize: bool = False  # compare z-scores of the logits (Sun et al., CVPR 2024)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + kl * T^2 KL(softmax(t(x) / T) || softmax(s(x) / T))."""
    student, teacher = batch.student.logits, batch.teacher.logits
    return {
        "ce": Term(params.ce, cross_entropy(student, batch.labels)),
        "kl": Term(params.kl, kl_divergence(student, teacher, params.temperature, params.standardize)),
    }
