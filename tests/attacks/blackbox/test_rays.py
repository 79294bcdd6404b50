import pytest
import torch
from torch import nn

from depure.attacks import RayS
from depure.noise import Noise
from depure.threat import L2, Ball, Linf


class Plane(nn.Module):
    """Class 0 as long as w.(x - 1/2) / |w|_1 < at + noisy z: `at` is the distance."""

    def __init__(self, at=0.1, noisy=0.0, shape=(1, 3, 5)):
        super().__init__()
        self.stages = ("a",) if noisy else ()
        self.at, self.noisy, self.asked = at, noisy, []
        g = torch.Generator().manual_seed(5)
        self.w = torch.randn(shape, generator=g, dtype=torch.float64)

    def reach(self, x):
        return ((x - 0.5) * self.w).flatten(1).sum(1) / self.w.abs().sum()

    def forward(self, x, noise):
        self.asked.append(x)
        lead = self.at - self.reach(x)
        if self.noisy:
            lead = lead + self.noisy * noise.normal("a", 0, x[:, 0, 0, :1])[:, 0]
        return torch.stack([lead, -lead], 1)


class Fixed(nn.Module):
    """Asks are remembered; the answers come from a list, then are all right."""

    def __init__(self, wrong=(), stages=()):
        super().__init__()
        self.stages, self.wrong, self.asked = stages, list(wrong), []

    def forward(self, x, noise):
        self.asked.append(x)
        wrong = self.wrong.pop(0) if self.wrong else 0.0
        score = torch.zeros(len(x), 2, dtype=x.dtype)
        score[: round(wrong * len(x)), 1] = 1.0
        score[:, 0] += 0.5
        return score


def grey(n, shape=(1, 3, 5)):
    return torch.full((n, *shape), 0.5, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)


def radii(hear, attack, model, x, y, noise=None):
    """Smallest radius after every decision, (steps, B)."""
    seen = []
    noise = Noise.of(0, range(len(x))) if noise is None else noise
    attack(model, x, y, Linf(1e-3), noise, watch=hear(lambda m: seen.append(-m.loss)))
    return torch.stack(seen)


@pytest.mark.parametrize(
    ("shape", "close"),
    [((1, 3, 5), 1.01), pytest.param((2, 4, 4), 1.03, marks=pytest.mark.slow)],
    ids=str,
)
def test_smallest_radius_of_a_linear_classifier(shape, close, hear):
    x, y = grey(1, shape)
    at, attack = 0.05, RayS(steps=1500, eot=1)
    model = Plane(at, shape=shape)
    found = radii(hear, attack, model, x, y)
    assert (found[1:] <= found[:-1]).all()
    assert at <= found[-1] <= close * at
    for factor, broken in ((1.05, True), (0.95, False)):
        ball = Linf(factor * at)
        x_adv = attack(model, x, y, ball, Noise.of(0, [0]))
        assert ball.contains(x_adv, x).all()
        assert (model.reach(x_adv) > at).all() == broken


def test_blocks_are_halved_down_to_pixels():
    """A defence never wrong shows the flips: all 15, then 8 and 7, fours, twos, ones for ever."""
    x, y = grey(1)
    model = Fixed()
    RayS(steps=50, eot=1)(model, x, y, Linf(), Noise.of(0, [0]))
    flips = [(a.flatten() == 0.0).nonzero().flatten().tolist() for a in model.asked[:50]]
    sizes = [15, 8, 4, 2, 1, 1, 1]
    exact = [list(range(a, min(a + s, 15))) for s in sizes for a in range(0, 15, s)]
    assert flips == exact[:50]
    assert all(((a == 0.0) | (a == 1.0)).all() for a in model.asked[:50])


def test_bisection_by_hand(hear):
    """A wrong probe at radius 1 opens a bisection; the next block is tried at the radius found."""
    x, y = grey(1)
    model = Fixed([1.0, 1.0, 0.0, 1.0, 1.0])
    found = radii(hear, RayS(steps=6, eot=1, tolerance=0.125), model, x, y)
    asked = [float((a - x).abs().max()) for a in model.asked[:6]]
    assert asked == [0.5, 0.5, 0.25, 0.375, 0.375, 0.1875]  # radius 1 is cut to the range
    assert (model.asked[1] - x < 0).all()
    turned = (model.asked[4] - x).flatten()
    assert (turned[:8] > 0).all()
    assert (turned[8:] < 0).all()
    assert found[:, 0].tolist() == [1.0, 1.0, 1.0, 0.375, 0.375, 0.375]


def test_queries_spent_and_locks():
    """One decision a step and image; two points are compared at the end."""
    x, y = grey(3)
    noise = Noise.of(0, range(3))
    for model, given, draws in (
        (Plane(), noise, 1),
        (Plane(noisy=1e-6), noise.lock("a"), 1),
        (Plane(noisy=1e-6), noise, 4),
    ):
        RayS(steps=30, eot=4)(model, x, y, Linf(1e-3), given)
        assert sum(len(a) for a in model.asked) == (30 + 2) * 3 * draws
    y[1] = 1  # wrong at once: a probe and a bisection, then it rests
    model = Plane()
    RayS(steps=100, eot=1)(model, x, y, Linf(0.01), noise)
    spent = sum(len(a) for a in model.asked)
    assert 2 * 100 + 3 * 2 + 8 <= spent <= 2 * 100 + 3 * 2 + 20


