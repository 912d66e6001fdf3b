"""The paper's method, the triplet loss between the outputs of teacher and student.

Oki, Abe, Miyao, Kurita, "Triplet Loss for Knowledge Distillation", IJCNN 2020, arXiv 2004.08116. The student's output
s(x) is drawn to the teacher's output t(x) for the same image, while its output s(x') for an image x' of another class,
drawn uniformly from the training images of all other classes, is pushed away from t(x).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tripletkd.methods.functional import NonNegative, cross_entropy, z_score
from tripletkd.types import Batch, Term

NEEDS = frozenset({"teacher", "negative"})


@dataclass(frozen=True)
class Params:
    """Weighs the two terms and sets the triplets' margin."""

    ce: NonNegative  # weight of the cross-entropy
    triplet: NonNegative  # weight of the triplet loss; the paper's lambda
    margin: NonNegative  # in units of the logits, or of their z-scores
    standardize: bool = False  # compare z-scores of the logits (Sun et al., CVPR 2024)


def triplet_margin(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, standardize: bool = False
) -> Tensor:
    """Compute the triplet loss: the anchor should be nearer to the positive than to the negative, by a margin.

        mean_i max(0, ||a_i - p_i + e||_2 - ||a_i - n_i + e||_2 + margin),  e = 1e-6 in every element

    Args:
        anchor: a, in the paper the teacher's logits t(x), [B, classes].
        positive: p, in the paper the student's logits s(x), [B, classes].
        negative: n, in the paper the student's logits s(x') for images of other classes, [B, classes].
        margin: in units of the logits, or of their z-scores.
        standardize: whether all three are replaced by their `z_score` first; not in the paper.

    Returns:
        The mean over the batch, a scalar.

    Source: Oki et al., "Triplet Loss for Knowledge Distillation", IJCNN 2020. The authors' code calls PyTorch's
    triplet_margin_loss. This is equal to it, and can be computed for several seeds at once by torch.vmap.
    """
    if standardize:
        anchor, positive, negative = z_score(anchor), z_score(positive), z_score(negative)
    near = torch.linalg.vector_norm(anchor - positive + 1e-6, dim=1)
    far = torch.linalg.vector_norm(anchor - negative + 1e-6, dim=1)
    return F.relu(near - far + margin).mean()


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + triplet * mean max(0, ||t(x) - s(x)|| - ||t(x) - s(x')|| + margin)."""
    outputs = batch.teacher.logits, batch.student.logits, batch.negative.logits
    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "triplet": Term(params.triplet, triplet_margin(*outputs, params.margin, params.standardize)),
    }
