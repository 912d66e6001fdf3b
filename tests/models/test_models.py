"""The networks: sizes, features, initial weights, what they refuse; dropout."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tripletkd import models
from tripletkd.errors import UserError
from tripletkd.models import pretrained
from tripletkd.models.cifar import ResNet
from tripletkd.models.dropout import Dropout, StochasticDepth
from tripletkd.models.torchvision import TorchvisionNetwork
from tripletkd.streams import global_states

# Of RepDistiller's models for 3 x 32 x 32 images and 100 classes; of the paper's networks by hand.
COUNTS = {
    "paper_teacher": 1_267_716, "paper_student": 172_740, "paper_second_student": 167_908,
    "vgg8": 3_965_028, "vgg11": 9_277_284, "vgg13": 9_462_180,
    "wrn_16_1": 180_916, "wrn_16_2": 703_284, "wrn_40_1": 569_780, "wrn_40_2": 2_255_156, "resnet8": 83_892,
    "resnet8x4": 1_233_540, "resnet14": 181_108, "resnet20": 278_324, "resnet32": 472_756, "resnet32x4": 7_433_860,
    "resnet44": 667_188, "resnet56": 861_620, "resnet110": 1_736_564,
}  # fmt: skip
SHAPES = {  # of stage1, stage2, stage3 and embedding, likewise
    "resnet8": [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)],
    "resnet8x4": [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256,)],
    "wrn_16_2": [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)],
    "vgg8": [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512,)],
    "paper_student": [(32, 16, 16), (32, 8, 8), (64, 4, 4), (128,)],
    "paper_teacher": [(32, 16, 16), (32, 8, 8), (128, 4, 4), (128,)],
    "paper_second_student": [(16, 16, 16), (32, 8, 8), (64, 4, 4), (128,)],
}
SHALLOW = (
    "paper_teacher paper_student paper_second_student paper_teacher_quarter paper_student_quarter resnet8 resnet8x4 "
    "wrn_16_1 wrn_16_2 vgg8"
)
OWN = [name for name in models.NETWORKS if name not in (*COUNTS, *SHALLOW.split())]  # which others have added
FEATURES = ["stage1", "stage2", "stage3", "embedding"]


def test_parameters_and_features_are_the_study_s() -> None:
    counts, shapes = {}, {}
    for name in COUNTS:
        with torch.device("meta"):  # shapes are all that is wanted
            network = models.build(name, (32, 32, 3), 100, seed=1)
            logits, features = network(torch.zeros(2, 3, 32, 32))
        counts[name] = models.parameter_count(network)
        shapes[name] = {key: tuple(features[key].shape[1:]) for key in features}
        assert logits.shape == (2, 100)
    assert counts == COUNTS
    assert {name: shapes[name] for name in SHAPES} == {
        n: dict(zip(FEATURES, x, strict=True)) for n, x in SHAPES.items()
    }
    assert all([len(shapes[name][key]) for key in FEATURES] == [3, 3, 3, 1] for name in COUNTS)


@pytest.mark.parametrize("name", [*SHALLOW.split(), *OWN])
def test_weights_come_from_the_seed_learn_and_are_all_in_the_file(name: str, tmp_path: Path) -> None:
    """On the smallest images; the file has batch norm's statistics too, which a pass in training mode has moved."""
    network, again, other = (models.build(name, (8, 8, 3), 10, seed) for seed in (1, 1, 2))
    first, twin, others = map(models.weights, (network, again, other))
    assert all(torch.equal(first[key], twin[key]) for key in first)
    assert not any(torch.equal(first[key], others[key]) for key in first if first[key].dim() == 4)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = global_states()
    network(images)
    assert global_states() == before  # its noise, too, is a seed's
    save_file(models.weights(network), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    outputs, same = network.eval()(images), other.eval()(images)  # eval: else batch norm takes the bias before it away
    assert torch.equal(outputs.logits, same.logits) and outputs.logits.isfinite().all()
    assert all(torch.equal(feature, same.features[key]) for key, feature in outputs.features.items())
    assert set(outputs.features) >= ({*FEATURES} if name in SHALLOW.split() else {"embedding"})
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(outputs.logits.square().sum(), parameters, allow_unused=True)
    assert [n for n, g in zip(names, gradients, strict=True) if g is None or not (g.isfinite().all() and g.any())] == []


@pytest.mark.parametrize("name", ["paper_teacher_quarter", "paper_student_quarter", "resnet8", "wrn_16_2", "vgg8"])
def test_sizes_that_a_network_takes_and_refuses(name: str) -> None:
    for size, channels in ((8, 1), (28, 1), (64, 3)):
        network = models.build(name, (size, size, channels), 10, seed=1)
        assert network(torch.zeros(2, channels, size, size)).logits.shape == (2, 10)
    for shape in ((7, 7, 3), (32, 28, 3)):
        with pytest.raises(UserError, match=f"{name} takes square images of at least 8 x 8 pixels"):
            models.build(name, shape, 10, seed=1)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8"])
def test_initial_weights_are_the_study_s(name: str) -> None:
    """Convolutions normal with variance 2 / (k k outputs), batch norm the identity, the classifier by architecture."""
    before = torch.random.get_rng_state()
    network = models.build(name, (32, 32, 3), 100, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)  # PyTorch's own generator is left alone
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            expected = (2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    weight, bias = network.get_parameter("classifier.weight"), network.get_parameter("classifier.bias")
    uniform = (1 / (3 * weight.shape[1])) ** 0.5  # PyTorch's default
    assert weight.std().item() == pytest.approx(0.01 if name == "vgg8" else uniform, rel=0.05)
    assert (bias == 0).all() == (name != "resnet20")


def test_names_and_what_they_stand_for() -> None:
    named = ("torchvision/resnet18", "torchvision/resnet18:layer1", "timm/resnet18", "timm/resnet18:layer2,layer3")
    assert all(models.known(name) for name in [*models.NETWORKS, *named])
    wrong = ("resnet18", "torchvision/", "torchvision/resnet19", "", "resnet8:conv1", "timm/", "timm/nothing")
    assert not any(models.known(name) for name in wrong)
    assert models.layers("timm/resnet18:layer2,layer3") == ("stage1", "stage2", "embedding")
    with pytest.raises(UserError, match=r"found 4 modules, expected at most 3: stage1, stage2, stage3"):
        models.known("timm/resnet18:a,b,c,d")
    assert models.definition("resnet20") == (ResNet, (), {"depth": 20})
    assert models.definition("torchvision/resnet18") == (TorchvisionNetwork, ("resnet18",), {})


def test_torchvision_networks() -> None:
    """With an embedding and the seed's own dropout; one that does not fit is named."""
    network, again = (models.build("torchvision/mobilenet_v3_small", (32, 32, 3), 10, seed=1) for _ in range(2))
    logits, features = network(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10) and {key: tuple(x.shape) for key, x in features.items()} == {"embedding": (2, 1024)}
    assert torch.equal(logits, again(torch.zeros(2, 3, 32, 32)).logits)
    assert {type(module) for module in network.modules()} & {Dropout, nn.Dropout} == {Dropout}
    for name, shape, message in (
        ("resnet18", (28, 28, 1), "takes RGB images, the data set has 1 channel"),
        ("alexnet", (32, 32, 3), "does not take images of 32 x 32 pixels"),
        ("squeezenet1_1", (64, 64, 3), "is not usable here"),
    ):
        with pytest.raises(UserError, match=f"torchvision/{name} {message}"):
            models.build(f"torchvision/{name}", shape, 10, seed=1)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
@torch.no_grad()
def test_a_foreign_network_s_stages_are_the_outputs_of_the_modules_that_are_named(name: str) -> None:
    network = models.build(f"{name}:layer1,layer3", (32, 32, 3), 10, seed=1).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen: dict[str, torch.Tensor] = {}
    for stage, path in (("stage1", "body.layer1"), ("stage2", "body.layer3")):
        module = network.get_submodule(path)
        module.register_forward_hook(lambda *given, stage=stage: seen.update({stage: given[2]}))
    features = network(images).features
    assert list(features) == ["stage1", "stage2", "embedding"]
    assert all(torch.equal(features[stage], seen[stage]) for stage in seen) and seen["stage1"].shape == (2, 64, 8, 8)
    with pytest.raises(UserError, match=r":,layer1: found an empty place between commas"):
        models.build(f"{name}:,layer1", (32, 32, 3), 10, seed=1)
    with pytest.raises(UserError, match=f"{name}: found no module 'layer9', expected one such as conv1, bn1"):
        models.build(f"{name}:layer9", (32, 32, 3), 10, seed=1)
    with pytest.raises(UserError, match=f"{name}: fc returns .*, expected maps"):
        models.build(f"{name}:fc", (32, 32, 3), 10, seed=1)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
@torch.no_grad()
def test_features_are_what_a_module_gave_though_its_block_adds_to_it_in_place(name: str) -> None:
    network = models.build(f"{name}:layer1.0.bn2", (32, 32, 3), 10, seed=1).eval()
    images, seen = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    network.get_submodule("body.layer1.0.bn2").register_forward_hook(lambda *given: seen.append(given[2].clone()))
    assert torch.equal(network(images).features["stage1"], seen[0])


def test_timm_networks() -> None:
    """Of as many channels as the images have; the logits are those that timm computes with these weights."""
    network, again = (models.build("timm/resnet10t", (32, 32, 1), 10, seed=1) for _ in range(2))
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = network.eval()(images)
    assert outputs.logits.shape == (2, 10) and outputs.features["embedding"].shape == (2, 512)
    assert torch.equal(outputs.logits, again.eval()(images).logits)
    torch.testing.assert_close(outputs.logits, network.get_submodule("body")(images))
    assert pretrained.head_of(network) == "body.fc"
    with pytest.raises(UserError, match=r"timm/mobilenetv3_small_050_nothing: found no such network"):
        models.build("timm/mobilenetv3_small_050_nothing", (32, 32, 3), 10, seed=1)


def test_without_timm_a_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm/resnet18: timm is not installed; .*uv sync --extra timm"):
        models.known("timm/resnet18")


def test_stochastic_depth_comes_from_the_seed_and_spares_whole_images() -> None:
    """In a network that has it, and in ours: dropped images are 0, kept ones are scaled."""
    networks = [models.build("torchvision/efficientnet_b0", (32, 32, 3), 10, seed=1) for _ in range(2)]
    assert any(isinstance(module, StochasticDepth) for module in networks[0].modules())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first = networks[0](images).logits
    torch.manual_seed(2)
    assert torch.equal(first, networks[1](images).logits) and not torch.equal(first, networks[1](images).logits)
    layer = models.seeded(1, partial(StochasticDepth, 0.25))
    kept = torch.stack([layer(torch.ones(100, 3, 2))[:, 0, 0] for _ in range(20)])
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (kept > 0).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert not torch.equal(kept[0], kept[1])
    together = models.seeded(1, partial(StochasticDepth, 0.5, together=True))
    assert all(len(together(torch.ones(8, 2)).unique()) == 1 for _ in range(10))


def test_dropout_drops_anew_each_step_and_apart_for_each_seed() -> None:
    layers = [models.seeded(seed, partial(Dropout, 0.5)) for seed in (1, 2, 3)]
    ones = torch.ones(4, 1000)
    first, second = ([layer(ones) for layer in layers] for _ in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert all(set(x.unique().tolist()) == {0.0, 2.0} for x in first)
    assert torch.stack(first).mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(layers[0].eval()(ones), ones)
