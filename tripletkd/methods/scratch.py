"""The student alone, trained on the labels without a teacher: what every method must beat."""

from dataclasses import dataclass

from tripletkd.methods.functional import NonNegative, cross_entropy
from tripletkd.types import Batch, Term

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Params:
    """Weighs the only term."""

    ce: NonNegative  # weight of the cross-entropy


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y)."""
    return {"ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels))}
