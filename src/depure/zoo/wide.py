"""The wide residual network that papers on robustness attack."""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn


class WideResNet(nn.Module):
    """WRN-depth-width for 32x32 images (Zagoruyko & Komodakis, 1605.07146), without dropout.

    Names of its weights are those of TRADES and RobustBench, whose "Standard" model (the
    classifier of DiffPure's and ADDT's CIFAR-10 tables) is `WideResNet(28, 10)` on plain pixels.

    Args:
        depth: 6n + 4, such as 28, 34 or 70.
        width: factor of the channels; 10 gives 160, 320 and 640.
        classes: number of logits.

    Raises:
        ValueError: `depth` is not 6n + 4 with n at least 1, or `width` is below 1.
    """

    def __init__(self, depth: int = 28, width: int = 10, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 4, such as 28 or 34; got {depth}")
        if width < 1:
            raise ValueError(f"width must be at least 1; got {width}")
        self.channels = 3
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(16, 16 * width, blocks, 1)
        self.block2 = _Stage(16 * width, 32 * width, blocks, 2)
        self.block3 = _Stage(32 * width, 64 * width, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, 3, H, W)` in `[0, 1]`.

        Raises:
            ValueError: the images have another number of channels.
        """
        if x.shape[1] != 3:
            raise ValueError(f"this network takes images (B, 3, H, W); got {tuple(x.shape)}")
        h = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn1(h)).mean((2, 3)))
        return logits


def wide_resnet_sizes(arch: str) -> tuple[int, int] | None:
    """Depth and width in a name such as `"wrn-28-10"`; None if it is no such name."""
    found = re.fullmatch(r"wrn-(\d+)-(\d+)", arch)
    return (int(found[1]), int(found[2])) if found else None


class _Stage(nn.Module):
    """Residual blocks at one resolution; `layer` is a name in the public files."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = (_Block(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(_Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class _Block(nn.Module):
    """Norm and ReLU before each of two convolutions, beside a shortcut.

    Where the number of channels changes, the shortcut starts behind the first norm and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        grows = inputs != outputs
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if grows else None

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(first)
        out: Tensor = shortcut + self.conv2(F.relu(self.bn2(self.conv1(first))))
        return out
