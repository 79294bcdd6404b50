"""Gaussian data: the exact denoiser is linear, so the whole purifier is a closed form.

The closed form below is numpy: each sampler's own formula, as its paper prints it, turned into
matrices and multiplied out. It calls nothing of ours but the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import (
    DDIM,
    DDPM,
    VPSDE,
    Checkpoint,
    Denoiser,
    EulerMaruyama,
    Full,
    ProbabilityFlow,
    VPDiscrete,
)
from depure.noise import Noise
from depure.purifiers import DiffPure

# The data in [-1, 1] space, as images of 1 x 2 x 2 pixels: six standard deviations fit inside.
MEAN = np.array([0.2, -0.1, 0.05, 0.3])
FACTOR = np.array([[10, 0, 0, 0], [7, 8, 0, 0], [-3, 4, 9, 0], [2, 3, -4, 8]]) / 100
COVARIANCE = FACTOR @ FACTOR.T
SHAPE = (1, 2, 2)
EYE = np.eye(4)

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def beta(t: float) -> float:
    return 0.1 + 19.9 * t


def alpha_bar(t: float) -> float:
    """Of an index (int; -1 is clean) or of a time of the SDE (float)."""
    if isinstance(t, int):
        return 1.0 if t < 0 else float(ALPHA_BAR[t])
    return math.exp(-0.5 * 19.9 * t * t - 0.1 * t)


class Exact(nn.Module):
    """E[x0 | x_t] of Gaussian data, told the label only."""

    def __init__(self, continuous: bool, prediction: str) -> None:
        super().__init__()
        self.continuous, self.prediction = continuous, prediction

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        label = labels[0].item()
        a2 = alpha_bar(label / 999 if self.continuous else int(label))
        a, s = math.sqrt(a2), math.sqrt(1 - a2)
        gain = a * COVARIANCE @ np.linalg.inv(a2 * COVARIANCE + s * s * EYE)
        offset = MEAN - a * gain @ MEAN
        x0 = x.flatten(1) @ torch.from_numpy(gain.T) + torch.from_numpy(offset)
        x0 = x0.view_as(x)
        eps = (x - a * x0) / s
        return {"x0": x0, "epsilon": eps, "v": a * eps - s * x0}[self.prediction]


# --- the closed form -----------------------------------------------------------------------------


@dataclass
class Affine:
    """A x + b + sum of C_k z_k, with z_k standard normal and named."""

    A: np.ndarray
    b: np.ndarray
    C: dict[tuple[str, tuple[int, int]], np.ndarray]

    def then(self, matrix: np.ndarray, offset: np.ndarray, **noise: Any) -> Affine:
        parts = {key: matrix @ part for key, part in self.C.items()}
        return Affine(matrix @ self.A, matrix @ self.b + offset, {**parts, **noise.get("add", {})})

    @property
    def covariance(self) -> np.ndarray:
        return sum((c @ c.T for c in self.C.values()), np.zeros((4, 4)))


def score(t: float) -> tuple[np.ndarray, np.ndarray]:
    """grad log p_t(x) = M x + m of N(a mean, a^2 covariance + (1 - a^2))."""
    a2 = alpha_bar(t)
    precision = np.linalg.inv(a2 * COVARIANCE + (1 - a2) * EYE)
    return -precision, math.sqrt(a2) * precision @ MEAN


def ddpm_step(t: int, s: int, large: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """2006.11239, algorithm 2: (x - beta / sqrt(1 - abar) eps) / sqrt(alpha) + sd z."""
    M, m = score(t)  # eps = -sqrt(1 - abar) score
    ratio = alpha_bar(t) / alpha_bar(s)
    b = 1 - ratio
    variance = b if large else b * (1 - alpha_bar(s)) / (1 - alpha_bar(t))
    scale = 1 / math.sqrt(ratio)
    return scale * (EYE + b * M), scale * b * m, math.sqrt(variance) if s >= 0 else 0.0


def ddim_step(t: int, s: int, eta: float) -> tuple[np.ndarray, np.ndarray, float]:
    """2010.02502, equation 12, with the sigma of equation 16."""
    M, m = score(t)
    at, a_s = alpha_bar(t), alpha_bar(s)
    sd = eta * math.sqrt((1 - a_s) / (1 - at)) * math.sqrt(1 - at / a_s)
    E, e = -math.sqrt(1 - at) * M, -math.sqrt(1 - at) * m
    scale, direction = math.sqrt(a_s / at), math.sqrt(max(1 - a_s - sd * sd, 0.0))
    kept = direction - scale * math.sqrt(1 - at)
    return scale * EYE + kept * E, kept * e, sd


def em_step(t: float, s: float) -> tuple[np.ndarray, np.ndarray, float]:
    """2205.07460, equation 5: drift -beta/2 (x + 2 score), noise sqrt(beta dt)."""
    M, m = score(t)
    h = 0.5 * beta(t) * (t - s)
    return EYE + h * (EYE + 2 * M), 2 * h * m, math.sqrt(beta(t) * (t - s))


def flow_step(t: float, s: float, heun: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """2011.13456, equation 13: dx/dt = -beta/2 (x + score)."""
    dt = t - s
    slopes = [(0.5 * beta(u) * (EYE + score(u)[0]), 0.5 * beta(u) * score(u)[1]) for u in (t, s)]
    (K, k), (N, n) = slopes
    if not heun:
        return EYE + dt * K, dt * k, 0.0
    return EYE + dt / 2 * (K + N @ (EYE + dt * K)), dt / 2 * (k + N @ (dt * k) + n), 0.0


SAMPLERS: dict[str, tuple[Any, Any]] = {
    "ddpm small": (DDPM(), lambda t, s: ddpm_step(t, s, False)),
    "ddpm large": (DDPM("large"), lambda t, s: ddpm_step(t, s, True)),
    "ddim 0": (DDIM(), lambda t, s: ddim_step(t, s, 0.0)),
    "ddim 0.6": (DDIM(0.6), lambda t, s: ddim_step(t, s, 0.6)),
    "ddim 1": (DDIM(1.0), lambda t, s: ddim_step(t, s, 1.0)),
    "euler-maruyama": (EulerMaruyama(), em_step),
    "euler-maruyama denoised": (EulerMaruyama(denoise_last=True), em_step),
    "flow euler": (ProbabilityFlow(), lambda t, s: flow_step(t, s, False)),
    "flow heun": (ProbabilityFlow("heun"), lambda t, s: flow_step(t, s, True)),
}


def is_sde(name: str) -> bool:
    return name.startswith(("euler", "flow"))


def closed_form(name: str, steps: int, top: int = 100, rounds: int = 1) -> Affine:
    """The purifier in [-1, 1] space, `top` thousandths deep."""
    if is_sde(name):
        start, end = Fraction(top, 1000), Fraction(1, 100_000)
        times = [float(start + (end - start) * Fraction(i, steps)) for i in range(steps + 1)]
    else:
        times = [top * (steps - i) // steps - 1 for i in range(steps + 1)]
    a2 = float(ALPHA_BAR[top - 1])
    whole = Affine(EYE, np.zeros(4), {})
    for r in range(rounds):
        forward = {("forward", (r, 0)): math.sqrt(1 - a2) * EYE}
        whole = whole.then(math.sqrt(a2) * EYE, np.zeros(4), add=forward)
        for i, (t, s) in enumerate(pairwise(times)):
            matrix, offset, sd = SAMPLERS[name][1](t, s)
            if name.endswith("denoised") and i == steps - 1:
                sd = 0.0
            key = ("reverse", (r, t if isinstance(t, int) else round(1e9 * t)))
            whole = whole.then(matrix, offset, add={key: sd * EYE} if sd else {})
    return whole


def purifier(name: str, steps: int, prediction: Any = "epsilon", **settings: Any) -> DiffPure:
    schedule = VPSDE() if is_sde(name) else VPDiscrete.linear()
    denoiser = Denoiser(Exact(is_sde(name), prediction), schedule, prediction)
    return DiffPure(denoiser, SAMPLERS[name][0], steps=steps, **settings)


def pixels(states: np.ndarray) -> Tensor:
    return torch.from_numpy(states.reshape(-1, *SHAPE) / 2 + 0.5)


def in_states(images: Tensor) -> np.ndarray:
    return (2 * images - 1).flatten(1).detach().numpy()


def data(n: int, seed: int = 0) -> np.ndarray:
    return MEAN + np.random.default_rng(seed).standard_normal((n, 4)) @ FACTOR.T


def kl(mean: np.ndarray, covariance: np.ndarray) -> float:
    """KL divergence of N(mean, covariance) from the data's distribution."""
    precision = np.linalg.inv(COVARIANCE)
    d = MEAN - mean
    logdet = np.linalg.slogdet(COVARIANCE @ np.linalg.inv(covariance))[1]
    return 0.5 * float(np.trace(precision @ covariance) - 4 + d @ precision @ d + logdet)


