"""DiffPure: what it refuses, which stages it draws at, which times it visits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from depure.diffusion import (
    DDIM,
    DDPM,
    Checkpoint,
    Denoiser,
    EulerMaruyama,
    Full,
    Grid,
    ProbabilityFlow,
    Sampler,
    Straight,
)
from depure.noise import Noise
from depure.purifiers import DiffPure, Identity
from depure.purifiers.diffusion.rounds import Rounds

MakeDenoiser = Callable[..., Denoiser]


class Recorder(Noise):
    """Noise that remembers what it was asked for."""

    def normal(self, stage: str, step: Any, like: Tensor) -> Tensor:
        self.__dict__.setdefault("asked", []).append((stage, step))
        return super().normal(stage, step, like)


def diffpure(make: MakeDenoiser, sampler: Sampler | None = None, **settings: Any) -> DiffPure:
    sde = isinstance(sampler, EulerMaruyama | ProbabilityFlow)
    return DiffPure(make("vpsde" if sde else "discrete"), sampler, **{"steps": 3, **settings})


def ended(rounds: Rounds, x: Tensor) -> Tensor:
    return Full().run(rounds.chain(x, lambda state: state[0]), x)


# --- what it computes --------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("sampler", [DDPM("large"), DDIM(), EulerMaruyama()])
def test_is_the_chain_between_pixels(
    make_denoiser: MakeDenoiser, images: Tensor, noise: Noise, sampler: Sampler, clamp: bool
) -> None:
    purifier, before = diffpure(make_denoiser, sampler, rounds=2, clamp=clamp), images.clone()
    rounds = Rounds(purifier.denoiser, sampler, Grid(0.1, 3), noise, 2)
    with torch.no_grad():
        expected = (ended(rounds, images * 2 - 1) + 1) / 2
        out = purifier(images, noise)
    assert expected.min() < 0
    assert expected.max() > 1
    assert torch.equal(out, expected.clamp(0, 1) if clamp else expected)
    assert torch.equal(images, before)


def test_defaults(make_denoiser: MakeDenoiser) -> None:
    purifier = DiffPure(make_denoiser())
    assert purifier.sampler == DDPM("small", clip_x0=False)
    assert purifier.grid == Grid(0.1, None, "diffpure")
    assert (purifier.rounds, purifier.backprop, purifier.clamp) == (1, Checkpoint(), False)
    assert repr(purifier) == (
        "DiffPure(TinyNet(467 weights, epsilon, "
        "VPDiscrete(T=1000, betas=0.0001..0.02, middle alpha_bar=0.077796658)), "
        "DDPM(variance='small', clip_x0=False), "
        "Grid(t_star=0.1, steps=None, convention='diffpure'), rounds=1, "
        "backprop=Checkpoint(), clamp=False)"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_shape_and_dtype(make_denoiser: MakeDenoiser, dtype: torch.dtype) -> None:
    purifier = DiffPure(make_denoiser(dtype=dtype, channels=1), steps=2)
    x = torch.rand(3, 1, 5, 7, dtype=dtype)
    out = purifier(x, Noise.of(0, range(3)))
    assert (out.shape, out.dtype) == (x.shape, dtype)


def test_same_noise_same_image(make_denoiser: MakeDenoiser, images: Tensor, noise: Noise) -> None:
    purifier = diffpure(make_denoiser)
    first = purifier(images, noise)
    assert torch.equal(purifier(images, noise), first)
    assert torch.equal(copy.deepcopy(purifier)(images, noise), first)
    assert not torch.equal(purifier(images, noise.fold("other")), first)
    assert not torch.equal(purifier(images, Noise.of(1, range(2))), first)


def test_gradient_passes_from_pixels_to_pixels(
    make_denoiser: MakeDenoiser, images: Tensor, noise: Noise
) -> None:
    purifier = diffpure(make_denoiser, DDPM(), backprop=Checkpoint(0))
    x, h = (0.1 + 0.8 * images).requires_grad_(), 1e-5
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    (grad,) = torch.autograd.grad(purifier(x, noise).square().sum(), x)
    with torch.no_grad():
        ends = [purifier(x + s * h * direction, noise).square().sum() for s in (1, -1)]
    numeric = (ends[0] - ends[1]).item() / (2 * h)
    assert (grad * direction).sum().item() == pytest.approx(numeric, rel=1e-6)


# --- stages ------------------------------------------------------------------------------------

STAGES = [
    (DDPM(), ("forward", "reverse")),
    (DDPM("large", True), ("forward", "reverse")),
    (DDIM(), ("forward",)),
    (DDIM(0.3), ("forward", "reverse")),
    (EulerMaruyama(), ("forward", "reverse")),
    (EulerMaruyama(denoise_last=True), ("forward", "reverse")),
    (ProbabilityFlow("heun"), ("forward",)),
]


@pytest.mark.parametrize(("sampler", "stages"), STAGES, ids=lambda v: repr(v))
def test_stages_are_those_drawn_from(
    make_denoiser: MakeDenoiser, images: Tensor, sampler: Sampler, stages: tuple[str, ...]
) -> None:
    purifier = diffpure(make_denoiser, sampler, rounds=2)
    assert purifier.stages == stages
    noise = Recorder(Noise.of(0, range(2)).keys)
    with torch.no_grad():
        purifier(images, noise)
    asked = noise.__dict__["asked"]
    assert {stage for stage, _ in asked} == set(stages)
    assert len(set(asked)) == len(asked)  # no number is used twice
    assert [step for stage, step in asked if stage == "forward"] == [(0, 0), (1, 0)]


@pytest.mark.parametrize(("sampler", "stages"), STAGES, ids=lambda v: repr(v))
def test_locks_hold(
    make_denoiser: MakeDenoiser,
    images: Tensor,
    noise: Noise,
    sampler: Sampler,
    stages: tuple[str, ...],
) -> None:
    purifier = diffpure(make_denoiser, sampler, rounds=2)

    def changes(held: Noise) -> bool:
        outs = [purifier(images, held.fold("draw", i)) for i in range(2)]
        return not torch.equal(*outs)

    assert changes(noise)
    assert not changes(noise.lock(*stages))
    if len(stages) == 2:
        assert changes(noise.lock("forward"))
        assert changes(noise.lock("reverse"))


def test_held_noise_is_per_image(make_denoiser: MakeDenoiser, images: Tensor, noise: Noise) -> None:
    """The same picture at two indices meets different locked noise: no sharing over the batch."""
    purifier = diffpure(make_denoiser)
    twice = images[:1].repeat(2, 1, 1, 1)
    out = purifier(twice, noise.lock("forward", "reverse"))
    assert not torch.equal(out[0], out[1])


# --- conventions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"steps": None}, list(range(99, -1, -1))),
        ({"steps": None, "convention": "addt"}, list(range(100, -1, -1))),
        ({"steps": None, "convention": "adbm"}, list(range(99, -1, -1))),
        ({"steps": 5}, [99, 79, 59, 39, 19]),
        ({"steps": 5, "convention": "addt"}, [100, 80, 60, 40, 20, 0]),
        ({"steps": 2, "rounds": 3}, [99, 49] * 3),
    ],
)
def test_network_calls(
    make_denoiser: MakeDenoiser,
    images: Tensor,
    noise: Noise,
    settings: dict[str, Any],
    labels: list[int],
) -> None:
    purifier = diffpure(make_denoiser, DDPM(), **settings)
    with torch.no_grad():
        purifier(images, noise)
    assert purifier.denoiser.network.labels == labels


def test_vpsde_network_calls(make_denoiser: MakeDenoiser, images: Tensor, noise: Noise) -> None:
    purifier = diffpure(make_denoiser, EulerMaruyama(), steps=None)
    with torch.no_grad():
        purifier(images, noise)
    labels = purifier.denoiser.network.labels
    assert len(labels) == 100
    assert labels[0] == pytest.approx(99.9)
    assert labels[-1] == pytest.approx(999 * (1e-5 + (0.1 - 1e-5) / 100))


def test_heun_calls_twice_a_step(make_denoiser: MakeDenoiser, images: Tensor, noise: Noise) -> None:
    for convention, calls in (("diffpure", 6), ("addt", 7)):  # Euler alone where sigma is 0
        purifier = diffpure(make_denoiser, ProbabilityFlow("heun"), convention=convention)
        with torch.no_grad():
            out = purifier(images, noise)
        assert out.isfinite().all()
        assert purifier.denoiser.network.calls == calls


# --- another gradient --------------------------------------------------------------------------


def test_with_backprop(make_denoiser: MakeDenoiser, images: Tensor, noise: Noise) -> None:
    purifier = diffpure(
        make_denoiser, DDIM(0.5), t_star=0.2, rounds=2, convention="addt", steps=4, clamp=True
    )
    straight = purifier.with_backprop(Straight())
    assert straight.denoiser is purifier.denoiser
    assert isinstance(purifier.backprop, Checkpoint)
    assert repr(straight) == repr(purifier).replace(repr(purifier.backprop), "Straight()")
    x = images.requires_grad_()
    grads = [torch.autograd.grad(p(x, noise).square().sum(), x)[0] for p in (purifier, straight)]
    assert torch.equal(purifier(x, noise), straight(x, noise))
    assert not torch.allclose(*grads)


# --- refusals ----------------------------------------------------------------------------------

GOOD = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
ONE_NAN = GOOD.clone()
ONE_NAN[1, 2, 3, 4] = float("nan")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (2 * GOOD - 2, r"images must lie in \[0, 1\]; got -1 to -1: pass \(x \+ 1\) / 2"),
        (torch.linspace(-1, 1, 384).view(2, 3, 8, 8), r"got -1 to 1: pass \(x \+ 1\) / 2"),
        (255 * GOOD, r"must lie in \[0, 1\]; got 127.5 to 127.5: rescale them"),
        (GOOD + 0.502, r"must lie in \[0, 1\]"),
        (GOOD - 0.502, r"must lie in \[0, 1\]"),
        (ONE_NAN, "must be finite; got NaN"),
        (GOOD / 0, r"must lie in \[0, 1\]; got inf"),
        (-GOOD / 0, r"must lie in \[0, 1\]; got -inf"),
        ((255 * GOOD).to(torch.uint8), r"floating point; got torch.uint8: pass x.float\(\) / 255"),
        (GOOD[0], r"shape \(B, C, H, W\); got \(3, 8, 8\): add a batch dimension with x\[None\]"),
        (GOOD.flatten(1), r"shape \(B, C, H, W\); got \(2, 192\)"),
        (GOOD[:0], "must not be empty"),
        (GOOD.tolist(), "got list"),
        (GOOD.numpy(), "got ndarray"),
        (GOOD[:1], "1 images need one row of noise each; got 2 rows"),
        (GOOD.repeat(2, 1, 1, 1), "4 images need one row of noise each; got 2 rows"),
    ],
)
def test_bad_images(make_denoiser: MakeDenoiser, noise: Noise, x: Any, message: str) -> None:
    for purifier in (diffpure(make_denoiser), Identity()):
        with pytest.raises(ValueError, match=message):
            purifier(x, noise)


def test_a_hair_outside_the_range_is_left_alone(make_denoiser: MakeDenoiser, noise: Noise) -> None:
    """Finite differences at the edge of the range must not meet a hidden clamp."""
    purifier = diffpure(make_denoiser, DDPM())
    rounds = Rounds(purifier.denoiser, DDPM(), Grid(0.1, 3), noise)
    for x in (GOOD + 0.5009, GOOD - 0.5009):
        assert torch.equal(purifier(x, noise), (ended(rounds, 2 * x - 1) + 1) / 2)


@pytest.mark.parametrize(
    ("sampler", "hold", "message"),
    [
        (DDPM(), lambda n: n.lock("foward"), "'foward'.* draws noise at: forward, reverse"),
        (DDPM(), lambda n: n.pool(3, "Reverse"), "names the stage 'Reverse'"),
        (DDPM(), lambda n: n.mix(0.5, "forward", "guide"), "names the stage 'guide'"),
        (DDPM(), lambda n: n.lock(("forward", "reverse")), "names the stage"),
        (DDIM(), lambda n: n.lock("forward", "reverse"), "'reverse'.* draws noise at: forward$"),
    ],
)
def test_misspelt_stage(
    make_denoiser: MakeDenoiser,
    images: Tensor,
    noise: Noise,
    sampler: Sampler,
    hold: Callable[[Noise], Noise],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        diffpure(make_denoiser, sampler)(images, hold(noise))


def test_train_mode_of_a_part(make_denoiser: MakeDenoiser, images: Tensor, noise: Noise) -> None:
    purifier = diffpure(make_denoiser)
    with pytest.raises(ValueError, match="stays in eval mode"):
        purifier.train()
    purifier(images, noise)
    purifier.denoiser.network.dropout.train()
    with pytest.raises(ValueError, match=r"purifier has a part in train mode \(Dropout\)"):
        purifier(images, noise)
    purifier.eval()
    purifier(images, noise)


@pytest.mark.parametrize(
    ("schedule", "settings", "message"),
    [
        ("discrete", {"rounds": 0}, "rounds must be at least 1; got 0"),
        ("discrete", {"t_star": 0.0}, "t_star must lie in"),
        ("discrete", {"t_star": 100}, "t_star must lie in"),
        ("discrete", {"steps": 101}, "steps must be at most 100"),
        ("discrete", {"steps": 3, "convention": "addt"}, "steps that divide 100"),
        ("discrete", {"convention": "ddpm"}, "convention must be one of"),
        ("vpsde", {"convention": "adbm"}, "needs a discrete schedule"),
        ("discrete", {"sampler": EulerMaruyama()}, r"integrates the VP-SDE.*schedule=VPSDE\(\)"),
        ("discrete", {"sampler": ProbabilityFlow()}, "integrates the VP-SDE"),
    ],
)
def test_bad_settings(
    make_denoiser: MakeDenoiser, schedule: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DiffPure(make_denoiser(schedule), **settings)


def test_identity(images: Tensor, noise: Noise) -> None:
    identity = Identity()
    assert identity(images, noise) is images
    assert identity.stages == ()
    assert repr(identity) == "Identity()"
    with pytest.raises(ValueError, match="none: it is deterministic"):
        identity(images, noise.lock("forward"))
