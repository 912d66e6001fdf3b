"""What holds for every method in the training loop: the layers it names, its terms' names."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, fill
from torch import Tensor

from tripletkd import methods, models
from tripletkd.data.batches import ByClass, Drawing
from tripletkd.errors import UserError
from tripletkd.methods import dkd
from tripletkd.methods.functional import z_score
from tripletkd.types import Batch, Outputs, Term, total

IMAGES, CLASSES, TRAINING_IMAGES = 6, 10, 20


def outputs(seed: int, channels: Sequence[int], size: int) -> Outputs:
    """Of a network with so many channels and a first map of this size."""
    shapes: dict[str, tuple[int, ...]] = {
        f"stage{i + 1}": (n, size >> i, size >> i) for i, n in enumerate(channels[:3])
    }
    shapes |= {"embedding": (channels[3],), "logits": (CLASSES,)}
    made = {name: fill((IMAGES, *shape), seed + i, 2.0) for i, (name, shape) in enumerate(shapes.items())}
    return Outputs(made.pop("logits"), made)


@pytest.mark.parametrize("name", methods.names())
def test_what_a_method_names_is_what_it_learns_from(name: str) -> None:
    """It is given what it asks for, and nothing else; the layers it names and its adapters get a gradient."""
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text())["methods"]
    assert name in blocks, f"methods.{name}: missing in params.yaml, where each method has its parameters"
    block = blocks[name]
    module: Any = methods.load(name)
    params = module.Params(**{key: value for key, value in block.items() if key != "suites"})
    needs = methods.needs(module, params)
    student, teacher = outputs(100, (3, 4, 6, 7), 16), outputs(200, (5, 4, 8, 9), 12)  # the teacher's maps are smaller
    networks = {"student": student, "teacher": teacher, "negative": student, "teacher_negative": teacher}
    seen: dict[str, Any] = {"labels": torch.arange(IMAGES) % CLASSES, "epoch": torch.tensor(2.0).double()}
    for network in ({"student"} | needs) & networks.keys():
        seen[network] = networks[network] if "features" in needs else Outputs(networks[network].logits, {})
    sizes = {}
    if "index" in needs:
        seen["index"], sizes = 7 * torch.arange(IMAGES) % TRAINING_IMAGES, {"images": TRAINING_IMAGES}
    if hasattr(module, "draw"):
        split = ByClass(np.arange(TRAINING_IMAGES) % CLASSES)
        seen["drawn"] = module.draw(Drawing(seen["index"].numpy(), split, np.random.default_rng(0)), params)
    leaves: dict[str, Tensor] = {}
    if hasattr(module, "adapters"):
        make = partial(module.adapters, student, teacher, params, **sizes)
        seen["adapters"] = models.seeded(1, make).double()
        leaves |= seen["adapters"].named_parameters()
    seen["student"] = seen["student"].map(lambda t: t.clone().requires_grad_())
    leaves |= {**seen["student"].features, "logits": seen["student"].logits}
    expected = {key for key in leaves if key not in student.features or key in getattr(params, "layers", [])}
    loss = total(module.loss(Batch(**seen), params), f"method {name}")
    found = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
    gradients = {key: g for key, g in zip(leaves, found, strict=True) if g is not None and g.any()}
    assert gradients.keys() == expected and all(g.isfinite().all() for g in gradients.values())


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


def test_dkd_in_half_precision_and_of_z_scores() -> None:
    """The logit that takes a class out is beyond float16."""
    assert total(dkd_terms(Tensor.half)).item() == pytest.approx(total(dkd_terms()).item(), rel=2e-3)
    found, expected = total(dkd_terms(ce=0, standardize=True)), total(dkd_terms(z_score, ce=0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_term_s_name_is_no_other_column_s_and_fit_for_a_metric() -> None:
    for name in ("loss", "epoch", "test_accuracy", "violated_triplets", "KL(t||s)", "", "x" * 101):
        with pytest.raises(UserError, match=re.escape(f"method mine: found a term called {name!r}")):
            total({"ce": Term(1, torch.ones(())), name: Term(0.5, torch.ones(()))}, "method mine")
