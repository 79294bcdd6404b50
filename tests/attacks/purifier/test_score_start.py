"""Starts along the diffusion model's score, whose closed form Gaussian data give."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from depure.attacks import ScoreStart, SubstituteAttack, Transfer
from depure.cli.attacks import build_attack
from depure.cli.build import build_model
from depure.cli.evaluate import command
from depure.defences import Defended
from depure.diffusion import DDPM, Denoiser, VPDiscrete
from depure.evaluation.record import settings_of
from depure.noise import Noise
from depure.purifiers import DiffPure
from depure.rows import Chunk, chunked
from depure.threat import L2, Flow, Linf

DOUBLE = torch.float64
MEAN, SPREAD = 0.2, 0.3  # of the data, pixel by pixel, in [-1, 1] space


class Exact(nn.Module):
    """E[x0 | x_t] of independent normal pixels."""

    def forward(self, x, labels):
        abar = float(torch.linspace(1e-4, 0.02, 1000, dtype=DOUBLE).neg().add(1).cumprod(0)[labels])
        gain = math.sqrt(abar) * SPREAD**2 / (abar * SPREAD**2 + 1.0 - abar)
        return MEAN + gain * (x - math.sqrt(abar) * MEAN)


class Broken(nn.Module):
    def forward(self, x, labels):
        return torch.where(x[:, :1, :1, :1] > 0.5, torch.nan, x)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(16, 4, generator=g, dtype=DOUBLE))

    def forward(self, x):
        return torch.tanh(x.flatten(1) - 0.5) @ self.w


def purifier(network=None):
    # One label at a time, whatever the batch: Exact reads a single number.
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network or Exact()

        def forward(self, x, labels):
            return self.inner(x, labels[:1])

    return DiffPure(Denoiser(Single(), VPDiscrete.linear(), "x0"), DDPM(), t_star=0.1, steps=2)


MODEL = Defended(purifier(), Head())
SCORED = (MODEL.purifier.denoiser, MODEL.purifier.grid)
NOISE = Noise.of(0, range(4))


def pictures():
    g = torch.Generator().manual_seed(0)
    return 0.1 + 0.8 * torch.rand(4, 1, 4, 4, generator=g, dtype=DOUBLE), torch.tensor([0, 1, 2, 0])


def test_the_way_is_the_score_of_gaussian_data():
    """Tweedie: sigma^2 times the noised density's score at alpha x, over alpha."""
    x, _ = pictures()
    attack = ScoreStart.of(*SCORED, draws=20_000)
    way = attack.direction(x, NOISE)
    a, s = attack.alpha, attack.sigma
    score = -(a * (2 * x - 1) - a * MEAN) / (a**2 * SPREAD**2 + s**2)  # of N(a mean, ...)
    torch.testing.assert_close(way, s**2 * score / a / 2, atol=4e-3, rtol=0)


@pytest.mark.parametrize("ball", [Linf(0.05), L2(0.2)])
@pytest.mark.parametrize("along", [False, True])
def test_a_full_step_down_or_up_the_score(ball, along):
    x, y = pictures()
    attack = ScoreStart.of(*SCORED, along=along, draws=500)
    found = attack(MODEL, x, y, ball, NOISE)
    assert ball.contains(found, x).all()
    torch.testing.assert_close(ball.size(found - x), torch.full((4,), ball.eps, dtype=DOUBLE))

    def unlikely(z):
        return (2 * z - 1 - MEAN).square().flatten(1).sum(1)

    assert ((unlikely(found) < unlikely(x)) == along).all()


def test_rows_stand_alone_and_the_chunk_changes_nothing():
    x, y = pictures()
    attack = ScoreStart.of(*SCORED)
    whole = attack(MODEL, x, y, Linf(0.05), NOISE)
    with chunked(Chunk(7)):
        part = attack(MODEL, x, y, Linf(0.05), NOISE)
    alone = attack(MODEL, x[2:3], y[2:3], Linf(0.05), NOISE[2:3])
    assert torch.equal(whole, part)
    assert torch.equal(whole[2:3], alone)
    locked = attack(MODEL, x, y, Linf(0.05), NOISE.lock("forward"))
    assert torch.equal(locked, whole)


def test_an_image_without_a_score_stays():
    x, y = pictures()
    x[1, :, 0, 0], x[[0, 2, 3], :, 0, 0] = 0.99, 0.1
    model = Defended(purifier(Broken()), Head())
    found = ScoreStart.of(model.purifier.denoiser, model.purifier.grid)(
        model, x, y, Linf(0.05), NOISE
    )
    assert [torch.equal(a, b) for a, b in zip(found, x, strict=True)] == [False, True, False, False]


def test_settings():
    x, y = pictures()
    attack = ScoreStart.of(*SCORED)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        replace(attack, draws=0)
    with pytest.raises(ValueError, match="StAdv"):
        attack(MODEL, x, y, Flow(0.05), NOISE)


def test_on_the_command_line():
    def options(line=""):
        return command.make_context("evaluate", line.split()).params

    model = build_model(options("--images 2 --steps 2"))[0]
    for word, kind in (("transfer", Transfer), ("bpda", SubstituteAttack), ("score", ScoreStart)):
        found = build_attack(options(f"--start {word} --attack-steps 5"), model)
        assert found.steps == 5
        assert isinstance(found.start, kind)
        assert settings_of(found)["start"]["name"] == kind.__name__
    assert build_attack(options("--start score-along"), model).start.along
    assert not build_attack(options("--start score"), model).start.along
    inner = build_attack(options("--attack diffattack --start score"), model).attack
    assert isinstance(inner.start, ScoreStart)
    for line, words in (
        ("--attack square --start score", "--start does not apply to the attack square"),
        ("--attack strongest --start score", "--start does not apply to the attack strongest"),
        ("--start score --random-start", "exclude each other"),
        ("--attack apgd-ce --start score --random-start", "exclude each other"),
        ("--attack transfer --start bpda", "leave one out"),
    ):
        with pytest.raises(ValueError, match=words):
            build_attack(options(line), model)
    with pytest.raises(ValueError, match="leave it here"):
        build_attack(options("--start score"))
    bare = build_model(options("--images 2 --denoiser none"))[0]
    with pytest.raises(ValueError, match="needs a diffusion model"):
        build_attack(options("--start score"), bare)
