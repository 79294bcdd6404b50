"""What an attack sees of a defence."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from depure.noise import Noise


class Model(Protocol):
    """Logits under given noise, and the names of the stages that draw it."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that draw noise."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) under one row of noise each."""
