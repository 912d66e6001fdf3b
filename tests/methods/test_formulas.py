"""The formulas against loops over images, classes and places, and on degenerate batches."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fill
from numpy.linalg import norm
from numpy.typing import NDArray
from torch import Tensor

from tripletkd.methods import at, cc, crd, dist, dkd, fitnet, logit_mse, nst, pair, pkt, rkd, sp, triplet, vid
from tripletkd.methods.functional import kl_divergence, same_size, unit
from tripletkd.types import Batch, Outputs, total

Array = NDArray[np.float64]
Batched = Sequence[Array]  # an array for each image


def mean(values: Iterable[Any]) -> float:
    return float(np.mean(list(values)))


def scaled(x: Array, eps: float = 0.0) -> Array:
    """To length 1; zeros stay."""
    return x / ((norm(x) + eps) or 1)


def soft(logits: Array) -> Array:
    """Probabilities at the temperature 3."""
    return np.exp(logits / 3) / np.exp(logits / 3).sum()


def divergence(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum())


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def loop_triplet(anchor: Batched, positive: Batched, negative: Batched) -> float:
    images = zip(anchor, positive, negative, strict=True)
    return mean(max(0.0, float(norm(a - p + 1e-6) - norm(a - n + 1e-6)) + 1.5) for a, p, n in images)


def loop_contrastive(first: Batched, second: Batched, similar: Array) -> float:
    pairs = zip(first, second, similar, strict=True)
    return mean(norm(a - b) ** 2 if y else max(0.0, 4 - float(norm(a - b))) ** 2 for a, b, y in pairs)


def loop_kl(student: Batched, teacher: Batched) -> float:
    return mean(9 * divergence(soft(t), soft(s)) for s, t in zip(student, teacher, strict=True))


def loop_standardized(student: Batched, teacher: Batched) -> float:
    return loop_kl(*([(x - x.mean()) / (1e-7 + x.std(ddof=1)) for x in logits] for logits in (student, teacher)))


def loop_squares(student: Batched, teacher: Batched) -> float:
    return mean((s - t) ** 2 for s, t in zip(student, teacher, strict=True))


def loop_attention(student: Batched, teacher: Batched) -> float:
    return loop_squares(*([scaled(mean_square(f)) for f in maps] for maps in (student, teacher)))


def mean_square(image: Array) -> Array:
    """Over channels, at each place."""
    return np.array(sum(channel**2 for channel in image) / len(image))


def loop_similarity(student: Batched, teacher: Batched) -> float:
    def gram(f: Batched) -> list[Array]:
        return [scaled(np.array([a.ravel() @ b.ravel() for b in f])) for a in f]

    return loop_squares(gram(student), gram(teacher))


def loop_pkt(student: Batched, teacher: Batched) -> float:
    def probabilities(f: Batched) -> list[Array]:
        rows = [np.array([(scaled(a, 1e-7) @ scaled(b, 1e-7) + 1) / 2 for b in f]) for a in f]
        return [row / row.sum() for row in rows]

    pairs = zip(probabilities(student), probabilities(teacher), strict=True)
    return mean(p_t * np.log((p_t + 1e-7) / (p_s + 1e-7)) for p_s, p_t in pairs)


def loop_correlation(student: Batched, teacher: Batched) -> float:
    d = [abs(s - t) for s, t in zip(student, teacher, strict=True)]
    return mean(d[i] @ d[i + 1] for i in range(len(d) - 1))


def loop_mmd(student: Batched, teacher: Batched) -> float:
    def kernel(first: Batched, second: Batched) -> float:
        channels = (pair for x, y in zip(first, second, strict=True) for pair in product(x, y))
        return mean((scaled(a).ravel() @ scaled(b).ravel()) ** 2 for a, b in channels)

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def loop_information(student: Batched, log_scale: Array, teacher: Batched) -> float:
    variance = [np.log(1 + np.exp(scale)) + 1e-5 for scale in log_scale]
    maps = (zip(s, t, variance, strict=True) for s, t in zip(student, teacher, strict=True))
    return mean(((s - t) ** 2 / v + np.log(v)) / 2 for channels in maps for s, t, v in channels)


def loop_distance(student: Batched, teacher: Batched) -> float:
    def relative(f: Batched) -> list[float]:
        distances = [float(norm(a - b)) for a, b in product(f, f)]
        return [d / mean(x for x in distances if x > 0) for d in distances]

    return mean(huber(s - t) for s, t in zip(relative(student), relative(teacher), strict=True))


def loop_angle(student: Batched, teacher: Batched) -> float:
    def cosines(f: Batched) -> list[float]:
        return [float(scaled(a - b) @ scaled(a - c)) for a, b, c in product(f, f, f)]

    return mean(huber(s - t) for s, t in zip(cosines(student), cosines(teacher), strict=True))


def loop_tckd(student: Batched, teacher: Batched, labels: Any) -> float:
    def binary(logits: Array, y: int) -> Array:
        return np.array([soft(logits)[y], 1 - soft(logits)[y]])

    return mean(9 * divergence(binary(t, y), binary(s, y)) for s, t, y in zip(student, teacher, labels, strict=True))


def loop_nckd(student: Batched, teacher: Batched, labels: Any) -> float:
    return loop_kl(*([np.delete(x, y) for x, y in zip(logits, labels, strict=True)] for logits in (student, teacher)))


def loop_inter(student: Batched, teacher: Batched) -> float:
    return 9 * (1 - mean(np.corrcoef(soft(s), soft(t))[0, 1] for s, t in zip(student, teacher, strict=True)))


def loop_intra(student: Batched, teacher: Batched) -> float:
    p_s, p_t = (np.array([soft(x) for x in logits]).T for logits in (student, teacher))
    return 9 * (1 - mean(np.corrcoef(s, t)[0, 1] for s, t in zip(p_s, p_t, strict=True)))


def memory(like: Tensor) -> tuple[crd.Memory, Tensor, Tensor]:
    """Of seven images, with constants that are fixed; where a batch's images stand, how often each is a negative."""
    made = crd.Memory(4, 4, crd.Params(1, 1, ["embedding"], 4, 3, 0.5, 0.5), 7).to(like.dtype)
    for i, name in enumerate(("student", "teacher")):
        made.get_buffer(name).copy_(fill((7, 4), 15 + i, 1.0))
        made.get_buffer(f"z_{name}").fill_(20.0 + i)
    return made, 2 * torch.arange(len(like)) % 7, fill((len(like), 7), 17, 2.0).abs().round().long()


