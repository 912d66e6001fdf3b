"""The teacher and the student of Oki et al., IJCNN 2020, and the student of their code's second version."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from tripletkd.models.dropout import Dropout
from tripletkd.types import Outputs


class PaperTeacher(nn.Module):
    """The teacher of Oki et al.: five 3x3 convolutions and three linear layers.

    Each convolution is followed by relu and THEN batch norm, and numbers 1, 2 and 5 by pooling. With width 32 and
    3 x 32 x 32 images: conv 3-32, 32-32, 32-64, 64-64, 64-128; linear 2048-512-128-classes. Other widths and image
    sizes scale it. The features are stage1 to stage3 (after pooling) and embedding (before the logits).

    Args:
        channels: the images' channels.
        size: the images' height and width.
        classes: the number of logits.
        width: the number of the first convolution's channels.
        dropout: the probability with which the first two linear layers' outputs are dropped.
    """

    fusible = True

    def __init__(self, channels: int, size: int, classes: int, width: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        w = width
        widths = (channels, w, w, 2 * w, 2 * w, 4 * w)
        for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, padding=1))
            self.add_module(f"batchnorm{i}", nn.BatchNorm2d(outputs))
        self.fc1 = nn.Linear(4 * w * (size // 8) ** 2, 16 * w)
        self.fc2 = nn.Linear(16 * w, 4 * w)
        self.fc3 = nn.Linear(4 * w, classes)
        self.drop1 = Dropout(dropout)
        self.drop2 = Dropout(dropout)

    def _block(self, i: int, x: Tensor) -> Tensor:
        return self.get_submodule(f"batchnorm{i}")(F.relu(self.get_submodule(f"conv{i}")(x)))

    def forward(self, x: Tensor) -> Outputs:
        """Return the Outputs for images [B, channels, size, size]."""
        stage1 = F.max_pool2d(self._block(1, x), 2)
        stage2 = F.max_pool2d(self._block(2, stage1), 2)
        stage3 = F.max_pool2d(self._block(5, self._block(4, self._block(3, stage2))), 2)
        hidden = self.drop1(F.relu(self.fc1(stage3.flatten(1))))
        embedding = self.drop2(F.relu(self.fc2(hidden)))
        return Outputs(
            self.fc3(embedding), {"stage1": stage1, "stage2": stage2, "stage3": stage3, "embedding": embedding}
        )


class PaperStudent(nn.Module):
    """The student of Oki et al.: three 3x3 convolutions and two linear layers, without batch norm.

    Each convolution is followed by relu and pooling. With width 32 and 3 x 32 x 32 images: conv 3-32, 32-32, 32-64;
    linear 1024-128-classes. Other widths and image sizes scale it. The features are those of PaperTeacher.

    Args:
        channels: the images' channels.
        size: the images' height and width.
        classes: the number of logits.
        width: the number of the first convolution's channels.
    """

    fusible = True

    def __init__(self, channels: int, size: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc1 = nn.Linear(2 * width * (size // 8) ** 2, 4 * width)
        self.fc2 = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Outputs:
        """Return the Outputs for images [B, channels, size, size]."""
        # Pooled first: relu of the maximum equals the maximum of relus, and is of a quarter of the numbers.
        stage1 = F.relu(F.max_pool2d(self.conv1(x), 2))
        stage2 = F.relu(F.max_pool2d(self.conv2(stage1), 2))
        stage3 = F.relu(F.max_pool2d(self.conv3(stage2), 2))
        embedding = F.relu(self.fc1(stage3.flatten(1)))
        return Outputs(
            self.fc2(embedding), {"stage1": stage1, "stage2": stage2, "stage3": stage3, "embedding": embedding}
        )


class SecondStudent(nn.Module):
    """The student of the second version of the authors' code: three 3x3 convolutions and two linear layers.

    Each convolution is followed by batch norm, relu and pooling. With 3 x 32 x 32 images: conv 3-16, 16-32, 32-64;
    linear 1024-128-classes. Other image sizes scale it. The features are those of PaperTeacher.

    Args:
        channels: the images' channels.
        size: the images' height and width.
        classes: the number of logits.

    Source: `Net` in utils/networks.py, commit 2c13e23, whose average pooling to 4 x 4 changes nothing for 32 x 32.
    """

    fusible = True

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(pairwise((channels, 16, 32, 64)), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, padding=1))
            self.add_module(f"batchnorm{i}", nn.BatchNorm2d(outputs))
        self.fc1 = nn.Linear(64 * (size // 8) ** 2, 128)
        self.fc2 = nn.Linear(128, classes)

    def _stage(self, i: int, x: Tensor) -> Tensor:
        normed = self.get_submodule(f"batchnorm{i}")(self.get_submodule(f"conv{i}")(x))
        return F.relu(F.max_pool2d(normed, 2))  # pooled first, as in PaperStudent

    def forward(self, x: Tensor) -> Outputs:
        """Return the Outputs for images [B, channels, size, size]."""
        stage1 = self._stage(1, x)
        stage2 = self._stage(2, stage1)
        stage3 = self._stage(3, stage2)
        embedding = F.relu(self.fc1(stage3.flatten(1)))
        return Outputs(
            self.fc2(embedding), {"stage1": stage1, "stage2": stage2, "stage3": stage3, "embedding": embedding}
        )
