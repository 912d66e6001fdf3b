"""The triplet loss together with kd.py: the later version of the authors' public code for Oki et al., IJCNN 2020."""

from dataclasses import dataclass

from tripletkd.methods.functional import NonNegative, Positive, cross_entropy, kl_divergence
from tripletkd.methods.triplet import triplet_margin
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "negative"})


@dataclass(frozen=True)
class Params:
    """Weighs the three terms, and sets the divergence's temperature and the triplets' margin."""

    ce: NonNegative  # weight of the cross-entropy
    kl: NonNegative  # weight of the divergence from the teacher
    temperature: Positive  # the authors' code has none, that is 1
    triplet: NonNegative  # weight of the triplet loss; the paper's lambda
    margin: NonNegative  # in units of the logits, or of their z-scores
    standardize: bool = False  # compare z-scores of the logits (Sun et al., CVPR 2024)


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + kl * T^2 KL(t(x) / T || s(x) / T) + triplet * the triplet loss of triplet.py."""
    assert batch.teacher is not None and batch.negative is not None
    student, teacher, negative = batch.student.logits, batch.teacher.logits, batch.negative.logits
    return {
        "ce": Term(params.ce, cross_entropy(student, batch.labels)),
        "kl": Term(params.kl, kl_divergence(student, teacher, params.temperature, params.standardize)),
        "triplet": Term(params.triplet, triplet_margin(teacher, student, negative, params.margin, params.standardize)),
    }
