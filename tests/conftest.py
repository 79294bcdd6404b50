"""Small networks with nothing zero-initialised: a gradient error cannot hide behind a zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import VPSDE, Denoiser, Schedule, VPDiscrete
from depure.noise import Noise

torch.set_num_threads(1)

MakeNet = Callable[..., nn.Module]
MakeDenoiser = Callable[..., Denoiser]


class TinyNet(nn.Module):
    """conv, GroupNorm, time scale, SiLU, dropout, conv: a denoiser in 0.2 ms.

    `labels` remembers every label it was called with, `calls` the number of calls.
    """

    def __init__(self, channels: int = 3, out: int | None = None, dropout: float = 0.5) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.time = nn.Parameter(torch.empty(8))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(8, channels if out is None else out, 3, padding=1)
        self.labels: list[float] = []

    @property
    def calls(self) -> int:
        return len(self.labels)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        assert labels.shape == (len(x),)
        self.labels.append(labels[0].item())
        phase = (labels.to(x.dtype)[:, None] / 50.0 + 1.0) * self.time
        h = self.norm(self.first(x)) * (1.0 + 0.5 * torch.sin(phase))[:, :, None, None]
        return self.last(self.dropout(nn.functional.silu(h)))


def randomise(network: nn.Module, seed: int) -> nn.Module:
    """Every weight random: matrices by fan-in, norms around (1, 0). Nothing is left at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        z = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            if p.ndim > 1:
                p.copy_(z / p[0].numel() ** 0.5)
            else:
                p.copy_(0.3 * z + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return network


def tiny_net(seed: int = 0, dtype: torch.dtype = torch.float64, **settings: object) -> nn.Module:
    return randomise(TinyNet(**settings), seed).to(dtype)  # type: ignore[arg-type]


def small_unet(
    seed: int = 0, dtype: torch.dtype = torch.float64, *, channels: int = 3, out: int | None = None
) -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels if out is None else out,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return nn.Module.to(randomise(network, seed), dtype)  # not diffusers' own, which warns


SCHEDULES: dict[str, Schedule] = {"discrete": VPDiscrete.linear(), "vpsde": VPSDE()}


def small_denoiser(
    schedule: str | Schedule = "discrete",
    prediction: str = "epsilon",
    *,
    seed: int = 0,
    freeze: bool = True,
    unet: bool = False,
    dtype: torch.dtype = torch.float64,
    **settings: object,
) -> Denoiser:
    network = small_unet(seed, dtype) if unet else tiny_net(seed, dtype, **settings)
    chosen = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    return Denoiser(network, chosen, prediction, freeze=freeze)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_net() -> MakeNet:
    return tiny_net


@pytest.fixture(scope="session")
def make_unet() -> MakeNet:
    return small_unet


@pytest.fixture(scope="session")
def make_denoiser() -> MakeDenoiser:
    return small_denoiser


@pytest.fixture
def images() -> Tensor:
    """Two images (2, 3, 8, 8) in [0, 1], float64."""
    generator = torch.Generator().manual_seed(7)
    return torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)


@pytest.fixture
def noise() -> Noise:
    """Noise for two images."""
    return Noise.of(seed=0, index=range(2))
