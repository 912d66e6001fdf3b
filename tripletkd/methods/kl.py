"""Distillation at temperature 1: the student learns the teacher's predictions as they are.

It is the KL term of the authors' later code (19b0dc3), with the cross-entropy and without triplets; `kd_triplet` has
all three. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.
"""

from dataclasses import dataclass

from tripletkd.methods.functional import NonNegative, cross_entropy, kl_divergence
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms."""

    ce: NonNegative  # weight of the cross-entropy
    kl: NonNegative  # weight of the divergence from the teacher


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + kl * KL(softmax(t(x)) || softmax(s(x)))."""
    student, teacher = batch.student.logits, batch.teacher.logits
    return {
        "ce": Term(params.ce, cross_entropy(student, batch.labels)),
        "kl": Term(params.kl, kl_divergence(student, teacher, temperature=1)),
    }
