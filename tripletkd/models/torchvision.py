"""The image classifiers of torchvision.models, with initial weights drawn from the seed."""

import copy

import torch
from torch import Tensor, nn

from tripletkd.errors import UserError
from tripletkd.models.dropout import Dropout
from tripletkd.types import Outputs


class TorchvisionNetwork(nn.Module):
    """Wraps an untrained image classifier of torchvision.models.

    Its last linear layer is kept apart, so that the layer's inputs can be returned as the feature embedding. Its
    dropout is replaced by ours, whose noise is a function of the seed.

    Args:
        name: the classifier's name in torchvision.models.
        channels: the images' channels.
        size: the images' height and width.
        classes: the number of logits.

    Raises:
        UserError: the images are not RGB or too small, or the classifier drops whole blocks by PyTorch's global
            generator, has several outputs, or does not end with a linear layer.
    """

    fusible = False  # it may hold modules that mix channels

    def __init__(self, name: str, channels: int, size: int, classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model
        from torchvision.ops import StochasticDepth

        if channels != 3:
            raise UserError(f"torchvision/{name} takes RGB images, the data set has {channels} channel(s)")
        self.body: nn.Module = get_model(name, num_classes=classes, weights=None)
        self.head: nn.Module = nn.Identity()
        last_linear = ""
        for path, module in list(self.body.named_modules()):
            if isinstance(module, StochasticDepth):
                raise UserError(f"torchvision/{name} drops whole blocks by a generator that no seed of a run reaches")
            if isinstance(module, nn.Dropout):
                self.body.set_submodule(path, Dropout(module.p))
            elif isinstance(module, nn.Linear):
                last_linear, self.head = path, module
        if last_linear:
            self.body.set_submodule(last_linear, nn.Identity())
        self._check_embedding(name, size)

    def _check_embedding(self, name: str, size: int) -> None:
        """Pass two images through a copy in training mode: only then do some networks have further outputs."""
        try:
            embedding = copy.deepcopy(self.body)(torch.zeros(2, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(f"torchvision/{name} does not take images of {size} x {size} pixels: {error}") from None
        if not isinstance(embedding, Tensor) or embedding.shape != (2, getattr(self.head, "in_features", None)):
            raise UserError(f"torchvision/{name} is not usable here: its one output must come from a linear layer")

    def forward(self, x: Tensor) -> Outputs:
        """Return the Outputs for images [B, 3, size, size]; the only feature is embedding."""
        embedding = self.body(x)
        return Outputs(self.head(embedding), {"embedding": embedding})