def contrast(student: Tensor, teacher: Tensor) -> Tensor:
    made, index, drawn = memory(student)
    scores = made.compare(unit(student, dim=1), unit(teacher, dim=1), index, drawn)
    return torch.stack([crd.noise_contrastive(score, index, drawn) for score in scores]).sum()


def loop_contrast(student: Batched, teacher: Batched) -> float:
    made, index, drawn = memory(torch.from_numpy(np.array(student)))
    losses = []
    for embeddings, remembered, z in ((student, made.teacher, 20.0), (teacher, made.student, 21.0)):
        for row, own, counts in zip(embeddings, index.tolist(), drawn.tolist(), strict=True):
            scores = [np.exp(scaled(row) @ other / 0.5) / z for other in remembered.numpy()]
            noise = sum(counts) / 7
            losses.append(-np.log(scores[own] / (scores[own] + noise + 1e-7)))
            losses += [-n * np.log(noise / (s + noise + 1e-7)) for s, n in zip(scores, counts, strict=True)]
    return float(sum(losses)) / len(student)


def triplet_loss(teacher: Tensor, student: Tensor, negative: Tensor) -> Tensor:
    s, t, n = (Outputs(logits, {}) for logits in (student, teacher, negative))
    labels = torch.zeros(len(student), dtype=torch.int64)
    return total(triplet.loss(Batch(labels, s, t, n), triplet.Params(ce=0, triplet=1, margin=1.5)))


def information(student: Tensor, log_scale: Tensor, teacher: Tensor) -> Tensor:
    return vid.information((student, log_scale), teacher)


