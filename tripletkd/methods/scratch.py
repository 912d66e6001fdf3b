"""No teacher: the student alone, trained on the labels. What every method must beat."""

from dataclasses import dataclass

from tripletkd.methods.functional import NonNegative, cross_entropy
from tripletkd.types import Batch, Term

NEEDS: frozenset[str] = frozenset()


@dataclass
class Params:
    ce: NonNegative  # weight of the cross-entropy


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """ce * CE(s(x), y)."""
    return {"ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels))}
