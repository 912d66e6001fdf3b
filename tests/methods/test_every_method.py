"""What holds for every method in the training loop: several seeds under vmap, the layers it names, its warm-up."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, fill
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from tripletkd import methods, models
from tripletkd.methods import dkd
from tripletkd.types import Batch, Outputs, total

State = dict[str, Tensor]
SEEDS, IMAGES, CLASSES, TRAINING_IMAGES = 3, 6, 10, 20


@cache
def params_of(name: str) -> Any:
    """The parameters in a method's block of params.yaml."""
    block = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"][name]
    return methods.load(name).Params(**{key: value for key, value in block.items() if key != "suites"})


def outputs(seed: int, channels: Sequence[int], size: int, features: bool) -> Outputs:
    """Of a network with so many channels and a first map of this size; [SEEDS, IMAGES, ...]."""
    first, second, third, last = channels
    shapes: dict[str, tuple[int, ...]] = {"stage1": (first, size, size), "stage2": (second, size // 2, size // 2)}
    shapes |= {"stage3": (third, size // 4, size // 4), "embedding": (last,)}
    named = {name: fill((SEEDS, IMAGES, *shape), seed + i, 1.0) for i, (name, shape) in enumerate(shapes.items())}
    return Outputs(fill((SEEDS, IMAGES, CLASSES), seed + 9, 3.0), named if features else {})


def given(name: str, sizes: tuple[int, int]) -> dict[str, Any]:
    """What a method asks for, and nothing else; the student's outputs are leaves."""
    needs = methods.needs(methods.load(name), params_of(name))
    features = "features" in needs
    result: dict[str, Any] = {"student": outputs(100, (3, 4, 6, 7), sizes[0], features)}
    if "teacher" in needs:
        result["teacher"] = outputs(200, (5, 4, 8, 9), sizes[1], features)
    if "negative" in needs:
        result["negative"] = outputs(300, (3, 4, 6, 7), sizes[0], features)
    if "teacher_negative" in needs:
        result["teacher_negative"] = outputs(400, (5, 4, 8, 9), sizes[1], features)
    if "index" in needs:
        result["index"] = 7 * torch.arange(SEEDS * IMAGES).view(SEEDS, IMAGES) % TRAINING_IMAGES
    if methods.contrasts(methods.load(name), params_of(name)):
        drawn = fill((SEEDS, IMAGES, TRAINING_IMAGES), 500, 3.0)
        result["contrast"] = drawn.abs().round().to(torch.int16)
    result["student"].map(Tensor.requires_grad_)
    return result | {"labels": (torch.arange(SEEDS * IMAGES) % CLASSES).view(SEEDS, IMAGES)}


def adapters_of(name: str, seen: dict[str, Any]) -> list[nn.Module]:
    module = methods.load(name)
    if not hasattr(module, "adapters"):
        return []
    student, teacher = (seen[network].map(lambda t: t[0].detach()) for network in ("student", "teacher"))
    images = {"images": TRAINING_IMAGES} if "index" in seen else {}
    make = partial(module.adapters, student, teacher, params_of(name), **images)
    return [models.seeded(seed, make).double() for seed in range(SEEDS)]


def loss_of_seed(name: str, template: nn.Module | None, seen: dict[str, Any], *state: State) -> Tensor:
    adapters = None if template is None else partial(functional_call, template, state)
    epoch = torch.tensor(2.0).double()
    return total(methods.load(name).loss(Batch(**seen, epoch=epoch, adapters=adapters), params_of(name)))


@pytest.mark.parametrize("sizes", [(8, 8), (16, 8), (4, 12)], ids=lambda sizes: f"{sizes[0]}-{sizes[1]}")
@pytest.mark.parametrize("name", methods.names())
def test_all_seeds_at_once_equal_each_alone(name: str, sizes: tuple[int, int]) -> None:
    """With a batching rule for every operation, which pytest demands by failing on warnings; and with NEEDS only."""
    seen = given(name, sizes)
    modules = adapters_of(name, seen)
    state: tuple[State, State] = stack_module_state(modules) if modules else ({}, {})
    together = torch.vmap(partial(loss_of_seed, name, modules[0] if modules else None))(seen, *state)

    def of(seed: int, value: Any) -> Any:
        return value.map(lambda t: t[seed]) if isinstance(value, Outputs) else value[seed]

    for seed in range(SEEDS):
        own: State = dict(modules[seed].named_parameters()) if modules else {}
        buffers: State = dict(modules[seed].named_buffers()) if modules else {}
        alone = {key: of(seed, value) for key, value in seen.items()}
        loss = loss_of_seed(name, modules[seed] if modules else None, alone, own, buffers)
        assert together[seed].item() == pytest.approx(loss.item(), rel=1e-12)
    gradients = torch.autograd.grad(together.sum(), [seen["student"].logits, *state[0].values()])
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.any() for g in gradients)


@pytest.mark.parametrize("name", methods.names())
def test_every_layer_named_gets_a_gradient(name: str) -> None:
    """And no other: the layers of params.yaml are those that a loss sees."""
    seen, layers = given(name, (8, 8)), getattr(params_of(name), "layers", [])
    modules = adapters_of(name, seen)
    state: tuple[State, State] = stack_module_state(modules) if modules else ({}, {})
    loss = torch.vmap(partial(loss_of_seed, name, modules[0] if modules else None))(seen, *state).sum()
    features = seen["student"].features
    gradients = torch.autograd.grad(loss, list(features.values()), allow_unused=True) if features else []
    assert [n for n, g in zip(features, gradients, strict=True) if g is not None and g.any()] == layers


@pytest.mark.parametrize("name", [n for n in methods.names() if hasattr(params_of(n), "standardize")])
def test_standardized_logits_have_no_size_of_their_own(name: str) -> None:
    """Whatever the student's logits are scaled and shifted by, but in the cross-entropy."""
    seen = {key: value.map(lambda t: t[0]) for key, value in given(name, (8, 8)).items() if isinstance(value, Outputs)}
    other = seen | {key: seen[key].map(lambda t: 3 * t + 1) for key in ("student", "negative") if key in seen}

    def value(outputs: dict[str, Any], standardize: bool) -> float:
        params = replace(params_of(name), ce=0, standardize=standardize)
        return total(methods.load(name).loss(Batch(torch.arange(IMAGES), **outputs), params)).item()

    assert value(other, True) == pytest.approx(value(seen, True), rel=1e-6)
    assert value(other, False) != pytest.approx(value(seen, False), rel=0.01)


def test_dkd_warms_up() -> None:
    """From 1 / warmup in the first epoch to 1, the cross-entropy at its weight throughout."""
    x = {name: Outputs(fill((5, 4), seed, 3.0), {}) for name, seed in (("student", 11), ("teacher", 12))}

    def weights(epoch: Any, warmup: float = 20) -> list[float]:
        params = dkd.Params(ce=1, tckd=1, nckd=8, temperature=4, warmup=warmup)
        batch = Batch(torch.arange(5) % 4, epoch=epoch, student=x["student"], teacher=x["teacher"])
        return [float(term.weight) for term in dkd.loss(batch, params).values()]

    assert weights(torch.tensor(1.0)) == pytest.approx([1, 1 / 20, 8 / 20])
    assert weights(torch.tensor(10.0)) == pytest.approx([1, 1 / 2, 4])
    assert weights(20.0) == weights(torch.tensor(200.0)) == weights(1.0, warmup=0) == [1, 1, 8]
