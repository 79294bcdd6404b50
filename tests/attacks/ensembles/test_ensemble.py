"""Ensembles: the worst case per image, on common draws; nobody leaves on one lucky draw."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from depure.attacks import APGD, FAB, PGD, Attack, Case, Ensemble, Square, Watch
from depure.attacks.asking.queries import as_measurement, query_margins
from depure.noise import Noise
from depure.rows import Chunk, chunked
from depure.threat import Linf

BALL = Linf(0.1)
MEMBERS = (PGD(steps=3, eot=2), APGD(steps=6, loss="dlr", eot=2), Square(steps=5, eot=2))


class Noisy(nn.Module):
    """A random network with five classes behind noise; counts the rows it is given."""

    def __init__(self, scale=0.2, stages=("forward",)):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.first = torch.randn(32, 24, generator=g, dtype=torch.float64)
        self.second = torch.randn(24, 5, generator=g, dtype=torch.float64)
        self.scale, self.rows, self.stages = scale, 0, stages

    def forward(self, x, noise):
        self.rows += len(x)
        z = x + (self.scale * noise.normal("forward", 0, x) if self.stages else 0)
        return torch.tanh(z.flatten(1) @ self.first) @ self.second


def problem(n, **settings):
    model = Noisy(**settings)
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n, 2, 4, 4, generator=g, dtype=torch.float64)
    noise = Noise.of(3, range(n))
    y = model(x, noise.lock("forward")).argmax(1)
    y[0] = (y[0] + 1) % 5  # wrong without attack
    return model, x, y, noise


class Coin(nn.Module):
    """Right with a chance that is written in the image's first pixel; class 0 is right."""

    stages = ("flip",)

    def __init__(self):
        super().__init__()
        self.rows = 0

    def forward(self, x, noise):
        self.rows += len(x)
        right = noise.uniform("flip", 0, x[:, 0, 0, :1])[:, 0] < x[:, 0, 0, 0]
        return torch.stack([right, ~right], 1).to(x)


def coins(chances, seed=0):
    x = torch.tensor(chances, dtype=torch.float64).view(-1, 1, 1, 1)
    return Coin(), x, torch.zeros(len(x), dtype=torch.int64), Noise.of(seed, range(len(x)))


@dataclass(frozen=True)
class Paint(Attack):
    """Sets the pixels to values, one for each of the images first seen."""

    values: tuple[float, ...]
    steps: int = 1

    def trace_length(self, case):
        return self.steps

    def propose(self, case, watch):
        values = torch.tensor(self.values, dtype=case.x.dtype).view(-1, 1, 1, 1)
        return values[: len(case.x)].expand_as(case.x)


@dataclass(frozen=True)
class Nothing(Attack):
    steps: int = 1

    def trace_length(self, case):
        return self.steps

    def propose(self, case, watch):
        return case.x.clone()


@dataclass(frozen=True)
class Chatty(Nothing):
    """Calls its watch more often than it says."""

    def propose(self, case, watch):
        for _ in range(self.steps + 2):
            watch.iteration(as_measurement(case.x, *[case.x[:, 0, 0, 0]] * 2))
        return case.x.clone()


def candidates(members, model, x, y, ball, noise):
    """What the ensemble chooses from, the images first, each member asked alone."""
    asked = [m(model, x, y, ball, noise.fold("ensemble member", i)) for i, m in enumerate(members)]
    return torch.stack([x, *asked], 1)


@pytest.mark.parametrize("known", [False, True])
def test_no_candidate_is_better_on_the_same_draws(known):
    model, x, y, noise = problem(12)
    noise = noise.lock("forward") if known else noise
    ensemble = Ensemble(MEMBERS, judge_draws=9)
    assert ensemble.most_right == -1  # on 9 draws nobody is sure, and nobody leaves unless known
    found = ensemble.search(Case(model, x, y, BALL, noise), Watch())
    points = candidates(MEMBERS, model, x, y, BALL, noise)
    answer = query_margins(model, points, y, noise.fold("ensemble"), 9)
    least = answer.accuracy.min(1, keepdim=True).values
    torch.testing.assert_close(found.accuracy[:, -1:], least)
    if not known:
        tied = torch.where(answer.accuracy == least, answer.margin, -torch.inf)
        best = tied.argmax(1)
        torch.testing.assert_close(found.x_adv, points[torch.arange(12), best])
        assert torch.equal(found.winner.long(), best - 1)
        assert len(set(found.winner.tolist())) > 1
        assert found.attacked.all()
    assert (found.accuracy.diff(dim=1) <= 0).all()
    assert torch.equal(ensemble(model, x, y, BALL, noise), found.x_adv)
    assert BALL.contains(found.x_adv, x).all()


