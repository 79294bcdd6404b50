import pytest
import torch
from torch import nn

from depure.attacks import Square
from depure.attacks.asking.queries import query_margins
from depure.attacks.blackbox.square import _eta, _placed, _window
from depure.noise import Noise
from depure.threat import L2, Ball, Linf


class Shifted(nn.Module):
    """Two classes, logits +-(1 - 4 w.(x - 1/2) / |w|_1 - 4 z), z normal with spread `noisy`."""

    def __init__(self, noisy=0.0, shape=(2, 4, 4)):
        super().__init__()
        self.stages = ("a",) if noisy else ()
        self.noisy, self.asked = noisy, []
        g = torch.Generator().manual_seed(5)
        self.w = torch.randn(shape, generator=g, dtype=torch.float64)

    def lead(self, x):
        """Half the margin of class 0, without noise: 1 at x = 1/2."""
        return 1.0 - 4.0 * ((x - 0.5) * self.w).flatten(1).sum(1) / self.w.abs().sum()

    def forward(self, x, noise):
        self.asked.append(x)
        lead = self.lead(x)
        if self.noisy:
            lead = lead - 4.0 * self.noisy * noise.normal("a", 0, x[:, 0, 0, :1])[:, 0]
        return torch.stack([lead, -lead], 1)


def grey(n, shape=(2, 4, 4)):
    return torch.full((n, *shape), 0.5, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)


def test_linf_known_answer():
    """On a linear classifier the best point is the corner: wrong just beyond eps 1/4, not below."""
    model = Shifted()
    x, y = grey(6)
    noise = Noise.of(0, range(6))
    for eps, broken in ((0.26, True), (0.245, False)):
        x_adv = Square(steps=600, eot=1)(model, x, y, Linf(eps), noise)
        assert Linf(eps).contains(x_adv, x).all()
        assert ((model.lead(x_adv) < 0) == broken).all()
    gained = (1.0 - model.lead(x_adv)) / (4.0 * 0.245)
    assert (gained > 0.99).all()


def test_l2_gains_most_of_the_best_point():
    """Its patterns fit no rough weights: AutoAttack's version reaches 0.6 of the best."""
    model = Shifted(shape=(1, 8, 8))
    x, y = grey(6, (1, 8, 8))
    ball = L2(0.15)
    x_adv = Square(steps=1000, eot=1)(model, x, y, ball, Noise.of(0, range(6)))
    assert ball.contains(x_adv, x).all()
    torch.testing.assert_close(ball.size(x_adv - x), torch.full_like(x[:, 0, 0, 0], ball.eps))
    best = 4.0 * ball.eps * model.w.norm() / model.w.abs().sum()
    assert ((1.0 - model.lead(x_adv)) / best > 0.65).all()


@pytest.mark.parametrize("ball", [Linf(0.3), L2(2.0)], ids=repr)
def test_it_never_leaves_the_ball_or_the_range(ball):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(4, 2, 7, 9, generator=g).round(decimals=1)  # many pixels at 0 and 1
    model = Shifted(shape=(2, 7, 9))
    model.lead = lambda x: 1e3 - (x * model.w).flatten(1).sum(1)
    Square(steps=50, eot=1)(
        model, x, torch.zeros(4, dtype=torch.int64), ball, Noise.of(0, range(4))
    )
    for asked in model.asked[1:]:
        assert ball.contains(asked, x).all()


def test_squares_lie_anywhere_inside_the_image():
    """Every place is equally likely, those at all four edges too."""
    u = (torch.arange(60) + 0.5) / 60
    mask, row, column = _window(u, u.flip(0), 3, torch.empty(60, 2, 7, 8))
    assert mask.shape == (60, 1, 7, 8)
    assert (mask.sum((1, 2, 3)) == 9).all()
    assert mask[:, 0].any(2).sum(0).tolist() == [12, 24, 36, 36, 36, 24, 12]
    assert mask[:, 0].any(1).sum(0).tolist() == [10, 20, 30, 30, 30, 30, 20, 10]
    patch = torch.arange(18.0).view(2, 3, 3)
    placed = _placed(patch, u, (mask, row, column))
    for i in (0, 29, 59):
        assert torch.equal(placed[i][mask[i]].view(3, 3), patch[int(u[i] < 0.5)])
        assert not placed[i][~mask[i]].any()


# Sides on 32x32 from one iteration on, with p_init 0.8 and a budget of 10,000: AutoAttack's.
SIDES = {0: 29, 11: 20, 51: 14, 201: 10, 501: 7, 1001: 5, 2001: 4, 4001: 3, 6001: 2, 8001: 1}
ODD = {0: 29, 11: 21, 51: 15, 201: 11, 501: 7, 1001: 5, 2001: 5, 4001: 3, 6001: 3, 8001: 3}


