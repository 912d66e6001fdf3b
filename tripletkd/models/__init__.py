"""The registry of networks: the paper's, those of the CIFAR comparisons, torchvision's and timm's.

Every network is made for (channels, size, classes) and takes images [B, channels, size, size]; its `forward` returns
Outputs, the logits and the features that methods may compare. A new network is one entry in NETWORKS. Its attribute
`fusible` says whether seeds may be computed together (see training/stacked_seeds.py).
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tripletkd.errors import UserError
from tripletkd.models.cifar import VGG, ResNet, WideResNet
from tripletkd.models.external import STAGES, parse
from tripletkd.models.paper import PaperStudent, PaperTeacher, SecondStudent
from tripletkd.models.timm import TimmNetwork, is_known
from tripletkd.models.torchvision import TorchvisionNetwork
from tripletkd.streams import torch_seed

TORCHVISION = "torchvision/"  # precedes the name of an image classifier of torchvision.models
TIMM = "timm/"  # of timm
COLLECTIONS = (TORCHVISION, TIMM)


class Networks(dict[str, Callable[[int, int, int], nn.Module]]):
    """What makes a network, by its name; those of timm, timm/NAME, are not listed."""

    def __missing__(self, name: str) -> Callable[[int, int, int], nn.Module]:
        if not name.startswith(TIMM):
            raise KeyError(name)
        return partial(TimmNetwork, name.removeprefix(TIMM))


# name in params.yaml -> (channels, size, classes) -> network; the quarter ones are the paper's with width 8 for 32
NETWORKS = Networks(
    {
        "paper_teacher": PaperTeacher,
        "paper_student": PaperStudent,
        "paper_second_student": SecondStudent,
        "paper_teacher_quarter": partial(PaperTeacher, width=8),
        "paper_student_quarter": partial(PaperStudent, width=8),
        **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
        **{f"resnet{depth}x4": partial(ResNet, depth=depth, widths=(32, 64, 128, 256)) for depth in (8, 32)},
        **{
            f"wrn_{depth}_{widen}": partial(WideResNet, depth=depth, widen=widen)
            for depth in (16, 40)
            for widen in (1, 2)
        },
        "vgg8": partial(VGG, depths=(1, 1, 1, 1, 1)),
        "vgg11": partial(VGG, depths=(1, 1, 2, 2, 2)),
        "vgg13": partial(VGG, depths=(2, 2, 2, 2, 2)),
    }
)


def known(name: str) -> bool:
    """Say whether `build` takes that name.

    It is one of NETWORKS, or torchvision/NAME or timm/NAME for an image classifier there, perhaps followed by a colon
    and up to three of its modules, whose outputs are its stages: torchvision/resnet34:layer1,layer2,layer3.

    Raises:
        UserError: timm is asked for and not installed, or there are more modules.
    """
    if not name.startswith(COLLECTIONS):
        return name in NETWORKS
    collection, _, inner = name.partition("/")
    network, _ = parse(inner)
    if collection == "timm":
        return is_known(network)
    import torchvision.models

    return network in torchvision.models.list_models(module=torchvision.models)


def layers(name: str) -> tuple[str, ...]:
    """List the features that a `known` network returns, which a method's `layers` may name."""
    return (*(parse(name)[1] if name.startswith(COLLECTIONS) else STAGES), "embedding")


def definition(name: str) -> tuple[Callable[..., nn.Module], tuple[object, ...], dict[str, object]]:
    """Return the class of a `known` network, and the arguments with which NETWORKS has it.

    The network is class(*positional, channels, size, classes, **keywords).
    """
    if name.startswith(TORCHVISION):
        return TorchvisionNetwork, (name.removeprefix(TORCHVISION),), {}
    made = partial(NETWORKS[name])  # of a partial, a copy
    return made.func, made.args, made.keywords


def build(name: str, image_shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """Build a network with initial weights drawn from a seed.

    Args:
        name: a `known` name.
        image_shape: height, width and channels of the images.
        classes: the number of logits.
        seed: determines the initial weights, and dropout's noise in training.

    Returns:
        The network in training mode, on the CPU.

    Raises:
        UserError: the images are too small, not square, or not what the network takes.
    """
    height, width, channels = image_shape
    if height != width or height < 8:
        raise UserError(f"{name} takes square images of at least 8 x 8 pixels, the data set has {height} x {width}")
    make, positional, keywords = definition(name)
    make = partial(make, *positional, channels, height, classes, **keywords)
    return seeded(torch_seed(seed, "network"), make)


def seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Call `make` with PyTorch's global generator seeded, and leave the generator as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def weights(network: nn.Module) -> OrderedDict[str, Tensor]:
    """Copy to the CPU what a network's file holds: its parameters and its persistent buffers, by name."""
    return OrderedDict((name, tensor.detach().cpu().contiguous()) for name, tensor in network.state_dict().items())


def parameter_count(network: nn.Module) -> int:
    """Count the numbers that training changes, that is without buffers."""
    return sum(p.numel() for p in network.parameters())
