"""What holds for every method in the training loop: several seeds under vmap, the layers it names, its terms' names."""

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, fill
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from tripletkd import methods, models
from tripletkd.data.batches import ByClass, Drawing
from tripletkd.errors import UserError
from tripletkd.methods import dkd
from tripletkd.methods.functional import z_score
from tripletkd.types import Batch, Outputs, Term, total

State = dict[str, Tensor]
SEEDS, IMAGES, CLASSES, TRAINING_IMAGES = 3, 6, 10, 20


@cache
def params_of(name: str) -> Any:
    """The parameters in a method's block of params.yaml."""
    block = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"][name]
    return methods.load(name).Params(**{key: value for key, value in block.items() if key != "suites"})


def outputs(seed: int, channels: Sequence[int], size: int) -> Outputs:
    """Of a network with so many channels and a first map of this size; [SEEDS, IMAGES, ...]."""
    shapes: dict[str, tuple[int, ...]] = {
        f"stage{i + 1}": (n, size >> i, size >> i) for i, n in enumerate(channels[:3])
    }
    shapes |= {"embedding": (channels[3],), "logits": (CLASSES,)}
    made = {name: fill((SEEDS, IMAGES, *shape), seed + i, 2.0) for i, (name, shape) in enumerate(shapes.items())}
    return Outputs(made.pop("logits"), made)


def given(name: str) -> dict[str, Any]:
    """What a method asks for, and nothing else; the student's outputs are leaves. The teacher's maps are smaller."""
    needs = methods.needs(methods.load(name), params_of(name))
    student, teacher = ((3, 4, 6, 7), 16), ((5, 4, 8, 9), 12)
    networks = {"student": student, "teacher": teacher, "negative": student, "teacher_negative": teacher}
    result: dict[str, Any] = {"labels": (torch.arange(SEEDS * IMAGES) % CLASSES).view(SEEDS, IMAGES)}
    for i, (network, sizes) in enumerate(networks.items(), start=1):
        if network in ("student", *needs):
            result[network] = outputs(100 * i, *sizes)
            if "features" not in needs:
                result[network] = Outputs(result[network].logits, {})
    if "index" in needs:
        result["index"] = 7 * torch.arange(SEEDS * IMAGES).view(SEEDS, IMAGES) % TRAINING_IMAGES
    if draw := getattr(methods.load(name), "draw", None):
        split, random = ByClass(np.arange(TRAINING_IMAGES) % CLASSES), np.random.default_rng(0)
        drawings = [Drawing(index.numpy(), split, random) for index in result["index"]]
        result["drawn"] = torch.stack([draw(drawing, params_of(name)) for drawing in drawings])
    result["student"].map(Tensor.requires_grad_)
    return result


def adapters_of(name: str, seen: dict[str, Any]) -> list[nn.Module]:
    module = methods.load(name)
    if not hasattr(module, "adapters"):
        return []
    student, teacher = (seen[network].map(lambda t: t[0].detach()) for network in ("student", "teacher"))
    images = {"images": TRAINING_IMAGES} if "index" in seen else {}
    make = partial(module.adapters, student, teacher, params_of(name), **images)
    return [models.seeded(seed, make).double() for seed in range(SEEDS)]


@pytest.mark.parametrize("name", methods.names())
def test_all_seeds_at_once_equal_each_alone(name: str) -> None:
    """With NEEDS only; and every parameter, and of the layers those that are named, get a gradient."""
    seen = given(name)
    modules = adapters_of(name, seen)
    state: tuple[State, ...] = stack_module_state(modules) if modules else ()

    def loss(seen: dict[str, Any], *state: State) -> Tensor:
        adapters: Any = partial(functional_call, modules[0], state) if modules else None
        batch = Batch(**seen, epoch=torch.tensor(2.0).double(), adapters=adapters)
        return total(methods.load(name).loss(batch, params_of(name)), f"method {name}")

    def of(seed: int, value: Any) -> Any:
        return value.map(lambda t: t[seed]) if isinstance(value, Outputs) else value[seed]

    together = torch.vmap(loss)(seen, *state)
    for seed in range(SEEDS):
        own: list[State] = [{key: value[seed] for key, value in tensors.items()} for tensors in state]
        alone = loss({key: of(seed, value) for key, value in seen.items()}, *own)
        assert together[seed].item() == pytest.approx(alone.item(), rel=1e-12)
    logits, features = seen["student"]
    leaves = {**features, **(state[0] if state else {}), "logits": logits}
    gradients = dict(
        zip(leaves, torch.autograd.grad(together.sum(), [*leaves.values()], allow_unused=True), strict=True)
    )
    reached = [key for key, gradient in gradients.items() if gradient is not None and gradient.any()]
    expected = [*getattr(params_of(name), "layers", []), *(state[0] if state else {}), "logits"]
    assert reached == [key for key in leaves if key in expected]
    assert all(gradients[key].isfinite().all() for key in reached)


def dkd_terms(change: Callable[[Tensor], Tensor] = Tensor.double, epoch: Any = 1.0, **params: Any) -> dict[str, Term]:
    student, teacher = (Outputs(change(fill((5, 4), seed, 3.0)), {}) for seed in (11, 12))
    made: dict[str, Any] = {"ce": 1, "tckd": 1, "nckd": 8, "temperature": 4, "warmup": 20} | params
    return dkd.loss(Batch(torch.arange(5) % 4, student, teacher, epoch=epoch), dkd.Params(**made))


def test_dkd_warms_up() -> None:
    """From 1 / warmup in the first epoch to 1, the cross-entropy at its weight throughout."""
    for epoch, share in ((torch.tensor(1.0), 1 / 20), (10.0, 1 / 2), (torch.tensor(200.0), 1)):
        weights = [float(term.weight) for term in dkd_terms(epoch=epoch).values()]
        assert weights == pytest.approx([1, share, 8 * share])
    assert [float(term.weight) for term in dkd_terms(warmup=0).values()] == [1, 1, 8]


def test_dkd_in_half_precision() -> None:
    """The logit that takes a class out is beyond float16."""
    assert total(dkd_terms(Tensor.half)).item() == pytest.approx(total(dkd_terms()).item(), rel=2e-3)


def test_dkd_of_z_scores() -> None:
    found, expected = total(dkd_terms(ce=0, standardize=True)), total(dkd_terms(z_score, ce=0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["loss", "epoch", "test_accuracy", "violated_triplets", "KL(t||s)", "", "x" * 101])
def test_a_term_s_name_is_no_other_column_s_and_fit_for_a_metric(name: str) -> None:
    terms = {"ce": Term(1, torch.ones(())), name: Term(0.5, torch.ones(()))}
    with pytest.raises(UserError, match=re.escape(f"method mine: found a term called {name!r}")):
        total(terms, "method mine")