@pytest.mark.parametrize(("ball", "sides"), [(Linf(), SIDES), (L2(), ODD)], ids=["Linf", "L2"])
def test_sizes_are_the_published_ones(ball, sides):
    starts = [*sides, 10_000]
    for (first, side), end in zip(sides.items(), starts[1:], strict=True):
        for budget in (10_000, 5_000, 1_000):
            scaled = Square(steps=budget)
            its = [i for i in range(budget) if first <= i * (10_000 // budget) < end]
            assert {scaled.side(i, ball, 32, 32) for i in its} <= {side}
        plain = Square(steps=10_000_000, rescale=False)
        assert plain.side(first, ball, 32, 32) == plain.side(end - 1, ball, 32, 32) == side
    assert Square().side(0, ball, 6, 40) == 6


def test_l2_pattern_of_side_three_by_hand():
    """Two pyramids of rings 1 + 1/4, one row up and two rows down, each half of the energy."""
    up = torch.tensor([[0.25, 1.25, 0.25]], dtype=torch.float64)
    down = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]], dtype=torch.float64)
    exact = torch.cat([up / up.norm(), -down / down.norm()]) / 2**0.5
    down, across = _eta(3)[:, [0, 1, 2]]
    torch.testing.assert_close(down[[1, 2]], exact[[1, 2]])
    torch.testing.assert_close(torch.stack([down, across]), torch.stack([exact, exact.T]))


def test_queries_spent():
    """One a step and image if nothing is random, 2 x eot otherwise; locked noise is not random."""
    x, y = grey(3)
    noise = Noise.of(0, range(3))
    for model, given, each in (
        (Shifted(), noise, 1),
        (Shifted(0.01), noise.lock("a"), 1),
        (Shifted(0.01), noise, 2 * 4),
    ):
        Square(steps=5, eot=4)(model, x, y, Linf(0.01), given)
        start = 3 * 2 * (4 if each > 1 else 1)
        assert sum(len(a) for a in model.asked) == start + 5 * 3 * each


def test_known_noise_is_used():
    """With the stage locked, the known draw decides which images can be broken at all."""
    x, y = grey(40)
    model, noise = Shifted(0.2), Noise.of(0, range(40)).lock("a")
    x_adv = Square(steps=600, eot=1)(model, x, y, Linf(0.2), noise.fold("any"))
    own = model(x, noise.fold("other"))[:, 0]  # the same draw as the attack's
    broken = model(x_adv, noise)[:, 0] < 0
    assert 0.1 < broken.double().mean() < 0.9
    assert (broken == (own < 0.8)).double().mean() > 0.95


def test_images_rest_once_wrong_and_a_random_one_only_after_a_hundred_draws():
    x, y = grey(2)
    y[1] = 1  # wrong from the start
    model = Shifted()
    x_adv = Square(steps=20, eot=1)(model, x, y, Linf(0.01), Noise.of(0, range(2)))
    assert torch.equal(x_adv[1], x[1])
    assert sum(len(a) for a in model.asked) == 2 * 2 + 20
    noisy = Shifted(1e-9)
    Square(steps=200, eot=10)(noisy, x[1:], y[1:], Linf(0.01), Noise.of(0, [1]))
    spent = sum(len(a) for a in noisy.asked)
    assert 10 * 2 * 10 <= spent < 10 * 2 * 100


@pytest.mark.parametrize("eot", [1, 4])
def test_a_lucky_draw_is_no_success_and_is_not_kept(eot, hear):
    """One draw in four is wrong wherever the image is; only the mean shows the way."""
    x, y = grey(20)
    model = Shifted(0.35)
    noise = Noise.of(0, range(20))
    assert (model(x.repeat(50, 1, 1, 1), Noise.of(1, range(1000)))[:, 0] < 0).double().mean() > 0.15
    x_adv = Square(steps=400, eot=eot)(model, x, y, Linf(0.45), noise)
    assert (1.0 - model.lead(x_adv)).mean() > 0.9 * 4.0 * 0.45
    fresh = query_margins(model, x_adv[:, None], y, noise.fold("judge"), 200)
    assert fresh.accuracy.max() < 0.5
    seen = []
    Square(steps=3, eot=eot)(
        model, x, y, Linf(0.45), noise, watch=hear(lambda m: seen.append(m.loss))
    )
    assert (seen[1] != seen[2]).all()  # measured again on new draws


def test_watch(hear):
    x, y = grey(2)
    seen = []
    Square(steps=9, eot=1)(
        Shifted(), x, y, Linf(0.1), Noise.of(0, range(2)), watch=hear(seen.append)
    )
    assert len(seen) == 9
    losses = torch.stack([m.loss for m in seen])
    assert (losses[1:] >= losses[:-1]).all()
    assert losses[-1].gt(losses[0]).all()
    last = seen[-1]
    assert not last.grad.any()
    assert last.grad.shape == x.shape
    assert last.finite.all()
    assert last.accuracy.tolist() == [1.0, 1.0]


class Ring(Ball):
    eps = 0.1
    default_step = 0.1
    contains = project = size = None


def test_what_cannot_be_attacked():
    x, y = grey(2)
    noise = Noise.of(0, range(2))
    with pytest.raises(ValueError, match=r"Square attacks in Linf, L2 only; got .*Ring"):
        Square()(Shifted(), x, y, Ring(), noise)
    one = Shifted()
    one.forward = lambda x, noise: x.flatten(1)[:, :1]
    with pytest.raises(ValueError, match=r"at least 2 classes .* the model has 1"):
        Square()(one, x, y, Linf(), noise)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, a whole number; got 0"),
        ({"eot": 1.5}, "eot must be at least 1"),
        ({"p_init": 0.0}, "p_init must be above 0 and at most 1"),
        ({"p_init": 1.5}, "p_init must be above 0 and at most 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Square(**settings)
