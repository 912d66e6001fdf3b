"""Dropout whose noise a seed determines, whether it is trained alone, together with other seeds, or resumed."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Drops units by noise that is a function of a key and a step counter, both buffers.

    Trained alone or together with other seeds, resumed from a checkpoint or not, a network drops the same units: the
    generator's whole state is in its buffers. The noise is Widynski's "squares" generator (arXiv 2004.06278, four
    rounds), counter = step * 2^32 + index of the element, in wrapping 64-bit integer arithmetic, on any device.

    Args:
        p: the probability that a unit is dropped.
    """

    key: Tensor
    step: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        # An odd 62-bit key from the generator that also draws the initial weights: each seed's each module its stream.
        self.register_buffer("key", torch.randint(2**62, ()) | 1, persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Drop units of x, and scale up the others, in training mode; return x unchanged in eval mode.

        Args:
            x: [B, units, ...], or of S seeds computed together [B, S * units, ...], where key and step are [S].

        Returns:
            A tensor of the same shape.
        """
        if not self.training or self.p == 0.0:
            return x
        key, step = (t.view(1, -1, *(1 for _ in x.shape[1:])) for t in (self.key, self.step))
        units = x.unflatten(1, (key.numel(), -1))
        index = torch.arange(units[:, 0].numel(), device=x.device).view_as(units[:, 0]).unsqueeze(1)
        keep = _uniform((step << 32) + index, key) >= self.p
        self.step.add_(1)
        return (units * keep / (1.0 - self.p)).flatten(1, 2)

    def extra_repr(self) -> str:
        """Name the probability where the module is printed."""
        return f"p={self.p}"


class StochasticDepth(Dropout):
    """Drops a block's output for whole images, by noise as Dropout has it.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

    Args:
        p: the probability that an image's is dropped.
        together: whether all images of a batch are dropped or kept together.
    """

    def __init__(self, p: float, together: bool = False) -> None:
        super().__init__(p)
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        """Drop images of x, [B, ...] of one seed, and scale up the others, in training mode."""
        if not self.training or self.p == 0.0:
            return x
        index = torch.arange(1 if self.together else len(x), device=x.device)
        keep = _uniform((self.step << 32) + index, self.key) >= self.p
        self.step.add_(1)
        return x * keep.view(-1, *(1 for _ in x.shape[1:])) / (1.0 - self.p)


def _uniform(counter: Tensor, key: Tensor) -> Tensor:
    """Compute numbers in [0, 1), of 24 bits each, from int64 counters and keys."""
    x = y = counter * key
    z = y + key
    for addend in (y, z, y):
        x = x * x + addend
        x = (x << 32) | ((x >> 32) & 0xFFFFFFFF)
    return (((x * x + z) >> 40) & 0xFFFFFF) / 2.0**24
