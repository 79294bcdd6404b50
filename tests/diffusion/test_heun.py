"""Heun's method, with and without churn, against EDM's Algorithms 1 and 2 written out naively."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import (
    DDIM,
    DDPM,
    Adjoint,
    Blind,
    Checkpoint,
    Denoiser,
    EulerMaruyama,
    Full,
    Heun,
    Karras,
    ProbabilityFlow,
    Sampler,
    Straight,
    Surrogate,
)
from depure.noise import Noise
from depure.purifiers import DiffPure

MakeNet = Callable[..., nn.Module]
ADDT: dict[str, float] = {"s_min": 0.01, "s_max": 0.46, "s_noise": 1.007}
STOCHASTIC = Heun.churned(6, steps=5, s_max=0.46)


def edm(make_net: MakeNet, sampler: Sampler | None = None, **settings: Any) -> DiffPure:
    denoiser = Denoiser(make_net(), Karras(), "edm")
    return DiffPure(denoiser, sampler or Heun(), **{"t_star": 0.5, "steps": 5, **settings})


# --- the paper's algorithm boxes ---------------------------------------------------------------


def ideal(net: nn.Module, x: Tensor, sigma: float, sd: float) -> Tensor:
    """D(x; sigma) with the four factors of table 1."""
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / math.sqrt(sd**2 + sigma**2)
    c_in = 1 / math.sqrt(sigma**2 + sd**2)
    c_noise = torch.full((len(x),), 0.25 * math.log(sigma), dtype=x.dtype)
    return c_skip * x + c_out * net(c_in * x, c_noise)


def levels(n: int, top: float, end: float = 0.002, rho: float = 7) -> list[float]:
    spaced = [
        (top ** (1 / rho) + i / (n - 1) * (end ** (1 / rho) - top ** (1 / rho))) ** rho
        for i in range(n)
    ]
    return [*spaced, 0.0]


def algorithm_1(net: nn.Module, x: Tensor, t: list[float], sd: float) -> Tensor:
    for i in range(len(t) - 1):
        d = (x - ideal(net, x, t[i], sd)) / t[i]
        following = x + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d_prime = (following - ideal(net, following, t[i + 1], sd)) / t[i + 1]
            following = x + (t[i + 1] - t[i]) * (d / 2 + d_prime / 2)
        x = following
    return x


def algorithm_2(
    net: nn.Module, x: Tensor, t: list[float], sd: float, z: Callable[[float], Tensor], **s: float
) -> Tensor:
    n = len(t) - 1
    for i in range(n):
        gamma = min(s["S_churn"] / n, math.sqrt(2) - 1) if s["S_min"] <= t[i] <= s["S_max"] else 0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * s["S_noise"] * z(t[i])
        d = (x_hat - ideal(net, x_hat, t_hat, sd)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_prime = (x - ideal(net, x, t[i + 1], sd)) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_prime / 2)
    return x


@pytest.mark.parametrize("steps", [2, 5, 18])
@pytest.mark.parametrize("sigma_data", [0.5, 0.7])
def test_algorithm_1(
    make_net: MakeNet, images: Tensor, noise: Noise, steps: int, sigma_data: float
) -> None:
    net = make_net().eval()
    denoiser = Denoiser(net, Karras(sigma_data), "edm")
    ours = DiffPure(denoiser, Heun(), t_star=0.5, steps=steps)(images, noise)
    start = 2 * images - 1 + 0.5 * noise.normal("forward", (0, 0), images)
    theirs = algorithm_1(net, start, levels(steps, 0.5), sigma_data)
    torch.testing.assert_close(ours, (theirs + 1) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "s"),
    [
        (50, {"S_churn": 6.0, "S_min": 0.01, "S_max": 0.46, "S_noise": 1.007}),  # ADDT
        (5, {"S_churn": 6.0, "S_min": 0.01, "S_max": 0.46, "S_noise": 1.007}),  # at the cap
        (6, {"S_churn": 1.0, "S_min": 0.0, "S_max": math.inf, "S_noise": 1.0}),  # every step
        (6, {"S_churn": 0.0, "S_min": 0.0, "S_max": math.inf, "S_noise": 1.0}),
    ],
    ids=["ADDT", "cap", "every step", "no churn"],
)
def test_algorithm_2(
    make_net: MakeNet, images: Tensor, noise: Noise, steps: int, s: dict[str, float]
) -> None:
    rule = Heun.churned(
        s["S_churn"], steps, s_min=s["S_min"], s_max=s["S_max"], s_noise=s["S_noise"]
    )
    purifier = edm(make_net, rule, steps=steps, rounds=2, clamp=True)
    with torch.no_grad():
        ours = purifier(images, noise)
    assert purifier.denoiser.network.calls == 2 * (2 * steps - 1)
    net, x = make_net().eval(), 2 * images - 1
    for turn in range(2):

        def z(t: float, turn: int = turn) -> Tensor:
            return noise.normal("reverse", (turn, round(t * 1e9)), images)

        start = x + 0.5 * noise.normal("forward", (turn, 0), images)
        with torch.no_grad():
            x = algorithm_2(net, start, levels(steps, 0.5), 0.5, z, **s)
    torch.testing.assert_close(ours, ((x + 1) / 2).clamp(0, 1), rtol=1e-11, atol=1e-11)


def test_network_is_asked_at_the_raised_levels(
    make_net: MakeNet, images: Tensor, noise: Noise
) -> None:
    purifier = edm(make_net, Heun(0.25, 0.01, 0.46), steps=4)
    with torch.no_grad():
        purifier(images, noise)
    t = levels(4, 0.5)
    asked = [t[0], t[1], 1.25 * t[1], t[2], 1.25 * t[2], t[3], t[3]]  # 0.5 and 0.002 are not raised
    assert t[2] > 0.01
    assert purifier.denoiser.network.labels == pytest.approx([math.log(u) / 4 for u in asked])


def test_the_range_of_churn_includes_its_ends(make_net: MakeNet, images: Tensor) -> None:
    denoiser, x = Denoiser(make_net(), Karras(), "edm"), 2 * images - 1
    z = torch.ones_like(x)
    plain = Heun().step(denoiser, x, 0.3, 0.1, None)
    for s_min, s_max, churned in [(0.3, 1.0, True), (0.0, 0.3, True), (0.31, 1, False)]:
        out = Heun(0.1, s_min, s_max).step(denoiser, x, 0.3, 0.1, z)
        assert torch.equal(out, plain) != churned
    assert torch.equal(Heun(0.1).step(denoiser, x, 0.3, 0.1, None), plain)


def test_euler_is_ddim(make_net: MakeNet, images: Tensor) -> None:
    denoiser, x = Denoiser(make_net(), Karras(), "edm"), 2 * images - 1
    last = Heun().step(denoiser, x, 0.3, 0.0, None)
    torch.testing.assert_close(last, DDIM().step(denoiser, x, 0.3, 0.0, None))
    torch.testing.assert_close(last, denoiser(x, 0.3).x0)
    ahead = DDIM().step(denoiser, x, 0.3, 0.1, None)
    torch.testing.assert_close(ahead, x - 0.2 * denoiser(x, 0.3).eps)


# --- settings ----------------------------------------------------------------------------------


def test_addt_settings() -> None:
    rule = Heun.churned(6, steps=50, **ADDT)
    assert rule == Heun(0.12, 0.01, 0.46, 1.007)
    assert repr(rule) == "Heun(churn=0.12, s_min=0.01, s_max=0.46, s_noise=1.007)"


def test_churn_is_capped_as_published() -> None:
    assert Heun.churned(80, steps=18).churn == math.sqrt(2) - 1
    assert Heun.churned(40, steps=256).churn == 40 / 256
    assert Heun.churned(0, steps=18) == Heun()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Heun(6), r"in \[0, sqrt\(2\) - 1\]; got 6: pass S_churn / steps, or use"),
        (lambda: Heun(-0.1), "churn, a share of the noise level, must lie in"),
        (lambda: Heun(math.nan), "churn, a share"),
        (lambda: Heun(0.1, 0.5, 0.4), "0 <= s_min <= s_max; got 0.5 and 0.4"),
        (lambda: Heun(0.1, -0.5), "0 <= s_min <= s_max"),
        (lambda: Heun(0.1, s_noise=0.0), "s_noise must be a number above 0; got 0.0"),
        (
            lambda: Heun.churned(-1, 5),
            "s_churn must be at least 0 and steps at least 1; got -1 and",
        ),
        (lambda: Heun.churned(1, 0), "steps at least 1; got 1 and 0"),
    ],
)
def test_errors(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.parametrize("schedule", ["discrete", "vpsde"])
def test_heun_is_refused_elsewhere(
    make_denoiser: Callable[..., Denoiser], images: Tensor, schedule: str
) -> None:
    denoiser = make_denoiser(schedule)
    for act in (
        lambda: DiffPure(denoiser, Heun()),
        lambda: Heun().step(denoiser, images, 1, 0, None),
    ):
        with pytest.raises(ValueError, match=r"integrates EDM's ODE.* use ProbabilityFlow"):
            act()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (DDPM(), r"DDPM\(.* preserves variance.* is Karras\(.*: use Heun\(\)"),
        (DDIM(0.5), r"DDIM\(eta=0.5.* preserves variance.* or DDIM\(eta=0\)"),
        (EulerMaruyama(), r"integrates the VP-SDE.* Karras\(.*: use Heun\(\)"),
        (ProbabilityFlow("heun"), r"integrates the VP-SDE.*: use Heun\(\)"),
    ],
)
def test_other_rules_are_refused(
    make_net: MakeNet, images: Tensor, rule: Sampler, message: str
) -> None:
    denoiser = Denoiser(make_net(), Karras(), "edm")
    for act in (
        lambda: edm(make_net, rule),
        lambda: rule.step(denoiser, images, 0.5, 0.1, images),
    ):
        with pytest.raises(ValueError, match=message):
            act()


# --- gradients ---------------------------------------------------------------------------------


def value_and_grad(purifier: DiffPure, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = purifier(x, noise)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out).sin()
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    return out.detach(), grad


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("rule", [Heun(), STOCHASTIC, DDIM()], ids=repr)
def test_exact_drivers_agree(
    make_net: MakeNet, images: Tensor, noise: Noise, rule: Sampler, rounds: int, steps: int
) -> None:
    purifier = edm(make_net, rule, rounds=rounds, steps=steps, backprop=Full())
    value, grad = value_and_grad(purifier, images, noise)
    assert grad.norm() > 1e-3
    for driver in (Checkpoint(), Checkpoint(0), Checkpoint(0, segment=2)):
        ours, ours_grad = value_and_grad(purifier.with_backprop(driver), images, noise)
        assert torch.equal(ours, value), driver
        assert (ours_grad - grad).norm() < 1e-12 * grad.norm(), driver


@pytest.mark.parametrize("rule", [Heun(), STOCHASTIC], ids=repr)
def test_gradient_is_the_slope(make_net: MakeNet, images: Tensor, noise: Noise, rule: Heun) -> None:
    purifier, x, h = edm(make_net, rule, backprop=Checkpoint(0)), 0.1 + 0.8 * images, 1e-5
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(purifier(leaf, noise).square().sum(), leaf)
    with torch.no_grad():
        ends = [purifier(x + s * h * direction, noise).square().sum() for s in (1, -1)]
    assert (grad * direction).sum().item() == pytest.approx(
        (ends[0] - ends[1]).item() / (2 * h), rel=1e-6
    )


@pytest.mark.parametrize("rule", [Heun(), STOCHASTIC], ids=repr)
def test_approximate_drivers(make_net: MakeNet, images: Tensor, noise: Noise, rule: Heun) -> None:
    purifier = edm(make_net, rule)
    value, exact = value_and_grad(purifier, images, noise)
    straight, identity = value_and_grad(purifier.with_backprop(Straight()), images, noise)
    surrogate, coarse = value_and_grad(purifier.with_backprop(Surrogate(2)), images, noise)
    assert torch.equal(straight, value)
    torch.testing.assert_close(surrogate, value, rtol=1e-12, atol=1e-12)
    shorter = purifier.chain(images, noise).shorter
    assert shorter is not None
    assert len(shorter(2).links) == 2
    wanted = value_and_grad(edm(make_net, rule, steps=2), images, noise)[1]
    torch.testing.assert_close(coarse, wanted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(coarse, exact)
    assert not torch.allclose(identity, exact)
    blind = value_and_grad(purifier.with_backprop(Blind()), images, noise)[0]
    torch.testing.assert_close(blind, images)


def test_adjoint_is_refused(make_net: MakeNet, images: Tensor, noise: Noise) -> None:
    pytest.importorskip("torchsde")
    with pytest.raises(ValueError, match=r"use Checkpoint\(\)"):
        edm(make_net, backprop=Adjoint())(images, noise)


# --- calls, noise, locks, batches --------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("rule", [Heun(), Heun.churned(6, 50, **ADDT)], ids=repr)
def test_two_calls_a_step_but_one_in_the_last(
    make_net: MakeNet, images: Tensor, noise: Noise, rule: Heun, steps: int
) -> None:
    purifier = edm(make_net, rule, steps=steps)
    with torch.no_grad():
        out = purifier(images, noise)
    assert out.isfinite().all()
    assert purifier.denoiser.network.calls == 2 * steps - 1


@pytest.mark.parametrize(
    ("rule", "stages"), [(Heun(), ("forward",)), (STOCHASTIC, ("forward", "reverse"))]
)
def test_stages_and_locks(
    make_net: MakeNet, images: Tensor, noise: Noise, rule: Heun, stages: tuple[str, ...]
) -> None:
    purifier = edm(make_net, rule, rounds=2)
    assert purifier.stages == stages

    def changes(held: Noise) -> bool:
        outs = [purifier(images, held.fold("draw", i)) for i in range(2)]
        return not torch.equal(*outs)

    assert changes(noise)
    assert not changes(noise.lock(*stages))
    if len(stages) == 2:
        assert changes(noise.lock("forward"))
        assert changes(noise.lock("reverse"))
    else:
        with pytest.raises(ValueError, match=r"'reverse'.* draws noise at: forward$"):
            purifier(images, noise.lock("reverse"))


@pytest.mark.parametrize("rule", [Heun(), STOCHASTIC], ids=repr)
def test_images_beside_do_not_matter(make_net: MakeNet, rule: Heun) -> None:
    indices = [3, 1, 4, 15]
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    purifier = edm(make_net, rule)
    together = purifier(x, Noise.of(0, indices))
    for i, index in enumerate(indices):
        alone = purifier(x[i : i + 1], Noise.of(0, [index]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(together, purifier(x, Noise.of(0, indices[::-1])))


def test_float32_stays_float32_and_near(make_net: MakeNet, images: Tensor, noise: Noise) -> None:
    rule = Heun.churned(6, 50, **ADDT)
    net = make_net(dtype=torch.float32)
    out = DiffPure(Denoiser(net, Karras(), "edm"), rule, t_star=0.5, steps=50)(
        images.float(), noise
    )
    assert out.dtype == torch.float32
    torch.testing.assert_close(
        out.double(), edm(make_net, rule, steps=50)(images, noise), rtol=0, atol=2e-5
    )
