"""Changes to a batch of images whose random numbers are keyed by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from depure.noise import Noise

Augment = Callable[[Tensor, Noise], Tensor]
"""`(x, noise) -> x`, images `(B, C, H, W)` in `[0, 1]` and one row of noise for each."""


@dataclass(frozen=True)
class Shift:
    """Moves each image by up to `pixels` in both directions and fills with black.

    On CIFAR, 4 pixels are the usual padding and random crop.

    Raises:
        ValueError: `pixels` is negative.
    """

    pixels: int = 1

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"pixels must not be negative; got {self.pixels}")

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Shifted images, shaped as `x`."""
        (b, _, h, w), p = x.shape, self.pixels
        u = noise.uniform("shift", 0, x.new_empty(b, 2, dtype=torch.float64))
        down, right = ((2 * p + 1) * u).long().unbind(1)
        rows = (torch.arange(h, device=x.device) + down[:, None]).unsqueeze(2)
        columns = (torch.arange(w, device=x.device) + right[:, None]).unsqueeze(1)
        image = torch.arange(b, device=x.device).view(b, 1, 1)
        return F.pad(x, (p, p, p, p))[image, :, rows, columns].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Flip:
    """Mirrors each image left to right with probability 1/2."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Images, shaped as `x`."""
        u = noise.uniform("flip", 0, x.new_empty(len(x), 1, dtype=torch.float64))
        return torch.where(u.view(-1, 1, 1, 1) < 0.5, x.flip(3), x)
