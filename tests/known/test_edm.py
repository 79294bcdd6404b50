"""Gaussian data N(mu, s^2) under EDM: the ideal denoiser is linear, the ODE has a closed form."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import DDIM, Denoiser, Heun, Karras
from depure.noise import Noise
from depure.purifiers import DiffPure

MU, S, TOP, DATA = 0.2, 0.15, 0.5, 0.45


class RawF(nn.Module):
    """F such that c_skip x + c_out F(c_in x) = E[x0 | x] = (s^2 x + sigma^2 mu)/(s^2 + sigma^2).

    Solved for F by hand, so that nothing cancels at small sigma.
    """

    def forward(self, scaled: Tensor, labels: Tensor) -> Tensor:
        sigma = math.exp(4 * labels[0].item())
        total = DATA**2 + sigma**2
        slope = sigma / (DATA * (S**2 + sigma**2))
        out: Tensor = slope * ((S**2 - DATA**2) * scaled + MU * math.sqrt(total))
        return out


def denoiser(sigma_min: float = 1e-4) -> Denoiser:
    return Denoiser(RawF(), Karras(DATA, sigma_min=sigma_min), "edm")


def purifier(steps: int, rule: Any = None, sigma_min: float = 1e-4, **settings: Any) -> DiffPure:
    rule = Heun() if rule is None else rule
    return DiffPure(denoiser(sigma_min), rule, t_star=TOP, steps=steps, **settings)


def picture(n: int = 1) -> Tensor:
    return torch.linspace(0.1, 0.9, 4, dtype=torch.float64).view(1, 1, 2, 2).expand(n, 1, 2, 2)


def flow(x: Tensor, sigma: float) -> Tensor:
    """Where the probability flow carries the state x at noise level sigma."""
    return MU + (x - MU) * S / math.sqrt(S**2 + sigma**2)


def error(steps: int, rule: Any = None) -> float:
    x, noise = picture(), Noise.of(0, [0])
    start = 2 * x - 1 + TOP * noise.normal("forward", (0, 0), x)
    out = 2 * purifier(steps, rule)(x, noise) - 1
    return (out - flow(start, TOP)).abs().max().item()


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 10.0])
def test_the_denoiser_is_the_posterior_mean(sigma: float) -> None:
    x = 2 * picture() - 1
    x0, eps, _ = denoiser()(x, sigma)
    torch.testing.assert_close(x0, (S**2 * x + sigma**2 * MU) / (S**2 + sigma**2))
    torch.testing.assert_close(eps, sigma * (x - MU) / (S**2 + sigma**2))


@pytest.mark.parametrize(("rule", "order"), [(Heun(), 2), (DDIM(), 1)])
def test_order_of_convergence(rule: Any, order: int) -> None:
    errors = [error(n, rule) for n in (20, 40, 80)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_heun_comes_to_the_closed_form() -> None:
    assert error(320) < 1e-5
    assert error(18) < 4e-3 < error(18, DDIM())


def test_jacobian_is_that_of_the_flow() -> None:
    x = picture().clone().requires_grad_()
    (grad,) = torch.autograd.grad(purifier(80)(x, Noise.of(0, [0])).sum(), x)
    expected = torch.full_like(x, S / math.sqrt(S**2 + TOP**2))
    torch.testing.assert_close(grad, expected.detach(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "rule", [Heun(), Heun(0.1), Heun.churned(40, 60, s_min=0.01, s_max=0.46)], ids=repr
)
def test_purified_data_are_data_again(rule: Heun) -> None:
    """Churn adds what the ODE then takes away: the marginals stay those of the data."""
    n = 10_000
    data = MU + S * Noise.of(5, range(n)).normal("data", 0, picture(n))
    out = 2 * purifier(60, rule, 0.002)((data + 1) / 2, Noise.of(0, range(n))) - 1
    count = out.numel()
    assert out.mean().item() == pytest.approx(MU, abs=4.5 * S / math.sqrt(count))
    assert out.var().item() == pytest.approx(S**2, rel=4.5 * math.sqrt(2 / count) + 1e-3)


def test_churn_forgets_the_start() -> None:
    """One state, one forward noise, fresh reverse noise: a spread that the ODE does not have."""
    n = 2_000
    noise = Noise.of(0, [0]).lock("forward").draws(n)
    plain, churned = (
        2 * purifier(30, rule, 0.002)(picture(n), noise) - 1 for rule in (Heun(), Heun(0.4))
    )
    assert plain.std(0).max() < 1e-12
    assert churned.std(0).min() > 0.5 * S
