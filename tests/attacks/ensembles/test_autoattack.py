"""AutoAttack's versions, the "fixed" one, and the battery under a budget of calls."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from depure.attacks import (
    APGD,
    FAB,
    PGD,
    Case,
    Ensemble,
    FixedAutoAttack,
    Square,
    Watch,
    autoattack,
    strongest,
)
from depure.noise import Noise
from depure.threat import L1, L2, Linf

BALLS = [Linf(0.1), L2(0.5), L1(1.5)]


class Noisy(nn.Module):
    """A random network behind noise; counts the rows it is given."""

    def __init__(self, classes=5, scale=0.2, stages=("forward",)):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.weight = torch.randn(32, classes, generator=g)
        self.scale, self.rows, self.stages = scale, 0, stages

    def forward(self, x, noise):
        self.rows += len(x)
        z = x + (self.scale * noise.normal("forward", 0, x) if self.stages else 0)
        return torch.tanh(3 * (z - 0.5).flatten(1)) @ self.weight


class Coin(nn.Module):
    """Right with a chance that is written in the image's first pixel; class 0 is right."""

    stages = ("flip",)

    def forward(self, x, noise):
        right = noise.uniform("flip", 0, x[:, 0, 0, :1])[:, 0] < x[:, 0, 0, 0]
        return torch.stack([right, ~right], 1).to(x)


def problem(n, **settings):
    model = Noisy(**settings)
    x = torch.rand(n, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = Noise.of(3, range(n))
    return model, x, model(x, noise.lock("forward")).argmax(1), noise


def test_standard_has_the_published_budgets():
    names = autoattack("standard").members
    assert names == (
        APGD(steps=100, restarts=1, loss="ce", eot=1),
        APGD(steps=100, restarts=1, loss="dlr", targets=9, eot=1),
        FAB(targets=9, steps=100, restarts=1, eot=1),
        Square(steps=5000, eot=1, p_init=0.8, rescale=False),
    )
    assert autoattack("standard", L2(0.5)).members == names
    ce, targeted, fab = autoattack("standard", L1(12)).members
    assert (ce.restarts, ce.shrinking, ce.loss) == (5, True, "ce")
    assert (targeted.restarts, targeted.shrinking, targeted.targets) == (1, True, 5)
    assert fab == names[2]


def test_the_other_versions():
    rand = autoattack("rand")
    assert rand.members == (APGD(100, eot=20), APGD(100, loss="dlr", eot=20))
    assert autoattack("fixed") == FixedAutoAttack(rand.members, evals=20)
    ours, published = autoattack("stochastic").members, autoattack("standard").members
    assert ours == tuple(replace(m, eot=20) for m in published)
    short = autoattack("stochastic", steps=7, queries=50, eot=3).members
    assert [m.steps for m in short] == [7, 7, 7, 50]
    assert {m.eot for m in short} == {3}
    assert short[3].rescale


@pytest.mark.parametrize("version", ["standard", "rand", "stochastic", "fixed"])
@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_few_classes(version, classes):
    model, x, y, noise = problem(2, classes=classes)
    attack = autoattack(version, steps=5, queries=3, eot=2, classes=classes)
    assert Linf(0.1).contains(attack(model, x, y, Linf(0.1), noise), x).all()


@pytest.mark.parametrize("version", ["standard", "rand", "stochastic", "fixed"])
@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_it_runs_in_every_ball_and_hurts(version, ball):
    model, x, y, noise = problem(6)
    attack = autoattack(version, ball, steps=5, queries=5, eot=2, classes=5)
    found = attack.search(Case(model, x, y, ball, noise), Watch())
    assert ball.contains(found.x_adv, x).all()
    assert found.accuracy[:, -1].mean() < found.accuracy[:, 0].mean() - 0.2
    again = attack.search(Case(model, x, y, ball, noise).rows(torch.tensor([4, 1])), Watch())
    assert torch.equal(again.winner, found.winner[[4, 1]])
    torch.testing.assert_close(again.x_adv, found.x_adv[[4, 1]])


def mean_accuracy(model, x, y, noise, n):
    """One image, one draw at a time."""
    right = 0
    for j in range(n):
        right += int(model(x, noise.draws(n)[[j]]).argmax() == y)
    return right / n


def naive_fixed(members, evals, model, x, y, ball, noise):
    """The rule in plain words, one image at a time: incumbent, winner, least accuracy."""
    best, winner = x, -1
    least = mean_accuracy(model, x, y, noise.fold("fixed", 0), evals)
    for i, member in enumerate(members):
        if least == 0:
            break
        found = member(model, x, y, ball, noise.fold("ensemble member", i))
        accuracy = mean_accuracy(model, found, y, noise.fold("fixed", i + 1), evals)
        if accuracy < least:
            best, winner, least = found, i, accuracy
    return best, winner, least


def test_fixed_is_what_it_says():
    model, x, y, noise = problem(10, scale=0.3)
    members = (PGD(1, eot=1), PGD(2, eot=1), APGD(5, loss="dlr", eot=1), Square(3, eot=1))
    ball = Linf(0.13)
    attack = FixedAutoAttack(members, evals=6)
    found = attack.search(Case(model, x, y, ball, noise), Watch())
    for i in range(10):
        best, winner, least = naive_fixed(members, 6, model, x[[i]], y[[i]], ball, noise[[i]])
        torch.testing.assert_close(found.x_adv[[i]], best)
        assert int(found.winner[i]) == winner
        assert float(found.accuracy[i, -1]) == pytest.approx(least)
    assert len(set(found.winner.tolist())) > 2
    assert not found.attacked.all()
    locked = attack.search(Case(model, x, y, ball, noise.lock("forward")), Watch())
    assert set(locked.accuracy.flatten().tolist()) <= {0.0, 1.0}


def test_fixed_is_biased_down_and_the_ensemble_is_not():
    """Five attacks that do nothing to a defence that is right half of the time."""
    x = torch.full((300, 1, 1, 1), 0.5)
    y, noise = torch.zeros(300, dtype=torch.int64), Noise.of(0, range(300))

    nothing = (Square(steps=1, eot=1, p_init=1e-9),) * 5
    ball = Linf(1e-6)
    fixed = FixedAutoAttack(nothing).search(Case(Coin(), x, y, ball, noise), Watch())
    assert abs(fixed.accuracy[:, 0].mean() - 0.5) < 0.02
    assert fixed.accuracy[:, -1].mean() < 0.38
    ours = Ensemble(nothing, judge_draws=20).search(Case(Coin(), x, y, ball, noise), Watch())
    assert abs(ours.accuracy[:, -1].mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: autoattack("plus"), "one of standard, rand, stochastic, fixed; got 'plus'"),
        (lambda: autoattack(classes=1), "classes must be at least 2, a whole number; got 1"),
        (lambda: autoattack(steps=0), "steps must be at least 1"),
        (lambda: autoattack(queries=0), "steps must be at least 1"),
        (lambda: FixedAutoAttack((PGD(),), evals=0), "evals must be at least 1"),
        (lambda: FixedAutoAttack(()), "1 to 127 attacks"),
        (lambda: strongest(3), "3 calls per image are too few for any attack"),
        (lambda: strongest(1000, classes=0), "classes must be at least 2"),
    ],
)
def test_bad_settings(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
