"""Halving and doubling a feature map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MANY = 64  # images from which on diffusers leaves channels_last; the layout decides rounding


class Downsample(nn.Module):
    """Halve by a strided convolution.

    Args:
        channels: in and out.
        padding: 0 pads one row and column at the bottom and the right only.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, C, H / 2, W / 2)."""
        out: Tensor = self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double by repeating pixels, then convolve.

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, C, 2 H, 2 W)."""
        out: Tensor = self.conv(repeat_pixels(x))
        return out


def repeat_pixels(x: Tensor) -> Tensor:
    """From (B, C, H, W) to (B, C, 2 H, 2 W): each pixel four times."""
    x = x.contiguous() if len(x) >= _MANY else x
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def average_pixels(x: Tensor) -> Tensor:
    """From (B, C, H, W) to (B, C, H / 2, W / 2): the mean of four pixels."""
    return F.avg_pool2d(x, 2)


def _filter(x: Tensor, gain: float) -> Tensor:
    """Convolve maps (N, 1, H, W) with the outer product of (1, 3, 3, 1) / 8, times `gain`."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 8
    return F.conv2d(x, (gain * torch.outer(taps, taps))[None, None])


def filtered_half(x: Tensor) -> Tensor:
    """From (B, C, H, W) to (B, C, H / 2, W / 2) through a smoothing filter (StyleGAN2's)."""
    height, width = x.shape[2:]
    padded = F.pad(x.reshape(-1, 1, height, width), (1, 1, 1, 1))
    half = _filter(padded, 1.0)[:, :, ::2, ::2]
    return half.reshape(*x.shape[:2], *half.shape[2:])


def filtered_double(x: Tensor) -> Tensor:
    """From (B, C, H, W) to (B, C, 2 H, 2 W): zeros in between, then the filter four times."""
    height, width = x.shape[2:]
    spread = F.pad(x.reshape(-1, height, 1, width, 1), (0, 1, 0, 0, 0, 1))
    padded = F.pad(spread.reshape(-1, 1, 2 * height, 2 * width), (2, 1, 2, 1))
    return _filter(padded, 4.0).reshape(*x.shape[:2], 2 * height, 2 * width)


RESAMPLE: dict[str, Callable[[Tensor], Tensor]] = {
    "down": average_pixels,
    "up": repeat_pixels,
    "filtered down": filtered_half,
    "filtered up": filtered_double,
}
