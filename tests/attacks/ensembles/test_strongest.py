"""The battery of attacks under a budget of calls."""

import pytest
import torch
from torch import nn

from depure.attacks import PGD, Case, DiffHammer, Square, Transfer, Watch, strongest
from depure.noise import Noise
from depure.threat import L1, Linf


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


class Bare(nn.Module):
    """A classifier that counts."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(32, 5, generator=torch.Generator().manual_seed(2))
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return x.flatten(1) @ self.weight


def problem(n, **settings):
    model = Noisy(**settings)
    x = torch.rand(n, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = Noise.of(3, range(n))
    return model, x, model(x, noise.lock("forward")).argmax(1), noise


@pytest.mark.parametrize("ball", [Linf(0.01), L1(0.05)], ids=str)
@pytest.mark.parametrize(
    ("calls", "random"), [(150, True), (400, True), (1500, True), (110, False), (250, False)]
)
def test_the_budget_is_kept(calls, random, ball):
    """On images that no attack breaks, so that none rests."""
    stages = ("forward",) if random else ()
    model, x, y, noise = problem(2, scale=0.01, stages=stages)
    bare = Bare().eval()
    battery = strongest(calls, ball, bare, classes=5, random=random)
    model.rows = 0
    found = battery.search(Case(model, x, y, ball, noise), Watch())
    assert found.attacked.all()
    spent = (model.rows + bare.rows) / 2
    assert 0.5 * calls < spent <= calls


def test_no_plan_exceeds_its_budget_whatever_the_size():
    """By each attack's own count, for sizes too large to run."""
    for calls in [*range(100, 1000, 7), 4000, 20_000, 100_000, 1_000_000]:
        for random in (True, False):
            battery = strongest(calls, Linf(0.1), Bare().eval(), random=random)
            judge = (2 * len(battery.members) + 1) * (battery.judge_draws if random else 1)
            planned = judge + sum(_cost(m, random) for m in battery.members)
            assert planned <= calls
            assert {m.eot for m in battery.members[:1]} <= ({1} if not random else {*range(1, 21)})


def _cost(attack, random):
    if isinstance(attack, Transfer):
        return _cost(attack.attack, False)
    draws = attack.eot if random else 1
    if isinstance(attack, PGD):
        return attack.steps * draws
    if isinstance(attack, DiffHammer):
        return (attack.steps + 1) * draws + 2 * max(20, draws)
    if isinstance(attack, Square):
        return (attack.steps + 1) * 2 * draws if random else attack.steps + 2
    judged = (attack.restarts + 1) * (max(20, draws) if random else 1)
    return judged + attack.restarts * (attack.steps + 1) * draws


def test_the_battery_grows_with_the_budget():
    def kinds(calls, **more):
        return [type(m).__name__ for m in strongest(calls, **more).members]

    bare = Bare().eval()
    assert kinds(120, random=False) == ["PGD", "APGD", "APGD", "Square"]
    assert kinds(120) == ["DiffHammer", "Square"]
    assert kinds(4000) == ["DiffHammer", "APGD", "APGD", "Square"]
    assert kinds(4000, random=False) == ["PGD", "APGD", "APGD", "Square"]
    assert kinds(4000, classifier=bare) == ["DiffHammer", "APGD", "APGD", "Transfer", "Square"]
    assert kinds(4000, ball=L1(12), classifier=bare) == ["APGD", "APGD", "Transfer"]
    members = strongest(16_000).members
    assert (members[0].steps, members[0].eot) == (324, 20)
    assert [m.loss for m in strongest(4000, classes=2).members[1:3]] == ["ce", "margin"]
    runs = strongest(200_000, random=False).members[1]
    assert runs.restarts > 100
    assert 190 <= runs.steps <= 210
    assert strongest(4000).judge_draws == 50
    assert strongest(4000).most_right == 0


def test_accuracy_against_budget(hear_members):
    model, x, y, noise = problem(8)
    calls = []
    battery = strongest(600, Linf(0.05), Bare().eval(), classes=5)
    after = hear_members(lambda *_: calls.append(model.rows))
    found = battery.search(Case(model, x, y, Linf(0.05), noise), after)
    assert len(calls) == found.accuracy.shape[1] == found.attacked.shape[1] + 1
    assert calls == sorted(calls)
    assert calls[-1] > calls[0]
    assert found.accuracy[:, -1].mean() < found.accuracy[:, 0].mean() - 0.2
