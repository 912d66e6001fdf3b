"""The networks of the field's CIFAR-100 comparisons: residual, wide residual and VGG networks.

Architecture, initial weights and the maps handed to methods are those of Tian et al., "Contrastive Representation
Distillation", ICLR 2020 (RepDistiller), so that its published figures are comparable. All return the features stage1 to
stage3 (maps) and embedding (the last map averaged over its places).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from tripletkd.types import Outputs


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Make a padded convolution that keeps the size of the image, or divides it by `stride`.

    Its weights are drawn as by He et al. (2015), "fan out": normal, of variance 2 / (kernel * kernel * outputs).
    """
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _classify(stages: Sequence[Tensor], last: Tensor, classifier: nn.Module) -> Outputs:
    """Average the last map over its places and classify the result; return it with the stages' maps as features."""
    embedding = last.mean((2, 3))  # not adaptive_avg_pool2d, whose gradient on a GPU is not deterministic
    features = {f"stage{i}": stage for i, stage in enumerate(stages, start=1)}
    return Outputs(classifier(embedding), features | {"embedding": embedding})


class ResidualBlock(nn.Module):
    """Computes relu(bn(conv(relu(bn(conv(x))))) + x).

    Where the shape changes, the summand x goes through a 1x1 convolution and batch norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, kernel=1, stride=stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class PreactivationBlock(nn.Module):
    """Computes conv(relu(bn(conv(a)))) + x with a = relu(bn(x)).

    Where the width changes, the summand x is replaced by a 1x1 convolution of a.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        self.shortcut = None if inputs == outputs else _conv(inputs, outputs, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def _stages(block: Callable[[int, int, int], nn.Module], widths: Sequence[int], blocks: int) -> nn.ModuleList:
    """Make three stages of so many blocks each; the second and the third halve the image."""
    return nn.ModuleList(
        nn.Sequential(block(inputs, outputs, stride), *(block(outputs, outputs, 1) for _ in range(blocks - 1)))
        for (inputs, outputs), stride in zip(pairwise(widths), (1, 2, 2), strict=True)
    )


class ResNet(nn.Module):
    """The residual network of He et al. (2016) for CIFAR, of depth 6 n + 2 with n blocks a stage.

    Its features are the maps after each stage's last relu.

    Args:
        channels: the images' channels.
        _size: the images' height and width, on which nothing here depends.
        classes: the number of logits.
        depth: the number of convolutions and linear layers one after the other.
        widths: the numbers of channels after the first convolution and in the three stages.
    """

    fusible = True

    def __init__(
        self, channels: int, _size: int, classes: int, depth: int, widths: Sequence[int] = (16, 16, 32, 64)
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, widths[0]), nn.BatchNorm2d(widths[0])
        self.stages = _stages(ResidualBlock, widths, (depth - 2) // 6)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Outputs:
        """Return the Outputs for images [B, channels, size, size]."""
        maps = [F.relu(self.bn1(self.conv1(x)))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return _classify(maps[1:], maps[-1], self.classifier)


class WideResNet(nn.Module):
    """The wide residual network of Zagoruyko and Komodakis (2016), of depth 6 n + 4, without dropout.

    Its features are the sums that leave the stages, as the comparison hands them to its methods. No activation follows
    them there: it is in the next block, and after the last stage before the averaging.

    Args:
        channels: the images' channels.
        _size: the images' height and width, on which nothing here depends.
        classes: the number of logits.
        depth: the number of convolutions and linear layers one after the other.
        widen: the factor of the stages' widths, which are 16, 32 and 64 times it.
    """

    fusible = True

    def __init__(self, channels: int, _size: int, classes: int, depth: int, widen: int) -> None:
        super().__init__()
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = _conv(channels, widths[0])
        self.stages = _stages(PreactivationBlock, widths, (depth - 4) // 6)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], classes)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Outputs:
        """Return the Outputs for images [B, channels, size, size]."""
        maps = [self.conv1(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return _classify(maps[1:], F.relu(self.bn1(maps[-1])), self.classifier)


class VGG(nn.Module):
    """The network of Simonyan and Zisserman (2015) with batch norm and one linear layer: five blocks of convolutions.

    Pooling stands before blocks 2, 3, 4 and, for images of 64 pixels and more, 5, as in the comparison. The features
    are taken after the last relu of a block: stage1 and stage2 are blocks 2 and 3 (half and a quarter of the image's
    size; the comparison's hint is block 3), stage3 is block 5, the last map. Block 4 has no name.

    Args:
        channels: the images' channels.
        size: the images' height and width.
        classes: the number of logits.
        depths: the number of convolutions in each block.
        widths: the number of channels in each block.
    """

    fusible = True

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512, 512),
    ) -> None:
        super().__init__()
        pairs = pairwise((channels, *widths))
        self.blocks = nn.ModuleList(self._block(*pair, depth) for pair, depth in zip(pairs, depths, strict=True))
        self.pooled = (1, 2, 3, 4) if size >= 64 else (1, 2, 3)
        self.classifier = nn.Linear(widths[-1], classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
        modules: list[nn.Module] = []
        for width in (inputs, *[outputs] * (depth - 1)):
            modules += [_conv(width, outputs, bias=True), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Outputs:
        """Return the Outputs for images [B, channels, size, size]."""
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if i in self.pooled else x)
            maps.append(x)
        return _classify([maps[1], maps[2], maps[4]], x, self.classifier)
