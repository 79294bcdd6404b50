"""Euler-Maruyama against torchsde's own solver on one Brownian path."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from depure.diffusion import VPSDE, Denoiser, EulerMaruyama, Full, Grid, ProbabilityFlow
from depure.diffusion.schedules import label_of
from depure.purifiers.diffusion.rounds import Rounds

torchsde = pytest.importorskip("torchsde")
MakeDenoiser = Callable[..., Denoiser]

SHAPE = (2, 3, 8, 8)


class ReverseVPSDE:
    """DiffPure's reverse SDE in forward time tau = 1 - t (methods.md 1.1), from its formulas."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self, network: torch.nn.Module, score_weight: float, noisy: bool) -> None:
        self.network, self.score_weight, self.noisy = network, score_weight, noisy

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        t = 1.0 - tau
        beta = 0.1 + t * 19.9
        alpha_bar = torch.exp(-0.5 * 19.9 * t**2 - 0.1 * t)
        x = y.view(SHAPE)
        score = -self.network(x, (999 * t).expand(len(x))) / torch.sqrt(1 - alpha_bar)
        return (0.5 * beta * (x + self.score_weight * score)).flatten(1)

    def g(self, tau: Tensor, y: Tensor) -> Tensor:
        return torch.sqrt(0.1 + (1.0 - tau) * 19.9) * torch.full_like(y, float(self.noisy))


class FromPath:
    """Noise read off a Brownian path: what `Rounds` asks of a `Noise`, and no more."""

    def __init__(self, start: Tensor, times: tuple[float, ...], bm: object) -> None:
        self.numbers: dict[tuple[str, tuple[int, int]], Tensor] = {("forward", (0, 0)): start}
        for t, s in pairwise(times):
            step = bm(1 - t, 1 - s) / (t - s) ** 0.5
            self.numbers["reverse", (0, label_of(t))] = step.view(SHAPE)

    def normal(self, stage: str, step: tuple[int, int], like: Tensor) -> Tensor:
        return self.numbers[stage, step]


@pytest.mark.parametrize("sampler", [EulerMaruyama(), ProbabilityFlow()])
@pytest.mark.parametrize("t_star", [0.1, 0.4])
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_chain_equals_sdeint(
    make_denoiser: MakeDenoiser, sampler: EulerMaruyama | ProbabilityFlow, t_star: float, steps: int
) -> None:
    denoiser, grid = make_denoiser("vpsde"), Grid(t_star, steps)
    path = grid.path(denoiser.schedule)
    start, end, dt = 1 - t_star, 1 - 1e-5, (t_star - 1e-5) / steps
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    bm = torchsde.BrownianInterval(
        start, end, size=(2, 192), dtype=torch.float64, entropy=1, cache_size=None
    )
    noise = FromPath(z, path.times, bm)
    with torch.no_grad():
        ours = Full().run(
            Rounds(denoiser, sampler, grid, noise).chain(x, lambda state: state[0]), x
        )
        discrete = VPSDE().discrete()
        index = round(1000 * t_star) - 1
        noised = discrete.alpha(index) * x + discrete.sigma(index) * z
        sde = ReverseVPSDE(denoiser.network, 1.0 + sampler.stochastic, sampler.stochastic)
        ts = torch.tensor([start, end], dtype=torch.float64)
        theirs = torchsde.sdeint(sde, noised.flatten(1), ts, bm=bm, method="euler", dt=dt)[-1]
    torch.testing.assert_close(ours, theirs.view(SHAPE), rtol=1e-7, atol=1e-7)
