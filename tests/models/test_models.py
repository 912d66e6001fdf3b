"""The networks: sizes, features, initial weights, what they refuse; dropout."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tripletkd import models
from tripletkd.errors import UserError
from tripletkd.models.dropout import Dropout

FEATURES = {"stage1", "stage2", "stage3", "embedding"}

# RepDistiller's models for 3 x 32 x 32 images and 100 classes; the paper's networks by hand
PARAMETERS = {
    "paper_teacher": 1_267_716,
    "paper_student": 172_740,
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
}
SMALL = ["paper_teacher_quarter", "paper_student_quarter", "resnet8", "resnet8x4", "wrn_16_2", "vgg8"]


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_count_is_the_public_one(name: str, count: int) -> None:
    assert models.parameter_count(models.build(name, (32, 32, 3), 100, seed=1)) == count


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (64, 3)])
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_forward_gives_logits_maps_and_an_embedding(name: str, size: int, channels: int) -> None:
    network = models.build(name, (size, size, channels), 10, seed=1)
    logits, features = network(torch.zeros(2, channels, size, size))
    assert logits.shape == (2, 10)
    assert set(features) == FEATURES
    maps = [features[f"stage{i}"] for i in (1, 2, 3)]
    assert all(m.dim() == 4 and m.shape[2] == m.shape[3] for m in maps)
    assert all(before.shape[2] >= after.shape[2] for before, after in pairwise(maps))
    assert features["embedding"].dim() == 2


# --- what holds for every network, on the smallest images that it takes -----------------------------------------------


def images() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", models.NETWORKS)
def test_a_network_names_its_features_and_its_gradient_reaches_every_parameter(name: str) -> None:
    network = models.build(name, (8, 8, 3), 10, seed=1).eval()  # in training, batch norm takes the bias before it away
    logits, features = network(images())
    assert logits.shape == (8, 10) and logits.isfinite().all()
    assert set(features) == FEATURES and all(len(feature) == 8 for feature in features.values())
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True)
    assert [n for n, g in zip(names, gradients, strict=True) if g is None or not (g.isfinite().all() and g.any())] == []


@torch.no_grad()
@pytest.mark.parametrize("name", models.NETWORKS)
def test_a_network_s_file_holds_all_that_it_computes_with(name: str, tmp_path: Path) -> None:
    """Batch norm's statistics too, which a pass in training mode has moved."""
    network, other = (models.build(name, (8, 8, 3), 10, seed) for seed in (1, 2))
    network(images())
    save_file(models.weights(network), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    (logits, features), again = network.eval()(images()), other.eval()(images())
    assert torch.equal(logits, again.logits)
    assert all(torch.equal(feature, again.features[key]) for key, feature in features.items())


# name -> shapes of stage1, stage2, stage3 and embedding for 32 x 32 pixels
SHAPES = {
    "resnet8": [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)],
    "resnet8x4": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)],
    "wrn_16_2": [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)],
    "vgg8": [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512,)],
    "paper_student": [(32, 16, 16), (32, 8, 8), (64, 4, 4), (128,)],
}


@pytest.mark.parametrize(("name", "shapes"), SHAPES.items())
def test_features_have_the_study_s_shapes(name: str, shapes: list[tuple[int, ...]]) -> None:
    features = models.build(name, (32, 32, 3), 100, seed=1)(torch.zeros(2, 3, 32, 32)).features
    assert [tuple(features[key].shape[1:]) for key in ("stage1", "stage2", "stage3", "embedding")] == shapes


@pytest.mark.parametrize("name", [*models.NETWORKS, "torchvision/shufflenet_v2_x0_5"])
def test_a_seed_gives_the_same_weights_twice_and_another_seed_others(name: str) -> None:
    first, again, other = (models.weights(models.build(name, (32, 32, 3), 10, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].dim() == 4)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8"])
def test_initial_weights_are_the_study_s(name: str) -> None:
    """Convolutions normal with variance 2 / (k k outputs), batch norm the identity, the classifier by architecture."""
    network = models.build(name, (32, 32, 3), 100, seed=1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            expected = (2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    classifier = network.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    uniform = (1 / (3 * classifier.in_features)) ** 0.5  # PyTorch's default
    assert classifier.weight.std().item() == pytest.approx(0.01 if name == "vgg8" else uniform, rel=0.05)
    assert (classifier.bias == 0).all() == (name != "resnet20")


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    models.build("resnet8", (32, 32, 3), 10, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(7, 7, 3), (32, 28, 3)])
def test_images_that_are_too_small_or_not_square_are_refused(name: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=f"{name} takes square images of at least 8 x 8 pixels"):
        models.build(name, shape, 10, seed=1)


# --- torchvision ------------------------------------------------------------------------------------------------------


def test_torchvision_network_has_an_embedding_and_dropout_by_seed() -> None:
    network = models.build("torchvision/mobilenet_v3_small", (32, 32, 3), 10, seed=1)
    logits, features = network(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {"embedding": (2, 1024)}
    kinds = [type(module) for module in network.modules()]
    assert Dropout in kinds and nn.Dropout not in kinds


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet18", (28, 28, 1), r"torchvision/resnet18 takes RGB images, the data set has 1 channel"),
        ("alexnet", (32, 32, 3), r"torchvision/alexnet does not take images of 32 x 32 pixels"),
        ("efficientnet_b0", (32, 32, 3), r"torchvision/efficientnet_b0 drops whole blocks"),
        ("squeezenet1_1", (64, 64, 3), r"torchvision/squeezenet1_1 is not usable here"),
    ],
)
def test_torchvision_network_that_does_not_fit_is_named(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.build(f"torchvision/{name}", shape, 10, seed=1)


def test_known_names() -> None:
    assert all(models.known(name) for name in [*models.NETWORKS, "torchvision/resnet18"])
    assert not any(models.known(name) for name in ("resnet18", "torchvision/", "torchvision/resnet19", ""))


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_drops_anew_each_step_and_apart_for_each_seed() -> None:
    layers = [models.seeded(seed, lambda: Dropout(0.5)) for seed in (1, 2, 3)]
    ones = torch.ones(4, 1000)
    first, second = ([layer(ones) for layer in layers] for _ in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert all(set(x.unique().tolist()) == {0.0, 2.0} for x in first)
    assert torch.stack(first).mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(layers[0].eval()(ones), ones)
