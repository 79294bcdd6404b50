from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from depure.diffusion import VPSDE, VPDiscrete
from depure.noise import Noise
from depure.training import ContinuousProcess, DiscreteProcess, EDMProcess, Process

DISCRETE = DiscreteProcess(VPDiscrete.linear())
CONTINUOUS = ContinuousProcess(VPSDE())
PROCESSES: dict[str, Process] = {
    "discrete": DISCRETE,
    "continuous": CONTINUOUS,
    "edm": EDMProcess(),
}
B = 5


def batch(process: Process, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    noise = Noise.of(0, range(B))
    x0 = 2 * noise.uniform("x", 0, torch.empty(B, 2, 4, 4, dtype=dtype)) - 1
    t = process.times(noise.uniform("t", 0, torch.empty(B, dtype=dtype)))
    return x0, t, noise.normal("eps", 0, x0)


def network(x: Tensor, labels: Tensor) -> Tensor:
    return 0.7 * x.roll(1, -1) + labels.to(x.dtype).cos().view(-1, 1, 1, 1) * x.square()


def by_hand(name: str, t: Tensor) -> list[tuple[float, float]]:
    """alpha and sigma of each time, from the definitions, as Python floats."""
    pairs = []
    for s in t.tolist():
        if name == "discrete":
            product = math.prod(1 - (1e-4 + i * (0.02 - 1e-4) / 999) for i in range(s + 1))
            pairs.append((math.sqrt(product), math.sqrt(1 - product)))
        elif name == "continuous":
            a = math.exp(-0.5 * 19.9 * s * s - 0.1 * s)
            pairs.append((math.sqrt(a), math.sqrt(1 - a)))
        else:
            pairs.append((1.0, s))
    return pairs


@pytest.mark.parametrize("name", PROCESSES)
def test_diffuse_and_gamma(name: str) -> None:
    process = PROCESSES[name]
    x0, t, eps = batch(process)
    x_t, gamma = process.diffuse(x0, t, eps), process.gamma(t, x0)
    for i, (alpha, sigma) in enumerate(by_hand(name, t)):
        torch.testing.assert_close(x_t[i], alpha * x0[i] + sigma * eps[i], rtol=0, atol=1e-10)
        assert float(gamma[i]) == pytest.approx(alpha / sigma, rel=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_denoiseds_make_up_x_t(name: str) -> None:
    process = PROCESSES[name]
    x0, t, eps = batch(process)
    x_t = process.diffuse(x0, t, eps)
    denoised = process.denoised(network, x_t, t)
    alpha, sigma = (s.view(-1, 1, 1, 1) for s in process.scales(t, x0))
    torch.testing.assert_close(alpha * denoised.x0 + sigma * denoised.eps, x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["discrete", "continuous"])
def test_vp_networks_predict_eps_and_are_told_the_label(name: str) -> None:
    process = PROCESSES[name]
    x0, t, _ = batch(process)
    eps = process.denoised(network, x0, t).eps
    label = t if name == "discrete" else 999.0 * t
    assert torch.equal(eps, network(x0, label))
    told: list[Tensor] = []
    process.denoised(lambda x, labels: told.append(labels) or x, x0.float(), t)
    assert told[0].dtype == (torch.int64 if name == "discrete" else torch.float32)


def test_edm_preconditioning_and_loss() -> None:
    """Karras et al., table 1 and equation 8, image by image."""
    process = EDMProcess(sigma_data=0.4)
    x0, t, eps = batch(process)
    x_t = x0 + t.view(-1, 1, 1, 1) * eps
    denoised, loss = process.denoised(network, x_t, t), process.loss(network, x0, t, eps)
    for i, sigma in enumerate(t.tolist()):
        c_skip = 0.16 / (sigma**2 + 0.16)
        c_out = sigma * 0.4 / math.sqrt(0.16 + sigma**2)
        c_in = 1 / math.sqrt(sigma**2 + 0.16)
        c_noise = torch.tensor([math.log(sigma) / 4], dtype=torch.float64)
        x = x_t[i : i + 1]
        d = c_skip * x + c_out * network(c_in * x, c_noise)
        torch.testing.assert_close(denoised.x0[i : i + 1], d, rtol=0, atol=1e-12)
        weight = (sigma**2 + 0.16) / (sigma * 0.4) ** 2
        expected = weight * (d - x0[i : i + 1]).square().mean()
        assert float(loss[i]) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("sigma", [1e-3, 80.0])
def test_edm_is_precise_in_single_precision(sigma: float) -> None:
    """(D - x) / sigma taken literally would be wrong by 1e-4 at small sigma."""
    x0, _, eps = batch(EDMProcess())
    t = torch.full((B,), sigma, dtype=torch.float64)
    exact = EDMProcess().loss(network, x0, t, eps)
    single = EDMProcess().loss(network, x0.float(), t.float(), eps.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0)
    x_t = EDMProcess().diffuse(x0, t, eps)
    error = (
        EDMProcess().denoised(network, x_t.float(), t.float()).eps
        - EDMProcess().denoised(network, x_t, t).eps
    )
    assert float(error.abs().max()) < 2e-6


def test_vp_loss_is_equation_14_of_ddpm() -> None:
    x0, t, eps = batch(DISCRETE)
    loss = DISCRETE.loss(network, x0, t, eps)
    assert loss.shape == (B,)
    for i, time in enumerate(t.tolist()):
        level = 1.0
        for k in range(time + 1):
            level *= 1.0 - (1e-4 + k * (0.02 - 1e-4) / 999)
        x_t = level**0.5 * x0[i] + (1.0 - level) ** 0.5 * eps[i]
        error = network(x_t[None], t[i : i + 1])[0] - eps[i]
        assert float(loss[i]) == pytest.approx(float(error.square().mean()), rel=1e-10)


def test_times_may_be_limited_to_part_of_the_chain() -> None:
    u = torch.linspace(0.0005, 0.9995, 4000, dtype=torch.float64)
    limited = DiscreteProcess(VPDiscrete.linear(), t_max=0.15).times(u)
    assert (int(limited.min()), int(limited.max())) == (0, 149)
    assert int(DiscreteProcess(VPDiscrete.linear(), t_max=1e-6).times(u).max()) == 0
    real = ContinuousProcess(VPSDE(), first=0.01, t_max=0.15).times(u)
    assert float(real.min()) == pytest.approx(0.01, abs=1e-3)
    assert float(real.max()) == pytest.approx(0.15, abs=1e-3)
    for bad in (0.0, 1.1):
        with pytest.raises(ValueError, match="t_max must lie in"):
            DiscreteProcess(VPDiscrete.linear(), t_max=bad)
    with pytest.raises(ValueError, match=r"first must lie in \(0, 0.15\)"):
        ContinuousProcess(VPSDE(), first=0.2, t_max=0.15)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_network_has_no_loss(name: str) -> None:
    process = PROCESSES[name]
    x0, t, eps = batch(process)

    def exact(x: Tensor, labels: Tensor) -> Tensor:
        if name != "edm":
            return eps
        total = (t.square() + 0.25).sqrt().view(-1, 1, 1, 1)
        sigma = t.view(-1, 1, 1, 1)
        x_t = x * total
        return (x0 - 0.25 / total**2 * x_t) * total / (0.5 * sigma)

    assert float(process.loss(exact, x0, t, eps).abs().max()) < 1e-15


def test_times_follow_their_laws() -> None:
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    assert torch.equal(DISCRETE.times(u).bincount(), torch.full((1000,), 4))
    t = CONTINUOUS.times(u)
    assert stats.kstest(t.numpy(), stats.uniform(1e-3, 0.999).cdf).statistic < 1e-3
    law = stats.lognorm(1.2, scale=math.exp(-1.2))
    assert stats.kstest(EDMProcess().times(u).numpy(), law.cdf).statistic < 1e-3


def test_times_at_the_ends() -> None:
    for dtype in (torch.float32, torch.float64):
        u = torch.tensor([torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
        for steps in (1, 2, 999, 1000, 1024, 1025, 4000):
            process = DiscreteProcess(VPDiscrete.linear(steps))
            assert process.times(u).tolist() == [0, steps - 1]
        for process in PROCESSES.values():
            scales = process.scales(process.times(u), u)
            assert all(bool((s.isfinite() & (s > 0)).all()) for s in scales)


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0])
def test_the_sde_is_precise_in_single_precision(t: float) -> None:
    alpha, sigma = CONTINUOUS.scales(torch.tensor([t]), torch.empty(0))
    assert float(alpha) == pytest.approx(CONTINUOUS.schedule.alpha(t), rel=2e-6)
    assert float(sigma) == pytest.approx(CONTINUOUS.schedule.sigma(t), rel=1e-6)


def test_images_may_be_wrapped_as_diffusers_and_tuples_do() -> None:
    x0, t, eps = batch(DISCRETE)
    plain = DISCRETE.loss(network, x0, t, eps)
    for wrap in (lambda out: (out,), lambda out: SimpleNamespace(sample=out)):
        wrapped: Any = wrap
        assert torch.equal(
            DISCRETE.loss(lambda x, n, w=wrapped: w(network(x, n)), x0, t, eps), plain
        )


def test_settings_are_values() -> None:
    assert DiscreteProcess(VPDiscrete.linear()) == DISCRETE
    assert repr(EDMProcess()) == "EDMProcess(sigma_data=0.5, p_mean=-1.2, p_std=1.2)"


def test_refusals() -> None:
    x0, t, eps = batch(DISCRETE)
    with pytest.raises(ValueError, match=r"integer indices in 0 \.\. 999"):
        DISCRETE.scales(torch.tensor([-1]), x0)  # the clean image, and the last of a Python list
    with pytest.raises(ValueError, match=r"integer indices in 0 \.\. 999"):
        DISCRETE.scales(torch.tensor([0.5]), x0)
    with pytest.raises(ValueError, match=r"real times in \(0, 1\]"):
        CONTINUOUS.scales(torch.tensor([0.0]), x0)
    with pytest.raises(ValueError, match=r"real times in \(0, 1\]"):
        CONTINUOUS.scales(t, x0)
    with pytest.raises(ValueError, match="noise levels sigma above 0"):
        EDMProcess().scales(torch.tensor([0.0]), x0)
    with pytest.raises(ValueError, match="noise levels sigma above 0"):
        EDMProcess().scales(torch.tensor([math.inf]), x0)
    for u in (torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([[0.5]]), torch.tensor([0])):
        for process in PROCESSES.values():
            with pytest.raises(ValueError, match=r"inside \(0, 1\), one for each image"):
                process.times(u)
    with pytest.raises(ValueError, match=r"shape \(5, 2, 4, 4\); got \(5, 4, 4, 4\)"):
        DISCRETE.loss(lambda x, n: x.repeat(1, 2, 1, 1), x0, t, eps)
    with pytest.raises(ValueError, match="returned dict"):
        DISCRETE.loss(lambda x, n: {}, x0, t, eps)
    with pytest.raises(ValueError, match="first must lie"):
        ContinuousProcess(VPSDE(), 0.0)
    with pytest.raises(ValueError, match="sigma_data and p_std"):
        EDMProcess(sigma_data=0.0)
