"""The gradient check passes exact gradients and refuses every kind of broken one."""

import pytest
import torch
from torch import Tensor, nn

from depure.defences import Defended
from depure.diffusion import DDIM, DDPM, Blind, Checkpoint, Full, Straight, Surrogate
from depure.evaluation import verify_gradient
from depure.noise import Noise
from depure.purifiers import BPDA, DiffPure, Purifier

Y = torch.tensor([0, 1])


class Head(nn.Module):
    """A smooth classifier of (B, 3, 8, 8) images."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(4, 192, generator=g) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1)) @ self.w.T


class Custom(Purifier):
    """A purifier written by a user; `kind` says how it is broken."""

    stages = ("jitter",)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.calls = 0

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        z = noise.normal("jitter", 0, x)
        if self.kind == "detached":
            x = x.detach()
        if self.kind == "no_grad":
            with torch.no_grad():
                return torch.sin(x + 0.1 * z)
        if self.kind == "half":
            return 0.5 * torch.sin(x) + 0.5 * torch.sin(2 * x).detach()
        if self.kind == "own randomness":
            self.calls += 1
            z = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.calls))
        if self.kind == "zero":
            return torch.round(0.3 * x + 0.4)
        if self.kind == "nan":
            return torch.sqrt(x - x) + x
        return torch.sin(x + 0.1 * z.to(x))


@pytest.fixture
def single(images):
    return (0.1 + 0.8 * images).float()


def test_exact_drivers_pass_and_approximations_are_measured(make_denoiser, single):
    denoiser = make_denoiser(unet=True, dtype=torch.float32)
    for backprop in (Full(), Checkpoint(), Checkpoint(0)):
        model = Defended(DiffPure(denoiser, DDPM(), steps=4, backprop=backprop), Head())
        found = verify_gradient(
            model, single, Y, approximations=(Straight(), Surrogate(4), Surrogate(1), Blind())
        )
        assert found.passed, found.verdict
        assert found.finite_difference_error < 1e-6
        own, half, straight, same, coarse, blind = found.rows
        assert own.relative_error < 1e-10
        assert half.relative_error < 1e-3
        assert same.relative_error < 1e-10
        for row in (straight, coarse, blind):
            assert row.relative_error > 1e-3
            assert not row.exact
            assert row.cosine < 1 - 1e-6


@pytest.mark.parametrize("backprop", [Straight(), Surrogate(1), Blind()], ids=repr)
def test_declared_approximations_fail_and_say_so(make_denoiser, single, backprop):
    denoiser = make_denoiser(unet=True, dtype=torch.float32)
    model = Defended(DiffPure(denoiser, DDIM(), steps=4, backprop=backprop), Head())
    found = verify_gradient(model, single, Y)
    assert not found.passed
    assert "by choice" in found.verdict
    assert not found.rows[0].exact


@pytest.mark.parametrize("kind", ["detached", "no_grad", "half", "own randomness", "zero", "nan"])
def test_broken_purifiers_fail(kind, single):
    found = verify_gradient(Defended(Custom(kind), Head()), single, Y)
    assert not found.passed
    assert "FAILED" in found.verdict
    assert found.record()  # and can be written down, NaN or not


def test_a_right_custom_purifier_passes_and_bpda_around_it_is_approximate(single):
    assert verify_gradient(Defended(Custom("right"), Head()), single, Y).passed
    wrapped = verify_gradient(Defended(BPDA(Custom("no_grad")), Head()), single, Y)
    assert not wrapped.passed
    assert not wrapped.rows[0].exact


def test_the_model_itself_is_left_as_it_was(make_denoiser, single):
    model = Defended(DiffPure(make_denoiser(dtype=torch.float32), steps=2), Head())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    verify_gradient(model, single, Y)
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_bad_input(single):
    model = Defended(Custom("right"), Head())
    with pytest.raises(ValueError, match="one label per image"):
        verify_gradient(model, single, Y[:1])
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        verify_gradient(model, single * 3, Y)
    with pytest.raises(ValueError, match="loop driver"):
        verify_gradient(model, single, Y, approximations=(Straight(),))