@pytest.mark.slow
def test_known_noise_is_used(hear):
    x, y = grey(6)
    model = Plane(0.1, noisy=0.02)
    locked = Noise.of(0, range(6)).lock("a")
    own = 0.1 + 0.02 * locked.normal("a", 0, x[:, 0, 0, :1])[:, 0]
    found = radii(hear, RayS(steps=800), model, x, y, noise=locked.fold("b"))[-1]
    torch.testing.assert_close(found, own, rtol=0.03, atol=0)


def test_a_decision_needs_more_than_half_of_the_draws():
    """Two of four draws wrong is right, three of four is wrong."""
    x, y = grey(1)
    for share, wrong in ((0.5, False), (0.75, True)):
        model = Fixed([share, 0.0], stages=("a",))
        RayS(steps=2, eot=4)(model, x, y, Linf(), Noise.of(0, [0]))
        assert len(model.asked[0]) == 4
        next_radius = (model.asked[1] - x[0]).abs().max()
        flipped = (model.asked[1] < 0.5).all()
        assert flipped == wrong  # it bisects along the same ray, or turns to the next block
        assert next_radius == 0.5


def test_a_new_radius_is_confirmed_on_fresh_draws(hear):
    """Found wrong at 0.5 but not confirmed there, the bisection goes on from 0.5 to 1."""
    x, y = grey(1)
    model = Fixed([1.0, 1.0, 0.0, 0.0, 1.0, 1.0], stages=("a",))
    x[:] = 0.0  # room above only: flip nothing by starting at the range's other end
    found = radii(hear, RayS(steps=7, eot=2, tolerance=0.3), model, 1.0 - x, y)
    asked = [float((a - 1.0).abs().max()) for a in model.asked[:7]]
    #      probe  half  below  confirm  again  confirm  next block
    assert asked == [1.0, 0.5, 0.25, 0.5, 0.75, 0.75, 0.75]
    assert found[:, 0].tolist() == [1.0] * 5 + [0.75] * 2


@pytest.mark.slow
def test_a_lucky_draw_is_no_success(hear):
    """One draw in six goes wrong at the image itself. Judged by single draws, the search ends at
    a radius where most draws are right; by majorities it ends near the true one."""
    x, y = grey(8)
    model = Plane(0.1, noisy=0.1)
    lucky = radii(hear, RayS(steps=600, eot=1), model, x, y)[-1]
    found = radii(hear, RayS(steps=600, eot=25), model, x, y)[-1]
    assert lucky.mean() < 0.05
    assert 0.075 < found.mean() < 0.12
    ball = Linf(0.15)
    x_adv = RayS(steps=600, eot=25)(model, x, y, ball, Noise.of(0, range(8)))
    assert model.reach(x_adv).mean() > 0.12  # of the two ends of a ray, not the one at 50 %


def test_of_two_ends_the_less_accurate_is_proposed(hear):
    """On a tie the ball's edge; at an edge that is right again, the radius found."""

    class Shell(Fixed):
        def forward(self, x, noise):
            d = (x - 0.5).flatten(1).abs().amax(1)
            wrong = ((d > 0.1) & (d < 0.28)) | (d > 0.4)
            return torch.stack([torch.full_like(d, 0.5), wrong.to(d)], 1)

    x, y = grey(1)
    for eps, low, high in ((0.45, 0.45, 0.45), (0.3, 0.1, 0.11)):
        seen = []
        x_adv = RayS(steps=100, eot=1)(
            Shell(), x, y, Linf(eps), Noise.of(0, [0]), watch=hear(seen.append)
        )
        assert low - 1e-9 <= (x_adv - x).abs().max() <= high + 1e-9
        assert seen[-1].accuracy.item() == 0.0


def test_watch(hear):
    x, y = grey(2)
    seen = []
    noise = Noise.of(0, range(2))
    RayS(steps=200, eot=1)(Plane(0.05), x, y, Linf(0.2), noise, watch=hear(seen.append))
    assert len(seen) == 200
    assert seen[0].accuracy.tolist() == [1.0, 1.0]
    assert seen[-1].accuracy.tolist() == [0.0, 0.0]
    assert not seen[-1].grad.any()
    assert seen[-1].finite.all()
    never = []
    RayS(steps=1, eot=1)(Fixed(), x, y, Linf(), noise, watch=hear(never.append))
    assert (never[0].loss.tolist(), never[0].accuracy.tolist()) == ([-1.0, -1.0], [1.0, 1.0])


class Ring(Ball):
    eps = 0.1
    default_step = 0.1
    contains = project = size = None


@pytest.mark.parametrize("ball", [Ring(), L2(0.5)], ids=["Ring", "L2"])
def test_wrong_balls(ball):
    x, y = grey(2)
    with pytest.raises(ValueError, match=r"RayS attacks in Linf only; got .*(Ring|L2)"):
        RayS()(Plane(), x, y, ball, Noise.of(0, range(2)))


def test_one_class():
    x, y = grey(2)
    one = Plane()
    one.forward = lambda x, noise: x.flatten(1)[:, :1]
    with pytest.raises(ValueError, match=r"at least 2 classes .* the model has 1"):
        RayS()(one, x, y, Linf(), Noise.of(0, range(2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"eot": 0}, "eot must be at least 1"),
        ({"tolerance": 0.0}, "tolerance must be above 0 and at most 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RayS(**settings)
