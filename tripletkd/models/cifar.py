"""The networks of the field's CIFAR-100 comparisons: residual, wide residual and VGG networks.

Architecture, initial weights and the maps handed to methods are those of Tian et al., "Contrastive Representation
Distillation", ICLR 2020 (RepDistiller), so that its published figures are comparable. Every forward takes images
[B, channels, size, size] and returns logits with the features stage1 to stage3 (maps) and embedding (pooled).
All are `foldable` (see ensemble.fold): nothing in them mixes channels but convolutions and linear layers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from tripletkd.types import Outputs


def _conv(before: int, after: int, kernel: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Keeps the size of the image, or divides it by `stride`; weights as He et al. (2015), by what leaves the layer."""
    conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _outputs(stages: Sequence[Tensor], last: Tensor, classifier: nn.Module) -> Outputs:
    """Global average pooling of the last map, then the classifier."""
    embedding = last.mean((2, 3))  # not adaptive_avg_pool2d, whose gradient on a GPU is not deterministic
    features = {f"stage{i}": stage for i, stage in enumerate(stages, start=1)}
    return Outputs(classifier(embedding), features | {"embedding": embedding})


class ResidualBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + x); where the shape changes, x goes through a 1x1 convolution and bn."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, after, stride=stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = _conv(after, after), nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(_conv(before, after, kernel=1, stride=stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class PreactivationBlock(nn.Module):
    """conv(relu(bn(conv(a)))) + x with a = relu(bn(x)); where the width changes, a 1x1 convolution of a for x."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), _conv(before, after, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(after), _conv(after, after)
        self.shortcut = None if before == after else _conv(before, after, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def _stages(block: Callable[[int, int, int], nn.Module], widths: Sequence[int], depth: int) -> nn.ModuleList:
    """Three stages of `depth` blocks each; the second and the third halve the image."""
    return nn.ModuleList(
        nn.Sequential(block(before, after, stride), *(block(after, after, 1) for _ in range(depth - 1)))
        for (before, after), stride in zip(pairwise(widths), (1, 2, 2), strict=True)
    )


class ResNet(nn.Module):
    """He et al. (2016) for CIFAR: `layers` = 6 n + 2 of them, n blocks a stage; widths of the stem and the stages.

    Features: after each stage's last relu.
    """

    foldable = True

    def __init__(
        self, channels: int, _size: int, classes: int, layers: int, widths: Sequence[int] = (16, 16, 32, 64)
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, widths[0]), nn.BatchNorm2d(widths[0])
        self.stages = _stages(ResidualBlock, widths, (layers - 2) // 6)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Outputs:
        maps = [F.relu(self.bn1(self.conv1(x)))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return _outputs(maps[1:], maps[-1], self.classifier)


class WideResNet(nn.Module):
    """Zagoruyko and Komodakis (2016): `layers` = 6 n + 4 of them, stages 16, 32 and 64 times `widen` wide, no dropout.

    Features: the sums that leave the stages, as the study hands them to its methods. No activation follows them there:
    it is in the next block, and after the last stage before the pooling.
    """

    foldable = True

    def __init__(self, channels: int, _size: int, classes: int, layers: int, widen: int) -> None:
        super().__init__()
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = _conv(channels, widths[0])
        self.stages = _stages(PreactivationBlock, widths, (layers - 4) // 6)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], classes)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Outputs:
        maps = [self.conv1(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return _outputs(maps[1:], F.relu(self.bn1(maps[-1])), self.classifier)


class VGG(nn.Module):
    """Simonyan and Zisserman (2015) with batch norm and one linear layer: five blocks of 3x3 convolutions.

    depths, widths: of each block. Pooling stands before blocks 2, 3, 4 and, for images of 64 pixels and more, 5, as in
    the study. Features, after the last relu of a block: stage1 and stage2 are blocks 2 and 3 (half and a quarter of the
    image's size; the study's hint is block 3), stage3 is block 5, the last map. Block 4 has no name.
    """

    foldable = True

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
    def _block(before: int, after: int, depth: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs in (before, *[after] * (depth - 1)):
            layers += [_conv(inputs, after, bias=True), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Outputs:
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(F.max_pool2d(x, 2) if i in self.pooled else x)
            maps.append(x)
        return _outputs([maps[1], maps[2], maps[4]], x, self.classifier)


WIDE = (32, 64, 128, 256)

# name in params.yaml -> (channels, size, classes) -> network
FIELD: dict[str, Callable[[int, int, int], nn.Module]] = {
    **{f"resnet{layers}": partial(ResNet, layers=layers) for layers in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{layers}x4": partial(ResNet, layers=layers, widths=WIDE) for layers in (8, 32)},
    **{
        f"wrn_{layers}_{widen}": partial(WideResNet, layers=layers, widen=widen)
        for layers in (16, 40)
        for widen in (1, 2)
    },
    "vgg8": partial(VGG, depths=(1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, depths=(1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, depths=(2, 2, 2, 2, 2)),
}