@pytest.mark.parametrize("stages", [(), ("forward",)])
def test_without_randomness_it_is_the_worst_case_and_one_wrong_answer_is_enough(stages):
    model, x, y, noise = problem(16, stages=stages)
    noise = noise.lock("forward")
    ball = Linf(0.012)
    members = (PGD(steps=1), APGD(steps=8, loss="margin"), FAB(targets=2, steps=5))
    found = Ensemble(members).search(Case(model, x, y, ball, noise), Watch())
    points = candidates(members, model, x, y, ball, noise)
    right = query_margins(model, points, y, noise, 1).accuracy
    assert torch.equal(found.accuracy, right.cummin(1).values)
    assert torch.equal(found.attacked, right.cummin(1).values[:, :-1] > 0)
    assert 0 < found.accuracy[:, 1].sum() < found.accuracy[:, 0].sum()
    # What was wrong already is no member's doing.
    assert found.winner[0] == -1
    assert torch.equal(found.x_adv[0], x[0])
    assert not found.attacked[0].any()


def test_nobody_leaves_on_a_lucky_draw():
    """A defence right half of the time is wrong on many draws, and stays to the end."""
    chances = [0.5] * 30 + [0.0] * 10
    model, x, y, noise = coins(chances)
    found = Ensemble((Nothing(),) * 3).search(Case(model, x, y, Linf(1.0), noise), Watch())
    assert found.attacked[:30].all()
    assert not found.attacked[30:].any()


def test_an_image_leaves_after_the_member_that_broke_it():
    model, x, y, noise = coins([0.9, 0.9, 0.9])
    members = (Paint((0.6, 0.0, 0.8)), Paint((0.0, 0.9)), Nothing())
    found = Ensemble(members).search(Case(model, x, y, Linf(1.0), noise), Watch())
    assert found.attacked.tolist() == [[True] * 2 + [False], [True, False, False], [True] * 3]
    assert found.winner.tolist() == [1, 0, 0]
    assert found.x_adv.flatten().tolist() == [0.0, 0.0, 0.8]
    assert found.accuracy[:, -1].tolist()[:2] == [0.0, 0.0]


def test_the_confidence_is_kept():
    """Of images on the edge, few leave at any of four stages; of broken ones, nearly all."""
    settings = {"judge_draws": 60, "below": 0.1, "confidence": 0.75}
    ensemble = Ensemble((Nothing(),) * 4, **settings)
    assert ensemble.most_right == 2  # at most 2 of 60: chance 0.053 of the 0.0625 allowed
    for chance, least, most in ((0.1, 0.05, 0.25), (0.005, 0.99, 1.0), (0.2, 0.0, 0.0)):
        model, x, y, noise = coins([chance] * 400, seed=7)
        found = ensemble.search(Case(model, x, y, Linf(1.0), noise), Watch())
        left = float((~found.attacked[:, -1]).double().mean())
        assert least <= left <= most


def test_the_leaving_draws_are_not_those_that_chose():
    """Images that were lucky when they were compared must be so again, on draws of their own."""
    ensemble = Ensemble((Paint((0.35,) * 400), Nothing()), 10, below=0.4, confidence=0.95)
    assert ensemble.most_right == 0
    model, x, y, noise = coins([1.0] * 400)
    found = ensemble.search(Case(model, x, y, Linf(1.0), noise), Watch())
    lucky = found.accuracy[:, 1] == 0
    assert lucky.sum() >= 3
    assert found.attacked[lucky].all()


@pytest.mark.parametrize("known", [False, True])
def test_neighbours_and_chunks_do_not_matter(known):
    model, x, y, noise = problem(7, scale=0.05)
    noise = noise.lock("forward") if known else noise
    ensemble = Ensemble(MEMBERS, judge_draws=12, below=0.5, confidence=0.8)

    def attacked(rows):
        return ensemble.search(Case(model, x[rows], y[rows], BALL, noise[rows]), Watch())

    whole = attacked(list(range(7)))
    assert 0 < whole.attacked[1:].sum() < whole.attacked[1:].numel()
    for rows in ([3], [6, 1, 0], [2, 3, 5, 4]):
        part = attacked(rows)
        torch.testing.assert_close(part.x_adv, whole.x_adv[rows], rtol=0, atol=1e-10)
        for name in ("winner", "accuracy", "attacked"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows])
    for chunk in (1, 5, 1000):
        with chunked(Chunk(chunk)):
            again = attacked(list(range(7)))
        torch.testing.assert_close(again.x_adv, whole.x_adv, rtol=0, atol=1e-10)
        assert torch.equal(again.attacked, whole.attacked)


