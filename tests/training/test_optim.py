"""Optimizers and schedules give what torch's own give, for one seed and for several, in one go and resumed."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tripletkd.errors import UserError
from tripletkd.training.optim import SGD, AdamW, Cosine, MultiStep, Optimizer, OptimizerSettings, Recipe

STEPS, SEEDS = 100, 3
SHAPES = [(4, 3), (5,), ()]
TheirOptimizer = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[OptimizerSettings, TheirOptimizer]] = {
    "sgd": (
        SGD(lr=0.05, momentum=0.9, weight_decay=0.01),
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    ),
    "sgd without momentum": (
        SGD(lr=0.05, momentum=0, weight_decay=0),
        lambda params: torch.optim.SGD(params, lr=0.05),
    ),
    "adamw": (
        AdamW(lr=0.01, weight_decay=0.05, beta1=0.5, beta2=0.9, eps=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.05, betas=(0.5, 0.9), eps=0.1),
    ),
}
by_name = pytest.mark.parametrize(("settings", "theirs"), OPTIMIZERS.values(), ids=OPTIMIZERS)


def start(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def grads(seed: int, step: int, params: Sequence[Tensor]) -> list[Tensor]:
    """A gradient that depends on the parameters, as a loss's does, and differs from step to step."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return [torch.sin(p) + torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def lr_of(step: int) -> float:
    return 0.05 / (1 + step // 30)


def trained(settings: OptimizerSettings, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    params = start(seed, dtype)
    optimizer = Optimizer(settings, params)
    for step in range(STEPS):
        optimizer.lr.fill_(lr_of(step))
        optimizer.step(grads(seed, step, params))
    return params


@by_name
def test_an_optimizer_gives_what_torchs_gives(settings: OptimizerSettings, theirs: TheirOptimizer) -> None:
    params = [param.requires_grad_() for param in start(1)]
    reference = theirs(params)
    for step in range(STEPS):
        reference.param_groups[0]["lr"] = lr_of(step)
        for param, grad in zip(params, grads(1, step, [p.detach() for p in params]), strict=True):
            param.grad = grad
        reference.step()
    for found, expected in zip(trained(settings, 1), params, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)


def test_sgd_gives_the_bits_of_its_formula() -> None:
    """Written out for each tensor: weights that were trained before must come out again."""
    params, velocity = start(1, torch.float32), [torch.zeros(shape) for shape in SHAPES]
    for step in range(STEPS):
        lr = torch.tensor(lr_of(step))
        for param, v, grad in zip(params, velocity, grads(1, step, params), strict=True):
            v.mul_(0.9).add_(torch.add(grad, param, alpha=0.01))
            param.sub_(v * lr)
    found = trained(OPTIMIZERS["sgd"][0], 1, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, params, strict=True))


@by_name
def test_a_group_of_seeds_gives_what_each_gives_alone(settings: OptimizerSettings, theirs: TheirOptimizer) -> None:
    params = [torch.stack(of_seeds) for of_seeds in zip(*(start(seed) for seed in range(SEEDS)), strict=True)]
    optimizer = Optimizer(settings, params)
    for step in range(STEPS):
        optimizer.lr.fill_(lr_of(step))
        alone = [grads(seed, step, [param[seed] for param in params]) for seed in range(SEEDS)]
        optimizer.step([torch.stack(of_seeds) for of_seeds in zip(*alone, strict=True)])
    for seed in range(SEEDS):
        for together, single in zip(params, trained(settings, seed), strict=True):
            torch.testing.assert_close(together[seed], single, rtol=1e-13, atol=1e-13)


@by_name
def test_a_resumed_run_gives_the_bits_of_one_that_was_not_interrupted(
    settings: OptimizerSettings, theirs: TheirOptimizer
) -> None:
    params = start(1)
    optimizer = Optimizer(settings, params)
    for step in range(STEPS):
        if step == STEPS // 2:
            saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
            params = [param.clone() for param in params]
            optimizer = Optimizer(settings, params)
            for name, tensor in optimizer.state().items():
                tensor.copy_(saved[name])
        optimizer.lr.fill_(lr_of(step))
        optimizer.step(grads(1, step, params))
    assert all(torch.equal(a, b) for a, b in zip(params, trained(settings, 1), strict=True))


# --- schedules --------------------------------------------------------------------------------------------------------

lr_scheduler = torch.optim.lr_scheduler
EPOCHS, WARMUP, LR = 30, 4, 0.05


def warm(optimizer: torch.optim.Optimizer, then: Any) -> Any:
    linear = lr_scheduler.LinearLR(optimizer, start_factor=1 / (WARMUP + 1), total_iters=WARMUP)
    return lr_scheduler.SequentialLR(optimizer, [linear, then], milestones=[WARMUP])


SCHEDULES: dict[str, tuple[Any, Callable[[torch.optim.Optimizer], Any]]] = {
    "multistep": (
        MultiStep(decay_epochs=(10, 11, 25), decay_factor=0.3),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [10, 11, 25], gamma=0.3),
    ),
    "multistep after a warm-up": (
        MultiStep(decay_epochs=(10, 25), decay_factor=0.3, warmup_epochs=WARMUP),
        lambda optimizer: warm(optimizer, lr_scheduler.MultiStepLR(optimizer, [10 - WARMUP, 25 - WARMUP], gamma=0.3)),
    ),
    "cosine": (Cosine(), lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)),
    "cosine after a warm-up": (
        Cosine(warmup_epochs=WARMUP),
        lambda optimizer: warm(optimizer, lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS - WARMUP)),
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(("settings", "theirs"), SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_gives_what_torchs_gives(settings: Any, theirs: Callable[[torch.optim.Optimizer], Any]) -> None:
    recipe = Recipe(EPOCHS, 5, SGD(lr=LR, momentum=0.9, weight_decay=0), settings)
    recipe.check()
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    schedule, expected = theirs(reference), []
    for _ in range(EPOCHS):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()
    assert [recipe.lr_at(epoch) for epoch in range(1, EPOCHS + 1)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            MultiStep(decay_epochs=(0,), decay_factor=0.1),
            "schedule.decay_epochs: found .0., expected epochs from 1 to 9",
        ),
        (MultiStep(decay_epochs=(10,), decay_factor=0.1), "schedule.decay_epochs: found .10., expected epochs from 1"),
        (MultiStep(decay_epochs=(5, 5), decay_factor=0.1), "decay_epochs: found .5, 5., .* each after the last"),
        (Cosine(warmup_epochs=9), "schedule.warmup_epochs: found 9, expected fewer than the 9 epochs"),
    ],
)
def test_a_schedule_that_does_not_fit_the_epochs_is_refused(schedule: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(9, 5, OPTIMIZERS["sgd"][0], schedule).check()
    Recipe(9, 5, OPTIMIZERS["sgd"][0], MultiStep(decay_epochs=(1, 9), decay_factor=0.1)).check()
