"""What networks of other libraries need to be trained here: noise of the seed's own, an embedding, named features."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from tripletkd.errors import UserError
from tripletkd.models.dropout import Dropout, StochasticDepth
from tripletkd.types import Outputs

STAGES = ("stage1", "stage2", "stage3")


def parse(name: str) -> tuple[str, dict[str, str]]:
    """Split a name such as resnet34:layer2,layer3: the network, and the modules whose outputs are its stages.

    Returns:
        The network's name, and the paths of modules by "stage1", "stage2", "stage3".

    Raises:
        UserError: If there are more modules than stages, or one has no name.
    """
    network, _, modules = name.partition(":")
    paths = modules.split(",") if modules else []
    if "" in paths:
        raise UserError(f"{name}: found an empty place between commas, expected the path of a module")
    if len(paths) > len(STAGES):
        raise UserError(f"{name}: found {len(paths)} modules, expected at most {len(STAGES)}: {', '.join(STAGES)}")
    return network, dict(zip(STAGES, paths, strict=False))


class ForeignNetwork(nn.Module):
    """Wraps an image classifier of another library.

    A subclass says how its body computes an embedding, and its logits from that. Dropout and stochastic depth are
    replaced by ours, whose noise is a function of the seed. Features are copies, for some blocks add to them in place.

    Args:
        called: Its name for messages, such as torchvision/resnet18.
        body: The classifier.
        stages: Paths of modules in it whose outputs are features, by the features' names.
        drops: The library's module of stochastic depth, and what makes ours of one.

    Raises:
        UserError: If it has no such module.
    """

    fusible = False  # it may hold modules that mix channels

    def __init__(
        self,
        called: str,
        body: nn.Module,
        stages: dict[str, str],
        drops: tuple[type[nn.Module], Callable[..., StochasticDepth]],
    ) -> None:
        super().__init__()
        self.called, self.body, self.stages = called, body, stages
        kind, ours = drops
        for path, module in list(body.named_modules()):
            if isinstance(module, kind):
                body.set_submodule(path, ours(module))
            elif isinstance(module, nn.Dropout):
                body.set_submodule(path, Dropout(module.p))
            elif getattr(module, "inplace", False) is True:
                module.inplace = False
        known = dict(body.named_modules())
        for path in stages.values():
            if path not in known:
                named = [name for name in known if name and name.count(".") <= 1]
                raise UserError(f"{called}: found no module {path!r}, expected one such as {', '.join(named[:20])}")

    def embed(self, images: Tensor) -> Tensor:
        """Compute the embedding [B, C] of images [B, channels, size, size]."""
        raise NotImplementedError

    def classify(self, embedding: Tensor) -> Tensor:
        """Compute the logits [B, classes] of an embedding."""
        raise NotImplementedError

    def original_name(self, name: str) -> str:
        """Say what the library calls a tensor of the state dict."""
        return name.removeprefix("body.")

    def forward(self, x: Tensor) -> Outputs:
        """Return the Outputs for images [B, channels, size, size]."""
        features = self.features(x)
        return Outputs(self.classify(features["embedding"]), features)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the embedding of images [B, channels, size, size], and the output of each module of a stage."""
        features: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for stage, path in self.stages.items():
                hook = self.body.get_submodule(path).register_forward_hook(partial(_keep, features, stage))
                hooks.callback(hook.remove)
            features["embedding"] = self.embed(x)
        return features

    def check(self, channels: int, size: int, width: int) -> None:
        """Pass two images through a copy in training mode: only then do some networks have further outputs, and noise.

        Args:
            channels: Of the images.
            size: Their height and width.
            width: Of the embedding.

        Raises:
            UserError: If the network does not take them, or is not usable here.
        """
        images = torch.linspace(-1, 1, 2 * channels * size * size).view(2, channels, size, size)
        noise, probe = torch.random.get_rng_state(), copy.deepcopy(self)
        try:
            features = probe.features(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(f"{self.called} does not take images of {size} x {size} pixels: {error}") from None
        if _shape(features["embedding"]) != (2, width):
            raise UserError(f"{self.called} is not usable here: its one output must come from a linear layer")
        for stage, path in self.stages.items():
            if (shape := _shape(features.get(stage))) is None or len(shape) != 4:
                found = "nothing" if shape is None else list(shape)
                raise UserError(f"{self.called}: {path} returns {found} for two images, expected maps [B, C, H, W]")
        if not torch.equal(noise, torch.random.get_rng_state()):
            raise UserError(
                f"{self.called} draws from a generator that no seed of a run reaches; expected another network"
            )


def _keep(features: dict[str, Tensor], stage: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
    features[stage] = output.clone() if isinstance(output, Tensor) else output  # a block may add to it in place


def _shape(output: object) -> Sequence[int] | None:
    return tuple(output.shape) if isinstance(output, Tensor) else None
