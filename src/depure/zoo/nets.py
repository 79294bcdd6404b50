"""Small classifiers that take images in `[0, 1]` and give logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The channel statistics of the public CIFAR ResNets, which were trained with ImageNet's.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """`(x - mean) / std` for each channel; a network that owns one takes plain pixels.

    The statistics are settings, not weights: they are no part of the state dict.

    Raises:
        ValueError: the lengths differ, or a `std` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not min(std, default=0.0) > 0:
            raise ValueError(
                "mean and std need one number for each channel, std positive; "
                f"got {tuple(mean)} and {tuple(std)}"
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` in `[0, 1]` to the same shape, normalised.

        Raises:
            ValueError: the images have another number of channels.
        """
        if x.shape[-3:-2] != self.mean.shape[:1]:
            # Broadcasting would silently turn a greyscale image into a colour one.
            raise ValueError(
                f"this network takes images with {len(self.mean)} channels, "
                f"shape (B, {len(self.mean)}, H, W); got {tuple(x.shape)}"
            )
        return (x - self.mean) / self.std


class SmallCNN(nn.Module):
    """Four convolutions for images from 8x8 upward: `(B, C, H, W)` in `[0, 1]` to logits.

    It is smooth (SiLU, average pooling), so that finite differences can check its gradients
    anywhere.

    Args:
        channels: image channels.
        classes: number of logits.
        width: features of the first half; the second half has twice as many.
    """

    def __init__(self, channels: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.channels = channels
        self.normalize = Normalize((0.5,) * channels, (0.5,) * channels)
        self.features = nn.Sequential(
            *_conv_bn_silu(channels, width),
            *_conv_bn_silu(width, width),
            nn.AvgPool2d(2),
            *_conv_bn_silu(width, 2 * width),
            *_conv_bn_silu(2 * width, 2 * width),
        )
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)`."""
        logits: Tensor = self.linear(self.features(self.normalize(x)).mean((2, 3)))
        return logits


class CifarResNet(nn.Module):
    """The ResNet for 32x32 images of He et al. 2016 (arXiv 1512.03385, section 4.2), option A.

    Args:
        depth: 20, 32, 44, 56, 110, or any other 6n + 2.
        classes: number of logits.
        mean, std: channel statistics; the defaults are those of the public checkpoints.

    Raises:
        ValueError: `depth` is not 6n + 2 with n at least 1.
    """

    def __init__(
        self,
        depth: int,
        classes: int = 10,
        mean: Sequence[float] = _IMAGENET_MEAN,
        std: Sequence[float] = _IMAGENET_STD,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 2, such as 20 or 56; got {depth}")
        self.channels = 3
        self.normalize = Normalize(mean, std)
        self.conv1 = _conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, classes)` of images `(B, 3, H, W)` in `[0, 1]`."""
        h = F.relu(self.bn1(self.conv1(self.normalize(x))))
        h = self.layer3(self.layer2(self.layer1(h)))
        logits: Tensor = self.linear(h.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Two convolutions beside a shortcut without parameters (option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.grow = outputs - inputs
        stride = 2 if self.grow else 1
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.grow:
            return x
        # Zero channels go half before and half behind, as in the public checkpoints.
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow // 2))


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = _Block(inputs, outputs)
    return nn.Sequential(first, *(_Block(outputs, outputs) for _ in range(blocks - 1)))


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _conv_bn_silu(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return _conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.SiLU()
