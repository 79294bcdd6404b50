"""A purifier that is a loop of its author's own: gradients, states, memory and settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from depure.defences import Defended
from depure.diffusion import Adjoint, Blind, Chain, Checkpoint, Full, Link, Straight, Surrogate
from depure.diffusion.backprop import replay
from depure.diffusion.chain import inner_gradient
from depure.evaluation.cost import counted
from depure.evaluation.memory import peak_bytes
from depure.noise import Noise
from depure.purifiers import Chained

NOISE = Noise.of(0, range(3))


@dataclass(frozen=True)
class Settings:
    steps: int = 6
    rate: float = 0.3
    decay: float = 0.5


class Smooth(nn.Module):
    """A small smooth network of some channels."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        for p in self.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x)) + x


class Guided(Chained):
    """Momentum descent towards features of the image, which is noised first.

    State: the image, its momentum, and how many steps were taken. Context: the image's features.
    """

    stages = ("noise", "step")

    def __init__(self, settings: Settings | None = None, backprop=None) -> None:
        super().__init__(settings or Settings(), backprop)
        self.energy, self.features = Smooth(), Smooth()
        self.check()
        self.eval()

    def chain(self, x: Tensor, noise: Noise) -> Chain:
        s: Settings = self.settings
        y = x + 0.1 * noise.normal("noise", 0, x)
        start = (y, torch.zeros_like(y), torch.zeros((), dtype=torch.int64))

        def step(state, context):
            y, m, count = state
            target = context[0]

            def apart(y: Tensor) -> Tensor:
                return (self.features(y) - target).square().flatten(1).sum(1)

            (pull,) = inner_gradient(apart, y)
            m = s.decay * m + self.energy(y) - y + pull
            z = noise.normal("step", int(count), y)
            return y - s.rate / (1 + int(count)) * m + 0.01 * z, m, count + 1

        links = tuple(Link(step, "step", 0, i / s.steps) for i in range(s.steps))
        return Chain(
            start, links, lambda state: state[0].sigmoid(), (self.features(x),),
            shorter=lambda n: self.with_settings(replace(s, steps=n)).chain(x, noise),
        )  # fmt: skip


def by_hand(x: Tensor, purifier: Guided, noise: Noise = NOISE) -> Tensor:
    """The same loop written out, all of it under autograd."""
    s, target = purifier.settings, purifier.features(x)
    y = x + 0.1 * noise.normal("noise", 0, x)
    m = torch.zeros_like(y)
    for i in range(s.steps):
        total = (purifier.features(y) - target).square().sum()
        (pull,) = torch.autograd.grad(total, y, create_graph=True)
        m = s.decay * m + purifier.energy(y) - y + pull
        y = y - s.rate / (1 + i) * m + 0.01 * noise.normal("step", i, y)
    return y.sigmoid()


