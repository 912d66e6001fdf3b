"""Contrastive representation distillation: student and teacher should find each other's embedding of the same image.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699. Either network's
embedding of an image is compared with the other network's embeddings of all training images, as they are remembered:
near to the one of the same image, far from those of images of other classes, many of which are drawn for each image.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from tripletkd.methods.functional import Layers, NonNegative, PerLayer, Positive, cross_entropy, over_layers, unit
from tripletkd.types import Batch, Outputs, Term

if TYPE_CHECKING:
    from tripletkd.data.batches import Drawing

NEEDS = frozenset({"teacher", "features", "index"})
EPS = 1e-7


@dataclass(frozen=True)
class Params:
    """Weighs the two terms, names the layers that are contrasted, and says how."""

    ce: NonNegative  # weight of the cross-entropy
    contrast: NonNegative  # weight of the contrast, summed over the layers
    layers: Layers
    dimensions: Annotated[int, Ge(1)]  # of the embeddings
    negatives: Annotated[int, Ge(1), Le(32767)]  # drawn for each image; again and again the same if there are fewer
    temperature: Positive  # by which the embeddings' products are divided
    momentum: Annotated[float, Ge(0), Le(1)]  # share of what a memory keeps of an image when it sees it again


def draw(context: "Drawing", params: Params) -> Tensor:
    """Draw the negatives of each image of a batch among the images of other classes, each once if there are so many.

    Args:
        context: the batch's images, the training split by class, and random numbers.
        params: the method's parameters.

    Returns:
        How often each training image is a negative of each image of the batch, [B, images], int16.
    """
    split, rows = context.split, []
    for label in split.labels[context.index]:
        others = int(split.others(label))
        rank = context.random.choice(others, params.negatives, replace=params.negatives > others, shuffle=False)
        count = torch.from_numpy(split.other(label, rank)).bincount(minlength=len(split.labels))
        rows.append(count.to(torch.int16))
    return torch.stack(rows)


def noise_contrastive(score: Tensor, index: Tensor, drawn: Tensor, eps: float = EPS) -> Tensor:
    """Tell each image's own score from those of its negatives (noise-contrastive estimation).

        -mean_i [ log (p_ii / (p_ii + K/N + eps)) + sum_j d_ij log (K/N / (p_ij + K/N + eps)) ],  K = sum_j d_ij

    Args:
        score: p_ij, how likely image i of the batch is image j of the training split, [B, N].
        index: where the batch's images stand in the training split, [B], int64: in p_ii the second i.
        drawn: d_ij, how often image j is a negative of image i, [B, N]; K in sum for each i.
        eps: keeps denominators from zero.

    Returns:
        The mean over the batch, a scalar.

    Source: the paper's equation 18; K/N + eps as in its code.
    """
    own = index[:, None] == torch.arange(score.shape[1], device=score.device)
    drawn = drawn.to(score.dtype)
    noise = drawn.sum(1) / score.shape[1]
    positive = torch.where(own, score, 0.0).sum(1)
    found = torch.log(positive / (positive + noise + eps))
    rejected = torch.log(noise[:, None] / (score + noise[:, None] + eps))
    return -(found + (drawn * rejected).sum(1)).mean()


class Memory(nn.Module):
    """Embeds a layer of both networks, and remembers the embeddings of every training image.

    A memory's row of an image is a running mean of the image's embeddings, scaled to length 1. The buffers `student`
    and `teacher` are the memories, [images, dimensions]; z_student and z_teacher the constants by which scores are
    divided, fixed at the first batch and 0 before.

    Args:
        student: the number of the student's features.
        teacher: the number of the teacher's features.
        params: the method's parameters.
        images: the number of training images.
    """

    student: Tensor
    teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor

    def __init__(self, student: int, teacher: int, params: Params, images: int) -> None:
        super().__init__()
        self.embed_student, self.embed_teacher = (nn.Linear(n, params.dimensions) for n in (student, teacher))
        self.temperature, self.momentum = params.temperature, params.momentum
        bound = math.sqrt(3 / params.dimensions)  # of the initial rows, whose length is 1 in the mean of squares
        for name in ("student", "teacher"):
            self.register_buffer(name, torch.empty(images, params.dimensions).uniform_(-bound, bound))
            self.register_buffer(f"z_{name}", torch.zeros(()))

    def forward(self, features: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Score the batch's images against all training images, then remember them.

        Args:
            features: the student's, [B, ...]; the teacher's, [B, ...]; the images' index, [B]; their negatives, [B, N].

        Returns:
            The scores of the student's embeddings s among the teacher's memory, exp(s_i . m_j / temperature) / z, and
            of the teacher's among the student's: [B, images] each.
        """
        student, teacher, index, drawn = features
        s = unit(self.embed_student(student.flatten(1)), dim=1)
        t = unit(self.embed_teacher(teacher.flatten(1)), dim=1)
        return self.compare(s, t, index, drawn)

    def compare(self, s: Tensor, t: Tensor, index: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `forward` says with embeddings of length 1, [B, dimensions]."""
        score_s, score_t = (torch.exp(x @ m.T / self.temperature) for x, m in ((s, self.teacher), (t, self.student)))
        self.z_student = self._constant(self.z_student, score_s, index, drawn)
        self.z_teacher = self._constant(self.z_teacher, score_t, index, drawn)
        self.student = self._remember(self.student, s, index)
        self.teacher = self._remember(self.teacher, t, index)
        return score_s / self.z_student, score_t / self.z_teacher

    @staticmethod
    def _constant(z: Tensor, score: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        """Return z, or where it is 0 still, the mean score of the images and their negatives times `images`."""
        images = score.shape[1]
        counted = drawn + (index[:, None] == torch.arange(images, device=index.device))
        mean = (counted * score.detach()).sum() / counted.sum()
        return torch.where(z > 0, z, mean * images)

    def _remember(self, memory: Tensor, embedding: Tensor, index: Tensor) -> Tensor:
        rows = self.momentum * memory[index] + (1 - self.momentum) * embedding.detach()
        return memory.index_copy(0, index, unit(rows, dim=1))


def adapters(student: Outputs, teacher: Outputs, params: Params, images: int) -> nn.Module:
    """Build a Memory for each layer; the embeddings of both networks are trained.

    Args:
        student: the student's outputs for two images, from which the layers' sizes are taken.
        teacher: the teacher's.
        params: the method's parameters.
        images: the number of training images.

    Returns:
        A module from (student's features, teacher's features, index, negatives) to the two scores, by layer name.
    """

    def sizes(name: str) -> tuple[int, int]:
        return student.features[name][0].numel(), teacher.features[name][0].numel()

    return PerLayer({name: Memory(*sizes(name), params, images) for name in params.layers})


def loss(batch: Batch, params: Params) -> dict[str, Term]:
    """Compute ce * CE(s(x), y) + contrast * sum over layers of both networks' contrasts."""
    index, drawn = batch.index, batch.drawn
    scores = batch.adapters(
        {name: (batch.student.features[name], batch.teacher.features[name], index, drawn) for name in params.layers}
    )

    def both(pair: tuple[Tensor, Tensor]) -> Tensor:
        return noise_contrastive(pair[0], index, drawn) + noise_contrastive(pair[1], index, drawn)

    return {
        "ce": Term(params.ce, cross_entropy(batch.student.logits, batch.labels)),
        "contrast": Term(params.contrast, over_layers(params.layers, both, scores)),
    }