def formulas(count: int) -> dict[str, tuple[Callable[..., Tensor], list[Tensor], Callable[..., float]]]:
    """Every formula with inputs for so many images, and the same in loops."""
    s, t = (fill((count, 4), seed, 3.0) for seed in (11, 12))
    map_s, map_t = (fill((count, channels, 3, 2), seed, 2.0) for channels, seed in ((2, 13), (4, 14)))
    y, scale, alike = torch.arange(count) % 4, torch.tensor([-0.5, 1.0]).double(), map_t[:, :2]
    return {
        "triplet": (triplet_loss, [t, s, s.flip(1)], loop_triplet),
        "contrastive": (partial(pair.contrastive, margin=4), [t, s, (y % 2).double()], loop_contrastive),
        "kl": (partial(kl_divergence, temperature=3), [s, t], loop_kl),
        "standardized": (partial(kl_divergence, temperature=3, standardize=True), [s, t], loop_standardized),
        "contrast": (contrast, [s, t], loop_contrast),
        "logit_mse": (logit_mse.logit_mse, [s, t], loop_squares),
        "hint": (fitnet.hint, [map_s, alike], loop_squares),
        "attention": (at.attention, [map_s, map_t], loop_attention),
        "similarity": (sp.similarity, [map_s, map_t], loop_similarity),
        "divergence": (pkt.divergence, [s, t], loop_pkt),
        "correlation": (cc.correlation, [s, t], loop_correlation),
        "mmd": (nst.mmd, [map_s, map_t], loop_mmd),
        "information": (information, [map_s, scale, alike], loop_information),
        "distance": (rkd.distance, [s, t], loop_distance),
        "angle": (rkd.angle, [s, t], loop_angle),
        "tckd": (partial(dkd.tckd, temperature=3), [s, t, y], loop_tckd),
        "nckd": (partial(dkd.nckd, temperature=3), [s, t, y], loop_nckd),
        "inter": (partial(dist.inter, temperature=3), [s, t], loop_inter),
        "intra": (partial(dist.intra, temperature=3), [s, t], loop_intra),
    }


NAMES = list(formulas(1))


@pytest.mark.parametrize("name", NAMES)
def test_formula_equals_plain_loops(name: str) -> None:
    formula, inputs, loop = formulas(5)[name]
    assert formula(*inputs).item() == pytest.approx(loop(*(x.numpy() for x in inputs)), rel=1e-12)


# --- degenerate batches -----------------------------------------------------------------------------------------------

ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "equal": lambda x: x[:1].expand_as(x),
    "two equal": lambda x: torch.cat([x[:1], x[:-1]]),
    "one zero": lambda x: torch.cat([0 * x[:1], x[1:]]),
    "extreme": lambda x: 1e4 * x,
}


def finite(formula: Callable[..., Tensor], inputs: list[Tensor], below: float = 1e7) -> tuple[float, bool]:
    """The value, and whether there is a gradient; both checked to be moderate."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    value = formula(*leaves)
    gradients = torch.autograd.grad(value, [x for x in leaves if x.requires_grad], allow_unused=True)
    assert all((x.detach().abs() <= below).all() for x in (value, *gradients) if x is not None), (value, gradients)
    return value.item(), any(x is not None and bool(x.any()) for x in gradients)


@pytest.mark.fault
@pytest.mark.parametrize("name", NAMES)
def test_a_single_image_is_enough(name: str) -> None:
    """Also for what compares images: with none to compare the value is 0, for a correlation T^2."""
    value, has_gradient = finite(*formulas(1)[name][:2])
    if name in ("similarity", "divergence", "correlation", "distance", "angle", "intra"):
        assert (value, has_gradient) == (9.0 if name == "intra" else 0.0, False)


@pytest.mark.fault
@pytest.mark.parametrize("name", NAMES)
def test_odd_features_give_finite_losses_and_gradients(name: str) -> None:
    """Of the student, of the teacher, of both: dead units, repeated images, logits far from each other."""
    formula, inputs, _ = formulas(5)[name]
    networks = [i for i, x in enumerate(inputs) if x.dim() > 1]
    for odd, dtype, changed in product(ODD, (torch.float32, torch.float64), (networks[:1], networks[1:2], networks)):
        typed = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
        given = [ODD[odd](x) if i in changed else x for i, x in enumerate(typed)]
        # PKT's published formula divides by length + 1e-7: at zero its slope is what that makes it.
        finite(formula, given, 1e10 if odd == "extreme" else 1e7)


def test_same_size_averages_as_pytorch() -> None:
    for first, second in (((4, 4), (7, 7)), ((7, 3), (2, 5))):
        maps = fill((2, 3, *first), 1, 1.0), fill((2, 1, *second), 2, 1.0)
        size = min(first[0], second[0]), min(first[1], second[1])
        for found, original in zip(same_size(*maps), maps, strict=True):
            assert torch.allclose(found, F.adaptive_avg_pool2d(original, size), rtol=1e-14, atol=1e-15)
