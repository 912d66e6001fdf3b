"""Several seeds computed together, one after the other, or alone: the same results."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from conftest import fill
from torch import Tensor, nn

from tripletkd import models
from tripletkd.models.cifar import VGG
from tripletkd.training.compute import Compute
from tripletkd.training.stacked_seeds import Ensemble

CPU, DOUBLE = torch.device("cpu"), torch.float64
SEEDS = (1, 2, 3)


def ensemble(members: Sequence[nn.Module], fused: bool) -> Ensemble:
    made = Ensemble(members, Compute(CPU, DOUBLE, fuse_seeds=fused), features=True)
    assert made.fused is (fused and len(members) > 1)
    return made


def images(seeds: int, step: int) -> Tensor:
    return fill((seeds, 4, 3, 8, 8), 100 + step, 1.0)


def results(network: Ensemble, x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients of a function of all of them, and the buffers they leave behind."""
    logits, features = network(x)
    outputs = {"logits": logits, **features}
    loss = sum((fill(tuple(t.shape[1:]), i, 1.0) * t.square()).mean() for i, t in enumerate(outputs.values()))
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, list(network.params.values()))
    gradients = {f"gradient of {name}": grad for name, grad in zip(network.params, grads, strict=True)}
    return outputs | gradients | {name: buffer.clone() for name, buffer in network.buffers.items()}


# The last of ours that have those layers, and what others have added
SMALL = ("paper_teacher_quarter", "paper_student_quarter", "resnet8", "wrn_16_1")
KNOWN = ("paper_", "resnet", "wrn_", "vgg")
FUSED: dict[str, Callable[[int, int, int], nn.Module]] = {
    name: models.NETWORKS[name]
    for name in models.NETWORKS
    if name in SMALL or (not name.startswith(KNOWN) and getattr(models.definition(name)[0], "fusible", False))
} | {"narrow vgg11": partial(VGG, depths=(1, 1, 2, 2, 2), widths=(4, 8, 8, 16, 16))}


@pytest.mark.parametrize("name", FUSED)
def test_fused_seeds_compute_what_single_ones_do(name: str) -> None:
    members = [models.seeded(seed, partial(FUSED[name], 3, 8, 10)) for seed in SEEDS]
    fused, in_a_row = ensemble(members, fused=True), ensemble(members, fused=False)
    for step in range(3):
        if step == 2:
            fused.template.eval()
            in_a_row.template.eval()
        found, expected = (results(network, images(3, step)) for network in (fused, in_a_row))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_member_is_the_ensemble_s_network() -> None:
    group = ensemble([models.build("wrn_16_1", (8, 8, 3), 10, seed) for seed in SEEDS], fused=True)
    group(images(3, 0))  # moves batch norm's statistics
    x = images(1, 1)[0]
    alone = torch.stack([group.member(i).eval()(x).logits for i in range(3)])
    torch.testing.assert_close(group.predict(x), alone, rtol=1e-10, atol=1e-10)
