"""Label smoothing, mixup and cutmix, against PyTorch's and torchvision's own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_run import FUSED, PARAMS, SHORT, Small, digits
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from tripletkd.data.batches import ByClass, Drawing
from tripletkd.errors import UserError
from tripletkd.methods.functional import cross_entropy
from tripletkd.training import mixup
from tripletkd.training.distributed import ParallelTrainer, Processes
from tripletkd.training.optim import MultiStep

LABELS = torch.tensor([[0, 2, 1, 3, 3], [1, 1, 0, 2, 0]])
IMAGES = torch.rand(2, 5, 3, 10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BRIEF = replace(SHORT, epochs=2, schedule=MultiStep(decay_epochs=(1,), decay_factor=0.1))


def test_smoothed_labels_have_the_cross_entropy_of_pytorch() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    soft = mixup.shares(LABELS[0], 4, 0.1, torch.float64)
    expected = F.cross_entropy(logits, LABELS[0], label_smoothing=0.1)
    torch.testing.assert_close(cross_entropy(logits, soft), expected)


@pytest.mark.parametrize(("boxed", "share", "row", "column"), [(0, 0.3, 0, 0), (1, 0.6, 0.5, 0.9), (1, 0.0, 0.0, 0.0)])
def test_a_mixture_is_torchvision_s(
    boxed: int, share: float, row: float, column: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first seed; the second has a mixture of its own, which takes nothing of its images."""
    transform: Any = (v2.CutMix if boxed else v2.MixUp)(num_classes=4)
    half = 0.5 * (1 - share) ** 0.5
    middle, reach = [int(row * 10), int(column * 12)], [int(half * 10), int(half * 12)]
    low, high = (
        [max(a - b, 0) for a, b in zip(middle, reach, strict=True)],
        [a + b for a, b in zip(middle, reach, strict=True)],
    )
    (top, left), (bottom, right) = low, (min(high[0], 10), min(high[1], 12))
    area = 1 - (bottom - top) * (right - left) / 120
    params = {"box": (left, top, right, bottom), "lam_adjusted": area} if boxed else {"lam": share}
    own = LABELS[0]
    params |= {"labels": own, "batch_size": 5}
    expected = [transform.transform(each, params) for each in (IMAGES[0], own)]
    drawn = torch.tensor([[boxed, share, row, column], [0, 1, 0, 0]], dtype=torch.float64)
    images, labels = mixup.mixed(IMAGES, mixup.shares(LABELS, 4, 0.0, torch.float64), drawn)
    torch.testing.assert_close(images[0], expected[0])
    torch.testing.assert_close(labels[0], expected[1].double())
    assert torch.equal(images[1], IMAGES[1])


def test_what_is_drawn_is_of_either_kind_and_its_share_of_its_beta_distribution() -> None:
    recipe, random = replace(SHORT, mixup=0.2, cutmix=1.0), np.random.default_rng(0)
    context = Drawing(np.arange(3), ByClass(np.arange(3)), random)
    drawn = torch.stack([mixup.draw(context, recipe) for _ in range(4000)])
    boxed = drawn[:, 0] == 1
    assert abs(boxed.double().mean() - 0.5) < 0.03
    for part, deviation in ((drawn[boxed, 1], 12**-0.5), (drawn[~boxed, 1], (4 * 1.4) ** -0.5)):
        assert abs(part.mean() - 0.5) < 0.05 and abs(part.std() - deviation) < 0.02


def fitted(method: str, seeds: list[int], **changes: Any) -> dict[int, Tensor]:
    found = Small(method, recipe=replace(BRIEF, **changes), params=PARAMS[method], compute=FUSED).fit(seeds, digits())
    return {seed: torch.cat([p.detach().flatten() for p in n.parameters()]) for seed, n in found.networks.items()}


@pytest.mark.parametrize("changes", [{"mixup": 0.2}, {"cutmix": 1.0, "label_smoothing": 0.1}, {"label_smoothing": 0.1}])
def test_a_mixed_training_is_a_function_of_its_seed(changes: dict[str, float]) -> None:
    group, alone, plain = fitted("kd", [1, 2], **changes), fitted("kd", [2], **changes), fitted("kd", [2])
    torch.testing.assert_close(group[2], alone[2], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(alone[2], plain[2])


@pytest.mark.fault
@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        *(
            (name, {"mixup": 0.2}, "recipe.mixup: found 0.2; .* a mixture of two has no class")
            for name in ("pair", "crd")
        ),
        ("kd_triplet", {"cutmix": 1.0}, "recipe.cutmix: found 1.0; kd_triplet asks for images of other classes"),
        ("dkd", {"label_smoothing": 0.1}, "recipe.label_smoothing: found 0.1; dkd asks for the class of an image"),
        ("dkd", {"mixup": 0.2}, "recipe.mixup: found 0.2; dkd"),
    ],
)
def test_a_method_that_asks_for_classes_gets_no_mixture(method: str, changes: dict[str, Any], message: str) -> None:
    networks = ("resnet14", "resnet8")
    with pytest.raises(UserError, match=message):
        Small(method, networks, recipe=replace(BRIEF, **changes)).trainer(digits(), [1])


@pytest.mark.fault
def test_several_processes_mix_nothing() -> None:
    """An image would be mixed with one that another process has."""
    trainer = Small("kd", recipe=replace(BRIEF, mixup=0.2), params=PARAMS["kd"]).trainer(digits(), [1])
    with pytest.raises(UserError, match="found mixup or cutmix, which mix an image with one"):
        ParallelTrainer(trainer, object.__new__(Processes))
