"""Optimizers and schedules give what torch's own give, for several seeds at once, in one go and resumed."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from tripletkd.errors import UserError
from tripletkd.training.optim import SGD, AdamW, Cosine, MultiStep, Optimizer, OptimizerSettings, Recipe

STEPS, SEEDS = 60, (0, 1, 2)
SHAPES = [(4, 3), (5,), ()]
PLAIN = SGD(lr=0.05, momentum=0.9, weight_decay=0.01)
OPTIMIZERS: list[tuple[OptimizerSettings, Any, dict[str, Any]]] = [
    (PLAIN, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    (SGD(lr=0.05, momentum=0, weight_decay=0), torch.optim.SGD, {}),
    (
        AdamW(lr=0.01, weight_decay=0.05, beta1=0.5, beta2=0.9, eps=0.1),
        torch.optim.AdamW,
        {"weight_decay": 0.05, "betas": (0.5, 0.9), "eps": 0.1},
    ),
]


def start(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def grads(seed: int, step: int, params: Sequence[Tensor]) -> list[Tensor]:
    """Of a function with a bowl and noise, so that the way taken matters."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return [p + torch.sin(p) + torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def lr_of(step: int) -> float:
    return 0.05 / (1 + step // 30)


@pytest.mark.parametrize(("settings", "theirs", "options"), OPTIMIZERS)
def test_a_resumed_group_of_seeds_gives_what_torchs_gives_each(
    settings: OptimizerSettings, theirs: Any, options: dict[str, Any]
) -> None:
    params = [torch.stack(of_seeds) for of_seeds in zip(*map(start, SEEDS), strict=True)]
    optimizer = Optimizer(settings, params)
    for step in range(STEPS):
        if step == STEPS // 2:
            saved, optimizer = optimizer.state(), Optimizer(settings, params)
            for name, tensor in optimizer.state().items():
                tensor.copy_(saved[name])
        optimizer.lr.fill_(lr_of(step))
        alone = [grads(seed, step, [param[seed] for param in params]) for seed in SEEDS]
        optimizer.step([torch.stack(of_seeds) for of_seeds in zip(*alone, strict=True)])
    for seed in SEEDS:
        expected = [param.requires_grad_() for param in start(seed)]
        reference = theirs(expected, lr=0.05, **options)
        for step in range(STEPS):
            reference.param_groups[0]["lr"] = lr_of(step)
            for param, grad in zip(expected, grads(seed, step, [p.detach() for p in expected]), strict=True):
                param.grad = grad
            reference.step()
        for found, theirs_param in zip(params, expected, strict=True):
            torch.testing.assert_close(found[seed], theirs_param.detach(), rtol=1e-12, atol=1e-12)


def test_sgd_gives_the_bits_of_its_formula() -> None:
    """Written out for each tensor: weights that were trained before must come out again."""
    params, velocity = start(1, torch.float32), [torch.zeros(shape) for shape in SHAPES]
    found = [param.clone() for param in params]
    optimizer = Optimizer(PLAIN, found)
    for step in range(STEPS):
        lr = torch.tensor(lr_of(step))
        optimizer.lr.copy_(lr)
        optimizer.step(grads(1, step, found))
        for param, v, grad in zip(params, velocity, grads(1, step, params), strict=True):
            v.mul_(0.9).add_(torch.add(grad, param, alpha=0.01))
            param.sub_(v * lr)
    assert all(torch.equal(a, b) for a, b in zip(found, params, strict=True))


# --- schedules --------------------------------------------------------------------------------------------------------

EPOCHS, LR, DECAY = 30, 0.05, (10, 11, 25)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        (
            lambda warmup: MultiStep(decay_epochs=DECAY, decay_factor=0.3, warmup_epochs=warmup),
            lambda sgd, warmup: lr_scheduler.MultiStepLR(sgd, [epoch - warmup for epoch in DECAY], gamma=0.3),
        ),
        (
            lambda warmup: Cosine(warmup_epochs=warmup),
            lambda sgd, warmup: lr_scheduler.CosineAnnealingLR(sgd, EPOCHS - warmup),
        ),
    ],
    ids=["multistep", "cosine"],
)
def test_a_schedule_gives_what_torchs_gives(
    settings: Callable[[int], Any], theirs: Callable[[torch.optim.Optimizer, int], Any], warmup: int
) -> None:
    recipe = Recipe(EPOCHS, 5, SGD(lr=LR, momentum=0.9, weight_decay=0), settings(warmup))
    recipe.check()
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    linear = lr_scheduler.LinearLR(reference, start_factor=1 / (warmup + 1), total_iters=warmup) if warmup else None
    schedule, expected = theirs(reference, warmup), []
    if linear:
        schedule = lr_scheduler.SequentialLR(reference, [linear, schedule], milestones=[warmup])
    for _ in range(EPOCHS):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()
    assert [recipe.lr_at(epoch) for epoch in range(1, EPOCHS + 1)] == pytest.approx(expected, rel=1e-12)


def test_a_schedule_that_does_not_fit_the_epochs_is_refused() -> None:
    Recipe(9, 5, PLAIN, MultiStep(decay_epochs=(1, 9), decay_factor=0.1)).check()
    for decay in ((0,), (10,), (5, 5)):
        with pytest.raises(UserError, match=f"schedule.decay_epochs: found .{', '.join(map(str, decay))}."):
            Recipe(9, 5, PLAIN, MultiStep(decay_epochs=decay, decay_factor=0.1)).check()
    with pytest.raises(UserError, match=r"schedule.warmup_epochs: found 9"):
        Recipe(9, 5, PLAIN, Cosine(warmup_epochs=9)).check()