@pytest.fixture
def x():
    return torch.rand(3, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def gradient(run, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(run(leaf).sin().sum(), leaf)
    return found


def budget(kept: float, purifier: Guided, x: Tensor) -> int:
    """A memory limit that keeps the graphs of this share of the links, and no more."""
    from depure.diffusion.backprop.checkpoint import step_bytes

    size = step_bytes(purifier.prepared(x, NOISE))
    return int(size * (kept * purifier.settings.steps + (kept > 0)))


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("segment", [1, 3])
def test_the_gradient_is_that_of_the_loop_written_out(x, kept, segment, monkeypatch):
    def fallback(*args, **settings):
        raise AssertionError("the chain was checkpointed by PyTorch")

    monkeypatch.setattr(replay, "checkpoint", fallback)
    purifier = Guided().double()
    driver = Checkpoint(budget(kept, purifier, x), segment)
    purifier = purifier.with_backprop(driver)
    assert driver.kept(purifier.prepared(x, NOISE), x) == int(kept * purifier.settings.steps)
    torch.testing.assert_close(purifier(x, NOISE), by_hand(x.clone().requires_grad_(), purifier))
    exact = gradient(lambda leaf: by_hand(leaf, purifier), x)
    found = gradient(lambda leaf: purifier(leaf, NOISE), x)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_holding_the_reference_constant_would_hide_part_of_the_gradient(x):
    """The path through the context counts: without it the gradient is another."""
    purifier = Guided().double()

    def held(leaf: Tensor) -> Tensor:
        constant = purifier.features(x)
        return by_hand(leaf, _Holding(purifier, constant))

    exact = gradient(lambda leaf: by_hand(leaf, purifier), x)
    assert (gradient(held, x) - exact).norm() > 0.1 * exact.norm()


class _Holding:
    """The purifier, but the features of the image are a constant."""

    def __init__(self, purifier: Guided, constant: Tensor) -> None:
        self.settings, self.energy = purifier.settings, purifier.energy
        self._features, self._constant, self._first = purifier.features, constant, True

    def features(self, y: Tensor) -> Tensor:
        if self._first:
            self._first = False
            return self._constant
        return self._features(y)


def test_every_state_has_its_gradient(x):
    full, bounded = (Guided(backprop=b).double() for b in (Full(), Checkpoint(0)))
    for place in (0, 2, 5):
        one, other = (
            gradient(lambda leaf, p=p, i=place: p.states(leaf, NOISE)[i][0], x)
            for p in (full, bounded)
        )
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)
    states = bounded.states(x, NOISE)
    assert [int(state[2]) for state in states] == [1, 2, 3, 4, 5, 6]  # carried, not differentiated
    pictures = list(bounded.pictures(x, NOISE))
    assert len(pictures) == 7
    assert torch.equal(pictures[-1], bounded(x, NOISE))


def test_autocast_is_met_again_when_a_link_is_recomputed(x):
    x = x.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = [gradient(lambda leaf, b=b: Guided(backprop=b)(leaf, NOISE), x)
                 for b in (Full(), Checkpoint(0))]  # fmt: skip
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    plain = gradient(lambda leaf: Guided(backprop=Checkpoint(0))(leaf, NOISE), x)
    assert not torch.allclose(found[1], plain, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_steps(x):
    def peak(steps: int, backprop) -> int:
        purifier = Guided(Settings(steps), backprop).double()
        large = x.repeat(1, 1, 6, 6)
        return peak_bytes(lambda: gradient(lambda leaf: purifier(leaf, NOISE), large))

    states = 3 * 2 * 30 * 30 * 8 * 2  # bytes of image and momentum, which are stored for each step
    assert peak(24, Checkpoint(0)) - peak(8, Checkpoint(0)) <= 1.1 * 16 * states
    assert peak(24, Full()) - peak(8, Full()) > 3 * 16 * states


def test_approximations_act_on_images(x):
    purifier = Guided().double()
    value = purifier(x, NOISE)
    for driver in (Straight(), Blind(), Surrogate(3)):
        other = purifier.with_backprop(driver)
        assert torch.equal(other(x, NOISE), value)
        assert not other.exact
    leaf = x.clone().requires_grad_()
    straight = purifier.with_backprop(Straight())(leaf, NOISE)
    assert torch.equal(torch.autograd.grad(straight.sum(), leaf)[0], torch.ones_like(x))
    short = purifier.with_settings(Settings(steps=3)).with_backprop(Full())
    torch.testing.assert_close(
        gradient(
            lambda leaf: purifier.with_backprop(Surrogate(3, exact_value=False))(leaf, NOISE), x
        ),
        gradient(lambda leaf: short(leaf, NOISE), x),
        rtol=1e-10,
        atol=1e-12,
    )
    with pytest.raises(ValueError, match="SDE"):
        purifier.with_backprop(Adjoint())(x.clone().requires_grad_(), NOISE)


def test_settings_and_drivers_make_new_purifiers_that_share_their_networks(x):
    purifier = Guided().double()
    other = purifier.with_settings(replace(purifier.settings, steps=2))
    assert (purifier.settings.steps, other.settings.steps) == (6, 2)
    assert other.energy is purifier.energy
    assert not torch.equal(other(x, NOISE), purifier(x, NOISE))
    with pytest.raises(ValueError, match=r"settings must be Settings, as in replace"):
        purifier.with_settings(3)
    with pytest.raises(ValueError, match="backprop must be a Backprop"):
        purifier.with_backprop("full")
    with pytest.raises(ValueError, match="settings must be a frozen dataclass"):
        Guided({"steps": 3})


def test_calls_of_its_parts_are_counted(x):
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3]

    model = Defended(Guided().double(), Head())
    with counted(model) as cost, torch.no_grad():
        model(x, NOISE)
    # features of the image and, in each of 6 steps, features and energy: 13 calls of 3 rows
    assert (cost.purifier_calls, cost.recomputed_calls) == (13 * len(x), 0)
    model = Defended(model.purifier.with_backprop(Checkpoint(0)), Head())
    with counted(model) as cost:
        gradient(lambda leaf: model(leaf, NOISE), x)
    assert (cost.purifier_calls, cost.recomputed_calls) == (13 * len(x), 12 * len(x))


def test_a_part_in_train_mode_is_refused(x):
    purifier = Guided().double()
    purifier.energy.train()
    with pytest.raises(ValueError, match="train mode"):
        purifier(x, NOISE)