# --- the tests -----------------------------------------------------------------------------------

CHAINS = [(1, 1), (5, 1), (100, 1), (5, 3)]


@pytest.mark.parametrize(("steps", "rounds"), CHAINS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_output_and_jacobian(name: str, steps: int, rounds: int) -> None:
    expected = closed_form(name, steps, rounds=rounds)
    states, noise = data(6), Noise.of(3, range(6))
    like = torch.empty(6, *SHAPE, dtype=torch.float64)
    numbers = {key: noise.normal(*key, like).flatten(1).numpy() for key in expected.C}
    exact = states @ expected.A.T + expected.b
    exact = exact + sum(z @ expected.C[key].T for key, z in numbers.items())
    for backprop in (Full(), Checkpoint(0)):
        model = purifier(name, steps, rounds=rounds, backprop=backprop)
        x = pixels(states).requires_grad_()
        out = model(x, noise)
        np.testing.assert_allclose(in_states(out), exact, rtol=1e-9, atol=1e-10)
        for i in range(4):  # pixels in, pixels out: the factors 2 and 1/2 cancel
            (row,) = torch.autograd.grad(out.flatten(1)[:, i].sum(), x, retain_graph=True)
            wanted = np.broadcast_to(expected.A[i], (6, 4))
            np.testing.assert_allclose(row.flatten(1), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("name", ["ddpm small", "ddim 0.6", "euler-maruyama"])
def test_other_predictions_give_the_same_images(name: str, prediction: str) -> None:
    x, noise = pixels(data(3)), Noise.of(0, range(3))
    ours, plain = (purifier(name, 10, p)(x, noise) for p in (prediction, "epsilon"))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_and_covariance_over_noise(name: str, steps: int) -> None:
    n, expected = 10_000, closed_form(name, steps)
    noise = Noise.of(0, [5]).draws(n)
    state = data(1, seed=2)
    out = in_states(purifier(name, steps)(pixels(state).expand(n, *SHAPE), noise))
    C = expected.covariance
    spread = np.sqrt(np.diag(C))
    mean = expected.A @ state[0] + expected.b
    assert (np.abs(out.mean(0) - mean) < 4.5 * spread / math.sqrt(n)).all()
    tolerance = 4.5 * np.sqrt((np.outer(spread**2, spread**2) + C**2) / n)
    assert (np.abs(np.cov(out.T) - C) < tolerance).all()


def test_locked_stages_take_their_part_out_of_the_covariance() -> None:
    n, expected = 10_000, closed_form("ddpm small", 5)
    for stage in ("forward", "reverse"):
        noise = Noise.of(0, [5]).lock(stage).draws(n)
        out = in_states(purifier("ddpm small", 5)(pixels(data(1)).expand(n, *SHAPE), noise))
        C = sum(c @ c.T for (s, _), c in expected.C.items() if s != stage)
        spread = np.diag(C)
        tolerance = 4.5 * np.sqrt((np.outer(spread, spread) + C**2) / n)
        assert (np.abs(np.cov(out.T) - C) < tolerance).all()


@pytest.mark.parametrize(
    ("name", "top"), [*((n, 100) for n in SAMPLERS), ("ddpm small", 300), ("flow heun", 300)]
)
def test_purified_data_tend_to_the_data(name: str, top: int) -> None:
    """Clean data purified is data again, the better the more steps: closed form, then ours."""
    divergences = []
    for steps in (5, 20, top):
        form = closed_form(name, steps, top)
        mean = form.A @ MEAN + form.b
        covariance = form.A @ COVARIANCE @ form.A.T + form.covariance
        divergences.append(kl(mean, covariance))
    assert divergences[0] > divergences[1] > divergences[2]
    assert divergences[2] < 0.012

    n = 8_000
    out = purifier(name, steps, t_star=top / 1000)(pixels(data(n)), Noise.of(0, range(n)))
    states = in_states(out)
    assert kl(states.mean(0), np.cov(states.T)) == pytest.approx(divergences[2], abs=5e-3)


def test_the_denoiser_is_exact() -> None:
    """x0_hat is the regression of x0 on x_t: its error is uncorrelated with x_t."""
    n, t = 50_000, 200
    x0, z = data(n), np.random.default_rng(9).standard_normal((n, 4))
    a2 = float(ALPHA_BAR[t])
    x = math.sqrt(a2) * x0 + math.sqrt(1 - a2) * z
    estimate = purifier("ddpm small", 1).denoiser(torch.from_numpy(x.reshape(-1, *SHAPE)), t)
    error = x0 - estimate.x0.flatten(1).numpy()
    correlation = np.corrcoef(np.concatenate([error, x], 1).T)[:4, 4:]
    assert np.abs(correlation).max() < 4.5 / math.sqrt(n)
    assert np.abs(error.mean(0)).max() < 4.5 * error.std() / math.sqrt(n)
