"""An image's purification does not depend on the images beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depure.defences import Defended
from depure.diffusion import (
    DDIM,
    DDPM,
    Backprop,
    Checkpoint,
    Denoiser,
    EulerMaruyama,
    ProbabilityFlow,
    Sampler,
    Surrogate,
)
from depure.noise import Noise
from depure.purifiers import DiffPure

MakeDenoiser = Callable[..., Denoiser]
SEED = 11
INDICES = [3, 1, 4, 15, 9, 2, 6]


def picture(index: int) -> Tensor:
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index), dtype=torch.float64)


def batch(indices: list[int]) -> tuple[Tensor, Noise]:
    return torch.stack([picture(i) for i in indices]), Noise.of(SEED, indices)


SPLITS = {
    "alone": [[i] for i in INDICES],
    "another order": [[6, 15, 3, 2, 1, 9, 4]],
    "a last partial batch": [[3, 1, 4], [15, 9, 2], [6]],
    "two workers": [[3, 4, 9, 6], [1, 15, 2]],
    "beside others": [[100, 3, 1, 4, 101], [15, 9, 102, 2, 6, 103]],
    "twice in a batch": [[3, 3, 1, 4], [15, 9, 2, 6, 15]],
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": DDPM("large", clip_x0=True), "rounds": 2},
        {"sampler": DDIM(0.5)},
        {"sampler": EulerMaruyama()},
        {"sampler": ProbabilityFlow("heun")},
        {"sampler": DDPM(), "unet": True},
        {"sampler": DDPM(), "backprop": Checkpoint(0, segment=2)},
        {"sampler": DDPM(), "backprop": Surrogate(2)},
    ],
    ids=lambda s: " ".join(map(repr, s.values())),
)
def test_images_and_gradients(
    make_denoiser: MakeDenoiser, settings: dict[str, Any], split: str
) -> None:
    sampler: Sampler = settings["sampler"]
    backprop: Backprop | None = settings.get("backprop")
    schedule = "vpsde" if isinstance(sampler, EulerMaruyama | ProbabilityFlow) else "discrete"
    denoiser = make_denoiser(schedule, unet=settings.get("unet", False))
    purifier = DiffPure(
        denoiser, sampler, steps=4, rounds=settings.get("rounds", 1), backprop=backprop
    )

    def purified(indices: list[int]) -> list[tuple[int, Tensor, Tensor]]:
        x, noise = batch(indices)
        x.requires_grad_()
        out = purifier(x, noise)
        (grad,) = torch.autograd.grad(out.square().sum(), x)
        return list(zip(indices, out.detach(), grad, strict=True))

    whole = {index: (out, grad) for index, out, grad in purified(INDICES)}
    for part in SPLITS[split]:
        for index, out, grad in purified(part):
            if index in whole:
                torch.testing.assert_close(out, whole[index][0], rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(grad, whole[index][1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("hold", ["nothing", "lock", "pool", "mix"])
@pytest.mark.parametrize("split", SPLITS)
def test_noise_is_exactly_equal(split: str, hold: str) -> None:
    """Also after folds and draws, and whatever is held."""

    def numbers(indices: list[int]) -> dict[int, Tensor]:
        x, noise = batch(indices)
        held = {
            "nothing": noise,
            "lock": noise.lock("reverse"),
            "pool": noise.pool(3, "reverse"),
            "mix": noise.mix(0.4, "reverse"),
        }[hold]
        drawn = held.fold("pgd", 7).draws(5)
        z = drawn.normal("reverse", (1, 99), x.repeat_interleave(5, 0))
        return dict(zip(indices, z.view(len(indices), 5, -1), strict=True))

    whole = numbers(INDICES)
    assert len(torch.cat([z[:1] for z in whole.values()]).unique(dim=0)) == len(INDICES)
    for part in SPLITS[split]:
        for index, z in numbers(part).items():
            if index in whole:
                assert torch.equal(z, whole[index])


def test_draws_in_one_batch_or_one_at_a_time(make_denoiser: MakeDenoiser) -> None:
    """Batched EoT equals sequential EoT (peers.md G10)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double().requires_grad_(False)
    model = Defended(DiffPure(make_denoiser(), steps=3), net)
    x, noise = batch(INDICES)
    x.requires_grad_()

    def loss(x: Tensor, noise: Noise) -> Tensor:
        return model(x, noise).logsumexp(1)

    together = loss(x.repeat_interleave(6, 0), noise.draws(6)).view(-1, 6)
    (gradient,) = torch.autograd.grad(together.sum(), x)
    single, total = [], torch.zeros_like(x)
    for d in range(6):
        rows = noise.draws(6)[torch.arange(len(x)) * 6 + d]
        single.append(loss(x, rows))
        total += torch.autograd.grad(single[-1].sum(), x)[0]
    torch.testing.assert_close(torch.stack(single, 1), together, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, gradient, rtol=1e-10, atol=1e-11)


def test_interruption(make_denoiser: MakeDenoiser) -> None:
    """Noise made again from seed and index continues where the first was left."""
    purifier = DiffPure(make_denoiser(), steps=3)
    x, noise = batch(INDICES)
    whole = [purifier(x, noise.fold("pgd", i)) for i in range(4)]
    again = [purifier(x, batch(INDICES)[1].fold("pgd", i)) for i in (2, 3)]
    assert torch.equal(torch.stack(whole[2:]), torch.stack(again))


def test_no_global_generator_is_touched(make_denoiser: MakeDenoiser) -> None:
    purifier = DiffPure(make_denoiser(), steps=3, backprop=Checkpoint(0))
    x, noise = batch(INDICES)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x.requires_grad_()
    purifier(x, noise).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
