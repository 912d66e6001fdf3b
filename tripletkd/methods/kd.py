"""Knowledge distillation. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015."""

from dataclasses import dataclass

from tripletkd.methods.functional import NonNegative, Positive, cross_entropy, kl_divergence
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher"})


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy
    kl: NonNegative  # weight of the divergence from the teacher
    temperature: Positive


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y) + kl * T^2 KL(softmax(t(x) / T) || softmax(s(x) / T))."""
    assert batch.teacher is not None
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "kl": Term(params.kl, kl_divergence(batch.student.logits, batch.teacher.logits, params.temperature)),
    }
