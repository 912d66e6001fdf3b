"""The image classifiers of torchvision.models, with initial weights drawn from the seed."""

from torch import Tensor, nn

from tripletkd.errors import UserError
from tripletkd.models.dropout import StochasticDepth
from tripletkd.models.external import ForeignNetwork, parse


class TorchvisionNetwork(ForeignNetwork):
    """Wraps an untrained image classifier of torchvision.models.

    Its last linear layer is kept apart, so that the layer's inputs can be returned as the feature embedding.

    Args:
        name: the classifier's name in torchvision.models, and perhaps modules: resnet34:layer2,layer3.
        channels: the images' channels.
        size: the images' height and width.
        classes: the number of logits.

    Raises:
        UserError: the images are not RGB or too small, or the classifier draws by PyTorch's global generator, has
            several outputs, or does not end with a linear layer.
    """

    def __init__(self, name: str, channels: int, size: int, classes: int) -> None:
        from torchvision import ops
        from torchvision.models import get_model

        name, stages = parse(name)
        called = f"torchvision/{name}"
        if channels != 3:
            raise UserError(f"{called} takes RGB images, the data set has {channels} channel(s)")
        drops = ops.StochasticDepth, lambda module: StochasticDepth(module.p, module.mode == "batch")
        super().__init__(called, get_model(name, num_classes=classes, weights=None), stages, drops)
        linear = [(path, module) for path, module in self.body.named_modules() if isinstance(module, nn.Linear)]
        last: tuple[str, nn.Module] = linear[-1] if linear else ("", nn.Identity())
        self.last, self.head = last
        if self.last:
            self.body.set_submodule(self.last, nn.Identity())
        self.check(channels, size, getattr(self.head, "in_features", 0))

    def embed(self, images: Tensor) -> Tensor:
        """Compute what the last linear layer takes."""
        embedding: Tensor = self.body(images)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Apply the last linear layer."""
        logits: Tensor = self.head(embedding)
        return logits

    def original_name(self, name: str) -> str:
        """Say what torchvision calls a tensor of the state dict: its last layer has a name of its own there."""
        return name.replace("head.", f"{self.last}.", 1) if name.startswith("head.") else name.removeprefix("body.")
