"""The networks, by name: the paper's, the field's, torchvision's. `forward` returns logits and features for methods."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tripletkd.errors import UserError
from tripletkd.models.cifar import FIELD
from tripletkd.models.paper import PaperStudent, PaperTeacher
from tripletkd.models.torchvision import TorchvisionNetwork

# name in params.yaml -> (channels, size, classes) -> network; the quarter ones are the paper's with width 8 for 32
NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "paper_teacher": PaperTeacher,
    "paper_student": PaperStudent,
    "paper_teacher_quarter": partial(PaperTeacher, width=8),
    "paper_student_quarter": partial(PaperStudent, width=8),
    **FIELD,
}
TORCHVISION = "torchvision/"  # before a name of torchvision.models


def known(name: str) -> bool:
    """Whether `build` takes that name: one of NETWORKS, or torchvision/NAME for an image classifier there."""
    if not name.startswith(TORCHVISION):
        return name in NETWORKS
    import torchvision.models

    return name.removeprefix(TORCHVISION) in torchvision.models.list_models(module=torchvision.models)


def build(name: str, image_shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """A network of a `known` name for images [H, W, C], its initial weights drawn from `seed`.

    UserError if the images are too small, not square, or not what the network takes.
    """
    height, width, channels = image_shape
    if height != width or height < 8:
        raise UserError(f"{name} takes square images of at least 8 x 8 pixels, the data set has {height} x {width}")
    make = NETWORKS.get(name) or partial(TorchvisionNetwork, name.removeprefix(TORCHVISION))
    return seeded(seed, partial(make, channels, height, classes))


def seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose initial weights are drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def weights(network: nn.Module) -> OrderedDict[str, Tensor]:
    """What a network's file holds: parameters and persistent buffers, on the CPU."""
    return OrderedDict((name, tensor.detach().cpu().contiguous()) for name, tensor in network.state_dict().items())


def parameter_count(network: nn.Module) -> int:
    """Trained numbers, without buffers."""
    return sum(p.numel() for p in network.parameters())
