"""The image classifiers of torchvision.models, untrained."""

import copy

import torch
from torch import Tensor, nn

from tripletkd.errors import UserError
from tripletkd.models.dropout import Dropout
from tripletkd.types import Outputs


class TorchvisionNetwork(nn.Module):
    """An untrained image classifier of torchvision.models, its last linear layer kept apart for the embedding's sake.

    Its dropout layers become ours, a function of the seed. UserError for what does not fit: images that are not RGB or
    too small for it, blocks dropped by PyTorch's global generator, several outputs, no linear layer at the end.
    """

    foldable = False  # it may hold layers that mix channels

    def __init__(self, name: str, channels: int, size: int, classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model
        from torchvision.ops import StochasticDepth

        if channels != 3:
            raise UserError(f"torchvision/{name} takes RGB images, the data set has {channels} channel(s)")
        self.body: nn.Module = get_model(name, num_classes=classes, weights=None)
        self.head: nn.Module = nn.Identity()
        place = ""
        for inner, module in list(self.body.named_modules()):
            if isinstance(module, StochasticDepth):
                raise UserError(f"torchvision/{name} drops whole blocks by a generator that no seed of a run reaches")
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
            raise UserError(f"torchvision/{name} does not take images of {size} x {size} pixels: {error}") from None
        if not isinstance(embedding, Tensor) or embedding.shape != (2, getattr(self.head, "in_features", None)):
            raise UserError(f"torchvision/{name} is not usable here: its one output must come from a linear layer")

    def forward(self, x: Tensor) -> Outputs:
        """x: images [B, 3, size, size]."""
        embedding = self.body(x)
        return Outputs(self.head(embedding), {"embedding": embedding})
