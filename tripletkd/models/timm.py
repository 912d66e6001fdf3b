"""The image classifiers of timm, with initial weights drawn from the seed."""

from typing import Any

import torch
from torch import Tensor, nn

from tripletkd.errors import UserError
from tripletkd.models.dropout import StochasticDepth
from tripletkd.models.external import ForeignNetwork, parse

MISSING = "is not installed; `uv sync --extra timm` or `pip install timm` brings it, or choose another network"


class TimmNetwork(ForeignNetwork):
    """Wraps an untrained image classifier of timm.

    The feature embedding is what forward_head returns before the last linear layer.

    Args:
        name: the classifier's name in timm, and perhaps modules: resnet34:layer2,layer3.
        channels: the images' channels.
        size: the images' height and width.
        classes: the number of logits.

    Raises:
        UserError: timm is not there, the images are too small, or the classifier draws by PyTorch's global generator
            or does not end with one linear layer.
    """

    def __init__(self, name: str, channels: int, size: int, classes: int) -> None:
        if not is_known(name):
            raise UserError(f"timm/{name}: found no such network in timm")
        from timm import create_model
        from timm.layers.drop import DropPath
        from timm.models import get_pretrained_cfg

        name, stages = parse(name)
        said = get_pretrained_cfg(name)
        sized: dict[str, Any] = {"img_size": size} if said and said.fixed_input_size else {}
        try:
            body: Any = create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **sized)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            raise UserError(f"timm/{name} does not take images of {size} x {size} pixels: {error}") from None
        super().__init__(f"timm/{name}", body, stages, (DropPath, lambda module: StochasticDepth(module.drop_prob)))
        linear = {id(module): path for path, module in body.named_modules() if isinstance(module, nn.Linear)}
        self.last = linear.get(id(body.get_classifier()), "")
        if not self.last:
            raise UserError(f"timm/{name} is not usable here: its one output must come from a linear layer")
        self.head_name = f"body.{self.last}"
        self.check(channels, size, body.get_submodule(self.last).in_features)
        self._compare(channels, size)

    def _compare(self, channels: int, size: int) -> None:
        """Refuse a network that does more to its embedding than the last layer does."""
        images = torch.linspace(-1, 1, 2 * channels * size * size).view(2, channels, size, size)
        with torch.no_grad():
            theirs, ours = self.eval().body(images), self(images).logits
        self.train()
        if not ours.is_meta and not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-5):
            raise UserError(f"{self.called} is not usable here: its logits are no linear layer of its embedding")

    def embed(self, images: Tensor) -> Tensor:
        """Compute what the last linear layer takes."""
        body: Any = self.body
        embedding: Tensor = body.forward_head(body.forward_features(images), pre_logits=True)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Apply the last linear layer."""
        logits: Tensor = self.body.get_submodule(self.last)(embedding)
        return logits


def is_known(name: str) -> bool:
    """Say whether timm has a network of that name.

    Raises:
        UserError: If timm is not there.
    """
    try:
        import timm
    except ImportError:
        raise UserError(f"timm/{name}: timm {MISSING}") from None
    return bool(timm.is_model(name.partition(":")[0]))
