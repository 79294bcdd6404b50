"""Schedules against published numbers, independent formulas and diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from depure.diffusion import VPSDE, Schedule, VPDiscrete

LINEAR, SDE = VPDiscrete.linear(), VPSDE()


@pytest.mark.parametrize(
    ("schedule", "index", "alpha_bar"),
    [
        (LINEAR, 100, 0.8951),  # ADDT noises here (methods.md 2.5)
        (VPDiscrete.linear(first=1e-6), 100, 0.9037),  # ADBM's betas (methods.md 7.4)
        (SDE.discrete(), 99, 0.89702),  # DiffPure noises here (methods.md 1.1)
    ],
)
def test_published_alpha_bars(schedule: VPDiscrete, index: int, alpha_bar: float) -> None:
    assert schedule.alpha(index) ** 2 == pytest.approx(alpha_bar, abs=5e-5)
    assert schedule.sigma(index) ** 2 == pytest.approx(1 - alpha_bar, abs=5e-5)


def test_continuous_alpha_bar() -> None:
    assert SDE.alpha(0.1) ** 2 == pytest.approx(0.89628, abs=5e-6)


def test_addt_sigma() -> None:
    assert LINEAR.sigma(100) / LINEAR.alpha(100) == pytest.approx(0.342, abs=5e-4)


def test_discrete_is_the_product_of_one_minus_beta() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    product = np.cumprod(1 - betas)
    np.testing.assert_allclose(LINEAR.betas, betas, rtol=1e-13)
    for t in (0, 1, 57, 999):
        assert LINEAR.alpha(t) == pytest.approx(math.sqrt(product[t]), rel=1e-12)
        assert LINEAR.label(t) == t
    assert (LINEAR.alpha(-1), LINEAR.sigma(-1)) == (1.0, 0.0)
    assert len(LINEAR) == 1000


@pytest.mark.parametrize("t", [0.0, 1e-9, 1e-5, 0.1, 0.5, 1.0])
def test_continuous_is_the_integral_of_beta(t: float) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(4)  # exact: beta is linear
    integral = (
        t / 2 * sum(w * SDE.beta(t / 2 * (n + 1)) for n, w in zip(nodes, weights, strict=True))
    )
    assert SDE.alpha(t) == pytest.approx(math.exp(-0.5 * integral), rel=1e-12)
    assert SDE.sigma(t) == pytest.approx(math.sqrt(-math.expm1(-integral)), rel=1e-12)
    assert SDE.label(t) == pytest.approx(999 * t)


def test_beta_runs_from_min_to_max() -> None:
    schedule = VPSDE(0.2, 10.0)
    assert (schedule.beta(0), schedule.beta(1)) == (0.2, 10.0)
    assert SDE.beta(0.5) == pytest.approx(10.05, rel=1e-15)


@pytest.mark.parametrize("schedule", [LINEAR, VPDiscrete.cosine(), SDE, VPDiscrete.linear(10)])
def test_variance_is_preserved_and_noise_grows(schedule: Schedule) -> None:
    times = range(len(schedule)) if isinstance(schedule, VPDiscrete) else np.linspace(0, 1, 99)
    sigmas = [schedule.sigma(t) for t in times]
    assert sigmas == sorted(sigmas)
    for t in times:
        assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1.0, abs=1e-12)


def test_discrete_betas_of_the_sde() -> None:
    np.testing.assert_allclose(SDE.discrete().betas, np.linspace(0.1, 20, 1000) / 1000, rtol=1e-12)
    assert len(SDE.discrete(200)) == 200


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_cosine_equals_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2")
    np.testing.assert_allclose(VPDiscrete.cosine(steps).betas, theirs.betas, rtol=2e-5, atol=2e-7)


def test_cosine_follows_its_paper() -> None:
    schedule, steps = VPDiscrete.cosine(), 1000
    for t in (0, 100, 500, 900):
        level = [math.cos((u / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (t + 1, 0)]
        assert schedule.alpha(t) ** 2 == pytest.approx(level[0] / level[1], rel=1e-9)
    assert schedule.betas[-1] == 0.999


def test_values_compare_hash_and_print() -> None:
    assert VPDiscrete.linear() == LINEAR
    assert VPDiscrete.linear(first=1e-6) != LINEAR
    assert hash(VPSDE()) == hash(SDE)
    assert repr(LINEAR) == "VPDiscrete(T=1000, betas=0.0001..0.02, middle alpha_bar=0.077796658)"
    assert repr(SDE) == "VPSDE(beta_min=0.1, beta_max=20.0, label_scale=999.0)"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: VPDiscrete(()), "betas must be a non-empty list"),
        (lambda: VPDiscrete((0.1, 0.0)), "strictly between 0 and 1"),
        (lambda: VPDiscrete((0.1, 1.0)), "strictly between 0 and 1"),
        (lambda: VPDiscrete((0.1, float("nan"))), "strictly between 0 and 1"),
        (lambda: LINEAR.alpha(1000), "from -1 .* to 999; got 1000"),
        (lambda: LINEAR.sigma(-2), "from -1 .* to 999; got -2"),
        (lambda: LINEAR.alpha(0.5), "must be an integer index .* got 0.5"),
        (lambda: SDE.alpha(1.01), r"t must lie in \[0, 1\]; got 1.01"),
        (lambda: SDE.sigma(-1e-9), r"t must lie in \[0, 1\]"),
        (lambda: SDE.sigma(float("nan")), r"t must lie in \[0, 1\]"),
        (lambda: VPSDE(0.0), "0 < beta_min < beta_max"),
        (lambda: VPSDE(20.0, 0.1), "0 < beta_min < beta_max; got 20.0 and 0.1"),
    ],
)
def test_errors(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()
