"""How a UNet is told the time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from depure.networks.unets.settings import UNetSettings


class Sinusoids(nn.Module):
    """Sines and cosines of the time at geometric frequencies (2006.11239), always in float32.

    Args:
        features: of the result; an odd number ends with a zero.
        shift: the frequencies are 10000^(-i / (features // 2 - shift)).
        cosines_first: cosines before sines.
    """

    def __init__(self, features: int, shift: float, cosines_first: bool) -> None:
        super().__init__()
        self.features, self.shift, self.cosines_first = features, shift, cosines_first

    def forward(self, t: Tensor) -> Tensor:
        """Features (B, features) of times (B,)."""
        half = self.features // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device)
        angles = t[:, None].float() * torch.exp(exponents / (half - self.shift))
        sine, cosine = torch.sin(angles), torch.cos(angles)
        out = torch.cat((cosine, sine) if self.cosines_first else (sine, cosine), dim=1)
        return nn.functional.pad(out, (0, self.features % 2))


class LogFourier(nn.Module):
    """Sines and cosines of the time's logarithm at random frequencies (2011.13456).

    Args:
        features: number of frequencies; the result has twice as many features.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features) * 16, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        """Features (B, 2 features) of times (B,) above 0."""
        angles = torch.log(t)[:, None] * self.weight[None, :] * 2 * math.pi
        return torch.cat((torch.sin(angles), torch.cos(angles)), dim=1)


class Perceptron(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(features, out)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, features) to (B, out)."""
        out: Tensor = self.linear_2(self.act(self.linear_1(x)))
        return out


def time_projection(settings: UNetSettings) -> tuple[nn.Module, int]:
    """What turns times (B,) into features, and their number."""
    width = settings.widths[0]
    if settings.time_embedding_type == "fourier":
        return LogFourier(width), 2 * width
    if settings.time_embedding_type == "learned":
        return nn.Embedding(settings.num_train_timesteps or 0, width), width
    return Sinusoids(width, settings.freq_shift or 0, settings.flip_sin_to_cos), width


def class_embedding(settings: UNetSettings, features: int) -> nn.Module | None:
    """What turns class labels into features that are added to the time's; None for no classes."""
    if settings.class_embed_type == "timestep":
        return Perceptron(features, settings.time_features)
    if settings.class_embed_type == "identity":
        return nn.Identity()
    if settings.num_class_embeds is not None:
        return nn.Embedding(settings.num_class_embeds, settings.time_features)
    return None
