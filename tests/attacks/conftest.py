"""What tests of attacks share: watches that hand on what they hear, and a small defence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from depure.attacks import Expected, Watch
from depure.noise import Noise


class Hearing(Watch):
    def __init__(self, note: Callable[[Expected], object]) -> None:
        self.note = note

    def iteration(self, measured: Expected) -> None:
        self.note(measured)


class HearingMembers(Watch):
    def __init__(self, note: Callable[[int, Tensor], object]) -> None:
        self.note = note

    def member(self, number: int, accuracy: Tensor) -> None:
        self.note(number, accuracy)


class Shaky(nn.Module):
    """Three smooth classes of a noisy image of 16 pixels; it counts the rows it is asked about."""

    def __init__(self, level: float = 0.05, broken: float | None = None) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.stages, self.level, self.broken = ("a",) if level else (), level, broken
        self.w = torch.randn(16, 3, generator=g, dtype=torch.float64)
        self.calls = 0

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        self.calls += len(x)
        z = x + self.level * noise.normal("a", 0, x) if self.level else x
        out = 3.0 * torch.tanh(z.flatten(1) - 0.5) @ self.w.to(x)
        if self.broken is not None:
            out = out * torch.where(x[:, :1, 0, 0] > self.broken, torch.nan, 1.0)
        return out


@pytest.fixture
def hear() -> type[Hearing]:
    """Makes a watch that hands each iteration to a function, such as a list's `append`."""
    return Hearing


@pytest.fixture
def hear_members() -> type[HearingMembers]:
    """Makes a watch that hands number and accuracy of each member to a function."""
    return HearingMembers


@pytest.fixture
def shaky() -> type[Shaky]:
    """Makes a defence with noise of some level, NaN where the first pixel is above `broken`."""
    return Shaky
