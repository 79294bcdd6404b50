"""The continuous adjoint beside the exact gradient of the same chain."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import (
    DDPM,
    VPSDE,
    Adjoint,
    Backprop,
    Checkpoint,
    Denoiser,
    EulerMaruyama,
    Full,
    Grid,
    VPDiscrete,
)
from depure.noise import Noise
from depure.purifiers.diffusion.rounds import Rounds

pytest.importorskip("torchsde")


class SmoothNet(nn.Module):
    """A small smooth network that hears the time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 2, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        time = torch.sin(label / 50.0).view(-1, 1, 1, 1)
        h = torch.tanh(self.first(x) + time)
        return self.last(torch.tanh(self.second(h)))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(SmoothNet().double(), VPSDE())


def run(driver: Backprop, rounds: Rounds, x: Tensor) -> Tensor:
    """From a state to a state, in diffusion space."""
    return driver.run(rounds.chain(x, lambda state: state[0]), x)


def chain_of(denoiser: Denoiser, steps: int, rows: int = 3, rounds: int = 1) -> Rounds:
    noise = Noise.of(seed=1, index=range(rows))
    return Rounds(denoiser, EulerMaruyama(), Grid(0.1, steps), noise, rounds)


def images(rows: int = 3) -> Tensor:
    start = Noise.of(seed=2, index=range(rows)).normal("images", 0, torch.empty(rows, 2, 4, 4))
    return start.double().tanh().requires_grad_()


def gradient(driver: Adjoint | Full, chain: Rounds, x: Tensor) -> Tensor:
    end = run(driver, chain, x)
    weight = torch.linspace(-1.0, 2.0, end[0].numel(), dtype=end.dtype).view(end[0].shape)
    (grad,) = torch.autograd.grad((end * weight).sum(), x)
    return grad


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_value_is_the_chains_own(denoiser: Denoiser, steps: int, rounds: int) -> None:
    chain, x = chain_of(denoiser, steps, rounds=rounds), images()
    expected = run(Full(), chain, x)
    torch.testing.assert_close(run(Adjoint(), chain, x), expected, rtol=0, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(run(Adjoint(), chain, x), run(Adjoint(), chain, x))
        torch.testing.assert_close(run(Adjoint(), chain, x), expected, rtol=0, atol=1e-9)


def test_value_without_noise_in_the_last_step(denoiser: Denoiser) -> None:
    noise = Noise.of(seed=1, index=range(3))
    chain = Rounds(denoiser, EulerMaruyama(denoise_last=True), Grid(0.1, 5), noise)
    x = images()
    assert torch.allclose(run(Adjoint(), chain, x), run(Full(), chain, x), rtol=0, atol=1e-9)


def test_float32_value(denoiser: Denoiser) -> None:
    single = Denoiser(SmoothNet(), VPSDE())
    chain, x = chain_of(single, 50), images().float()
    end = run(Adjoint(), chain, x)
    assert end.dtype == torch.float32
    torch.testing.assert_close(end, run(Full(), chain, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["milstein", pytest.param("euler", marks=pytest.mark.slow)])
def test_gradient_is_approximate_and_improves_with_steps(denoiser: Denoiser, method: str) -> None:
    driver = Adjoint(method)  # type: ignore[arg-type]
    errors, cosines = [], []
    for steps in (10, 40, 160):
        chain, x = chain_of(denoiser, steps), images()
        exact, ours = gradient(Full(), chain, x), gradient(driver, chain, x)
        errors.append(float((ours - exact).norm() / exact.norm()))
        cosines.append(float(torch.cosine_similarity(ours.flatten(), exact.flatten(), dim=0)))
    report = f"relative errors {errors}, cosines {cosines}"
    assert errors[0] > errors[1] > errors[2] > 1e-6, report
    assert cosines[0] < cosines[1] < cosines[2] <= 1.0, report
    assert errors[2] < 0.1, report
    assert not driver.exact


def test_rows_do_not_hear_of_each_other(denoiser: Denoiser) -> None:
    x = images()
    together = gradient(Adjoint(), chain_of(denoiser, 8), x)
    noise = Noise.of(seed=1, index=[1])
    alone = Rounds(denoiser, EulerMaruyama(), Grid(0.1, 8), noise)
    row = x.detach()[1:2].requires_grad_()
    torch.testing.assert_close(gradient(Adjoint(), alone, row), together[1:2], rtol=0, atol=1e-12)


def test_solvers_see_one_brownian_path(denoiser: Denoiser) -> None:
    """Where no score acts, the backward pass retraces the forward pass along one path."""

    class Zero(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return 0.0 * x

    steps = 100
    chain, x = chain_of(Denoiser(Zero(), VPSDE()), steps), images()
    states: list[Tensor] = []
    zero = chain.denoiser.network
    hook = zero.register_forward_hook(lambda _m, a, _o: states.append(a[0].detach().clone()))
    gradient(Adjoint(), chain, x)
    hook.remove()
    # torchsde's contract check calls the network once, then states 0-99 ahead and 100-1 back.
    forward, backward = states[1 : steps + 1], states[steps + 1 :]
    assert len(backward) == steps
    for ahead, back in zip(forward[1:], backward[:0:-1], strict=True):
        # Another path would be off by about 0.7; the drift's own discretisation error is left.
        assert (ahead - back).abs().max() < 0.03


def test_refuses_what_it_cannot_do(denoiser: Denoiser) -> None:
    x, noise = images(), Noise.of(seed=1, index=range(3))
    discrete = Denoiser(SmoothNet().double(), VPDiscrete.linear())
    with pytest.raises(ValueError, match="EulerMaruyama on a VPSDE"):
        run(Adjoint(), Rounds(discrete, DDPM(), Grid(0.1, 5), noise), x)
    with pytest.raises(ValueError, match="diffpure"):
        run(Adjoint(), Rounds(denoiser, EulerMaruyama(), Grid(0.1, 5, "addt"), noise), x)
    with pytest.raises(ValueError, match="milstein, euler"):
        Adjoint("srk")  # type: ignore[arg-type]
    trainable = Denoiser(SmoothNet().double(), VPSDE(), freeze=False)
    with pytest.raises(ValueError, match="freeze"):
        run(Adjoint(), chain_of(trainable, 5), x)
    with torch.no_grad():
        run(Checkpoint(), chain_of(trainable, 5), x)
        run(Adjoint(), chain_of(trainable, 5), x)


def test_names_the_cure_where_torchsde_is_missing(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(ImportError, match=r"pip install 'depure\[adjoint\]'"):
        run(Adjoint(), chain_of(denoiser, 5), images())