@pytest.mark.parametrize("known", [False, True])
def test_the_watch_hears_of_all_images_equally_often(known, hear):
    model, x, y, noise = problem(5, scale=0.05)
    noise = noise.lock("forward") if known else noise
    members = (Chatty(steps=2), *MEMBERS, Ensemble((PGD(steps=2, eot=1),)), Nothing(steps=3))
    ensemble, heard = Ensemble(members, judge_draws=12, below=0.5, confidence=0.8), []
    case = Case(model, x, y, BALL, noise)
    found = ensemble.search(case, hear(heard.append))
    assert ensemble.trace_length(case) == 2 + 2 + 3 + 6 + 5 + (2 + 2) + 3
    assert len(heard) == ensemble.trace_length(case)
    assert {m.grad.shape for m in heard} == {x.shape}
    assert {m.loss.shape for m in heard} == {(5,)}
    torch.testing.assert_close(heard[0].accuracy, found.accuracy[:, 0])
    torch.testing.assert_close(heard[-1].accuracy, found.accuracy[:, -1])
    draws = 1 if known else 12
    final = query_margins(model, found.x_adv[:, None], y, noise.fold("ensemble"), draws).margin[
        :, 0
    ]
    torch.testing.assert_close(heard[-1].loss, final)
    alone = []
    PGD(steps=3, eot=2)(
        model, x[1:], y[1:], BALL, noise[1:].fold("ensemble member", 1),
        watch=hear(alone.append),
    )  # fmt: skip
    for one, two in zip(heard[3:6], alone, strict=True):
        torch.testing.assert_close(one.loss[1:], two.loss)
    assert not found.attacked[0].any()
    assert {float(m.loss[0]) for m in heard} == {float(heard[0].loss[0])}


def test_calls_can_be_read_after_the_images_and_each_member(hear_members):
    model, x, y, noise = coins([1.0] * 3)
    members = (Nothing(), Square(steps=4, eot=3))
    ensemble = Ensemble(members, judge_draws=7)
    calls = []
    after = hear_members(lambda number, _: calls.append((number, model.rows)))
    ensemble.search(Case(model, x, y, Linf(0.01), noise), after)
    assert calls == [(0, 21), (1, 42), (2, 42 + 3 * 2 * 3 * 5 + 21)]


def test_answers_that_are_not_finite_count_as_fooled():
    class Fragile(Coin):
        def forward(self, x, noise):
            return torch.where(x[:, 0, 0] > 0.5, super().forward(x, noise), torch.nan)

    _, x, y, noise = coins([0.9, 0.0])
    found = Ensemble((Paint((0.1, 0.1)), Nothing())).search(
        Case(Fragile(), x, y, Linf(1.0), noise), Watch()
    )
    assert found.x_adv.flatten().tolist() == pytest.approx([0.1, 0.0])
    assert found.winner.tolist() == [0, -1]
    assert found.attacked.tolist() == [[True, False], [False, False]]  # wrong from the start


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": ()}, "1 to 127 attacks; got 0"),
        ({"members": [PGD()]}, "a tuple of 1 to 127 attacks; got list"),
        ({"members": (PGD(), "square")}, "every member must be an attack; got 'square'"),
        ({"judge_draws": 0}, "judge_draws must be at least 1"),
        ({"below": 0.0}, "below must be above 0"),
        ({"confidence": 1.0}, r"confidence must lie inside \(0, 1\); got 1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(**{"members": (PGD(),), **settings})


def test_how_many_draws_make_sure():
    """Five members: five tests at 0.01 each; 0.9**43 = 0.0108, 0.9**44 = 0.0097."""
    five = (PGD(),) * 5
    assert [Ensemble(five, judge_draws=n).most_right for n in (43, 44)] == [-1, 0]
    assert Ensemble(five, judge_draws=5000).most_right > 400
    assert Ensemble(five, judge_draws=1, below=1.0).most_right == 0
