"""The networks, by name: the paper's, the field's, torchvision's. `forward` returns logits and features for methods."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Problem
from .methods._terms import Outputs
from .networks import FIELD


class Dropout(nn.Module):
    """Dropout whose noise is a function of a key and a step counter, both buffers.

    Trained alone or stacked with other seeds, resumed from a checkpoint or not, a network drops the same units: the
    generator's whole state is in its buffers. The noise is Widynski's "squares" generator (arXiv 2004.06278, four
    rounds), counter = step * 2^32 + index of the element, in wrapping 64-bit integer arithmetic, on any device.
    """

    key: Tensor
    step: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        # An odd 62-bit key from the generator that also draws the initial weights: a stream a layer and a seed.
        self.register_buffer("key", torch.randint(2**62, ()) | 1, persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, units, ...], or of several folded seeds [B, S * units, ...] with key and step [S]."""
        if not self.training or self.p == 0.0:
            return x
        key, step = (t.view(1, -1, *(1 for _ in x.shape[1:])) for t in (self.key, self.step))
        units = x.unflatten(1, (key.numel(), -1))
        index = torch.arange(units[:, 0].numel(), device=x.device).view_as(units[:, 0]).unsqueeze(1)
        keep = _uniform((step << 32) + index, key) >= self.p
        self.step.add_(1)
        return (units * keep / (1.0 - self.p)).flatten(1, 2)


def _uniform(counter: Tensor, key: Tensor) -> Tensor:
    """Numbers in [0, 1), 24 bits each, from int64 counters and a key."""
    x = y = counter * key
    z = y + key
    for addend in (y, z, y):
        x = x * x + addend
        x = (x << 32) | ((x >> 32) & 0xFFFFFFFF)
    return (((x * x + z) >> 40) & 0xFFFFFF) / 2.0**24


class PaperTeacher(nn.Module):
    """The teacher of Oki et al.: five 3x3 convolutions, each relu THEN batch norm, pooled after 1, 2 and 5; three fc.

    With width 32 and 3 x 32 x 32 images: conv 3-32, 32-32, 32-64, 64-64, 64-128; fc 2048-512-128-classes.
    Other widths and image sizes scale it. Features: stage1 to stage3 (after pooling), embedding (before the logits).
    """

    foldable = True  # see ensemble.fold

    def __init__(self, channels: int, size: int, classes: int, width: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        w = width
        for i, (before, after) in enumerate(
            [(channels, w), (w, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w)], start=1
        ):
            self.add_module(f"conv{i}", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"batchnorm{i}", nn.BatchNorm2d(after))
        self.fc1 = nn.Linear(4 * w * (size // 8) ** 2, 16 * w)
        self.fc2 = nn.Linear(16 * w, 4 * w)
        self.fc3 = nn.Linear(4 * w, classes)
        self.drop1 = Dropout(dropout)
        self.drop2 = Dropout(dropout)

    def _block(self, i: int, x: Tensor) -> Tensor:
        return self.get_submodule(f"batchnorm{i}")(F.relu(self.get_submodule(f"conv{i}")(x)))

    def forward(self, x: Tensor) -> Outputs:
        """x: images [B, channels, size, size]."""
        stage1 = F.max_pool2d(self._block(1, x), 2)
        stage2 = F.max_pool2d(self._block(2, stage1), 2)
        stage3 = F.max_pool2d(self._block(5, self._block(4, self._block(3, stage2))), 2)
        hidden = self.drop1(F.relu(self.fc1(stage3.flatten(1))))
        embedding = self.drop2(F.relu(self.fc2(hidden)))
        return Outputs(
            self.fc3(embedding), {"stage1": stage1, "stage2": stage2, "stage3": stage3, "embedding": embedding}
        )


class PaperStudent(nn.Module):
    """The student of Oki et al.: three 3x3 convolutions, relu and pooling after each, two linear layers, no batch norm.

    With width 32 and 3 x 32 x 32 images: conv 3-32, 32-32, 32-64; fc 1024-128-classes.
    Other widths and image sizes scale it. Features as in PaperTeacher.
    """

    foldable = True

    def __init__(self, channels: int, size: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc1 = nn.Linear(2 * width * (size // 8) ** 2, 4 * width)
        self.fc2 = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Outputs:
        """x: images [B, channels, size, size]."""
        # The relu of the largest is the largest relu, of a quarter of the numbers.
        stage1 = F.relu(F.max_pool2d(self.conv1(x), 2))
        stage2 = F.relu(F.max_pool2d(self.conv2(stage1), 2))
        stage3 = F.relu(F.max_pool2d(self.conv3(stage2), 2))
        embedding = F.relu(self.fc1(stage3.flatten(1)))
        return Outputs(
            self.fc2(embedding), {"stage1": stage1, "stage2": stage2, "stage3": stage3, "embedding": embedding}
        )


class TorchvisionNetwork(nn.Module):
    """An untrained image classifier of torchvision.models, its last linear layer kept apart for the embedding's sake.

    Its dropout layers become ours, a function of the seed. Problem for what does not fit: images that are not RGB or
    too small for it, blocks dropped by PyTorch's global generator, several outputs, no linear layer at the end.
    """

    foldable = False  # it may hold layers that mix channels

    def __init__(self, name: str, channels: int, size: int, classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model
        from torchvision.ops import StochasticDepth

        if channels != 3:
            raise Problem(f"torchvision/{name} takes RGB images, the data set has {channels} channel(s)")
        self.body: nn.Module = get_model(name, num_classes=classes, weights=None)
        self.head: nn.Module = nn.Identity()
        place = ""
        for inner, module in list(self.body.named_modules()):
            if isinstance(module, StochasticDepth):
                raise Problem(f"torchvision/{name} drops whole blocks by a generator that no seed of a run reaches")
            if isinstance(module, nn.Dropout):
                self.body.set_submodule(inner, Dropout(module.p))
            elif isinstance(module, nn.Linear):
                place, self.head = inner, module
        if place:
            self.body.set_submodule(place, nn.Identity())
        self._try(name, size)

    def _try(self, name: str, size: int) -> None:
        """Two images through a copy in training mode: only then do some networks have further outputs."""
        try:
            embedding = copy.deepcopy(self.body)(torch.zeros(2, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise Problem(f"torchvision/{name} does not take images of {size} x {size} pixels: {error}") from None
        if not isinstance(embedding, Tensor) or embedding.shape != (2, getattr(self.head, "in_features", None)):
            raise Problem(f"torchvision/{name} is not usable here: its one output must come from a linear layer")

    def forward(self, x: Tensor) -> Outputs:
        """x: images [B, 3, size, size]."""
        embedding = self.body(x)
        return Outputs(self.head(embedding), {"embedding": embedding})


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

    Problem if the images are too small, not square, or not what the network takes.
    """
    height, width, channels = image_shape
    if height != width or height < 8:
        raise Problem(f"{name} takes square images of at least 8 x 8 pixels, the data set has {height} x {width}")
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
