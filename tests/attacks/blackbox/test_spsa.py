import pytest
import torch
from torch import nn

from depure.attacks import SPSA
from depure.noise import Noise
from depure.threat import L2, Ball, Linf

SHAPE = (2, 3, 3)


def rand(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Curved(nn.Module):
    """Margin of class 1 with d = x - 1/2: f = w.d + bend d'Qd + side u.d z + lift z - lead."""

    def __init__(self, bend=0.0, side=0.0, lift=0.0, lead=1.0):
        super().__init__()
        self.stages = ("a",) if side or lift else ()
        self.bend, self.side, self.lift, self.lead = bend, side, lift, lead
        self.w, self.u, q = rand(18, seed=0), rand(18, seed=1), rand(18, 18, seed=2)
        self.q, self.asked = q + q.T, []

    def mean(self, x):
        d = (x - 0.5).flatten(1)
        return d @ self.w + self.bend * ((d @ self.q) * d).sum(1) - self.lead

    def slope(self, x):
        d = (x - 0.5).flatten(1)
        return (self.w + 2.0 * self.bend * d @ self.q).view_as(x)

    def forward(self, x, noise):
        self.asked.append(x)
        f = self.mean(x)
        if self.stages:
            z = noise.normal("a", 0, x[:, 0, 0, :1])[:, 0]
            f = f + z * (self.side * ((x - 0.5).flatten(1) @ self.u) + self.lift)
        return torch.stack([-f, f], 1) / 2.0


def start(n, seed=3):
    x = 0.5 + 0.05 * rand(1, *SHAPE, seed=seed).clamp(-2, 2)
    return x.repeat(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64)


def estimates(hear, model, x, y, **settings):
    seen = []
    noise = Noise.of(0, range(len(x)))
    attack = SPSA(steps=1, **settings)
    attack(model, x, y, Linf(), noise, watch=hear(lambda m: seen.append(m.grad)))
    return seen[0]


@pytest.mark.parametrize(
    "settings",
    [{"bend": 1.0}, {"bend": 1.0, "side": 3.0, "lift": 100.0}],
    ids=["fixed", "random"],
)
def test_the_gradient_estimate_is_unbiased(settings, hear):
    """Quadratic, so exactly unbiased: the mean of many estimates misses by chance alone."""
    model = Curved(**settings)
    x, y = start(3000)
    grad = estimates(hear, model, x, y, samples=8)
    error = grad.std(0) / len(x) ** 0.5
    assert (error < 0.2).all()
    assert ((grad.mean(0) - model.slope(x[:1])[0]) / error).abs().max() < 4.5


def test_at_the_edge_of_the_range_too(hear):
    """Queries are cut to [0, 1]; the cut distance divides, so a linear slope is found exactly."""
    model = Curved(lead=50.0)
    x, y = start(3000)
    x[:, 0] = 0.0
    x[:, 1, 0] = 1.0
    x[:, 1, 1, 0] = 0.004
    grad = estimates(hear, model, x, y, samples=8)
    error = grad.std(0) / len(x) ** 0.5
    assert ((grad.mean(0) - model.slope(x[:1])[0]) / error).abs().max() < 4.5
    assert all(a.min() >= 0.0 and a.max() <= 1.0 for a in model.asked)


def test_a_pair_shares_its_draw_and_other_pairs_do_not(hear):
    """A lift of the noise cancels exactly in a pair; its tilt averages out over the pairs."""
    x, y = start(4)
    plain = estimates(hear, Curved(), x, y, samples=16)
    torch.testing.assert_close(estimates(hear, Curved(lift=1e3), x, y, samples=16), plain)
    tilted = estimates(hear, Curved(side=5.0), x, y, samples=2000)
    clean = estimates(hear, Curved(), x, y, samples=2000)
    u = Curved().u
    tilt = (tilted - clean).flatten(1) @ u / (u @ u)
    assert tilt.abs().max() < 5 * 5.0 / 2000**0.5  # 5 normal spreads; a shared draw gives 5
    several = estimates(hear, Curved(side=5.0), x, y, samples=200, eot=10)
    clean = estimates(hear, Curved(), x, y, samples=200)
    tilt = (several - clean).flatten(1) @ u / (u @ u)
    assert tilt.abs().max() < 5 * 5.0 / 2000**0.5


@pytest.mark.parametrize(
    ("ball", "rule"), [(Linf, None), (Linf, "adam"), (Linf, "ascend"), (L2, None)]
)
def test_known_answer_on_a_linear_classifier(ball, rule):
    """Wrong just beyond the distance to the hyperplane, right just before it."""
    model = Curved()
    x, y = start(5)
    distance = float(-model.mean(x[:1]) / (model.w.abs().sum() if ball is Linf else model.w.norm()))
    for factor, broken in ((1.03, True), (0.97, False)):
        inside = ball(factor * distance)
        attack = SPSA(steps=60, samples=64, rule=rule)
        x_adv = attack(model, x, y, inside, Noise.of(0, range(5)))
        assert inside.contains(x_adv, x).all()
        assert ((model.mean(x_adv) > 0) == broken).all()


def test_rule_and_rate_by_default():
    """The published Adam in L-inf, relative to eps; the ball's default step in L2."""
    x, y = start(2)
    noise = Noise.of(0, range(2))
    for ball, rule, lr in (
        (Linf(8 / 255), "adam", 0.01), (Linf(0.2), "adam", 0.06375), (L2(0.1), "ascend", 0.02),
    ):  # fmt: skip
        given = SPSA(steps=3, samples=4, rule=rule, lr=lr)(Curved(), x, y, ball, noise)
        plain = SPSA(steps=3, samples=4)(Curved(), x, y, ball, noise)
        torch.testing.assert_close(plain, given, rtol=0, atol=1e-12)
    # In L2, eps says nothing of a single pixel.
    given = SPSA(steps=3, samples=4, rule="adam", lr=0.01)(Curved(), x, y, L2(0.1), noise)
    assert torch.equal(SPSA(steps=3, samples=4, rule="adam")(Curved(), x, y, L2(0.1), noise), given)


def test_first_steps_by_hand(hear):
    """Adam's first step is lr by the signs; the second by the moments of both estimates."""
    model = Curved(bend=0.5)
    x, y = start(3)
    noise = Noise.of(0, range(3))
    grads = []
    for steps in (1, 2):
        attack = SPSA(steps=steps, samples=4, lr=0.01)
        x_adv = attack(model, x, y, Linf(0.3), noise, watch=hear(lambda m: grads.append(m.grad)))
        if steps == 1:
            torch.testing.assert_close(x_adv, x + 0.01 * grads[0].sign(), rtol=0, atol=1e-8)
            first = x_adv
    _, a, b = grads
    mean = (0.9 * 0.1 * a + 0.1 * b) / (1 - 0.9**2)
    spread = (0.999 * 0.001 * a**2 + 0.001 * b**2) / (1 - 0.999**2)
    torch.testing.assert_close(x_adv, first + 0.01 * mean / spread.sqrt(), rtol=0, atol=1e-8)
    plain = SPSA(steps=1, samples=4, lr=0.01, rule="ascend")
    l2 = plain(model, x, y, L2(0.3), noise)
    unit = grads[0] / grads[0].flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(l2, x + 0.01 * unit)


def test_queries_spent_rest_and_locks():
    x, y = start(3)
    noise = Noise.of(0, range(3))

    def spent(model, given, labels=y):
        x_adv = SPSA(steps=5, samples=6, eot=4)(model, x, labels, Linf(1e-3), given)
        return sum(len(a) for a in model.asked), x_adv

    assert spent(Curved(), noise)[0] == 5 * 3 * (1 + 2 * 6)
    assert spent(Curved(lift=0.1), noise.lock("a"))[0] == 5 * 3 * (1 + 2 * 6)
    assert spent(Curved(lift=0.1), noise)[0] == 5 * 3 * (10 + 2 * 6 * 4)
    labels = torch.tensor([0, 1, 0])  # the second is wrong already
    rows, x_adv = spent(Curved(), noise, labels)
    assert rows == 5 * (3 + 2 * 2 * 6)
    assert torch.equal(x_adv[1], x[1])
    torch.testing.assert_close(x_adv[[0, 2]], spent(Curved(), noise)[1][[0, 2]])


def test_known_noise_is_used(hear):
    """Locked, a tilt is a slope like any other: the estimate is that draw's, not the mean's."""
    model = Curved(side=5.0)
    x, y = start(4)
    locked = Noise.of(0, range(4)).lock("a")
    z = locked.normal("a", 0, x[:, 0, 0, :1])
    seen = []
    SPSA(steps=1, samples=4000)(
        model, x, y, Linf(), locked.fold("b"), watch=hear(lambda m: seen.append(m.grad))
    )
    exact = model.w + 5.0 * z * model.u
    assert torch.cosine_similarity(seen[0].flatten(1), exact).min() > 0.99


def test_a_lucky_draw_is_no_success(hear):
    """One draw in seven is wrong from the start; the attack goes on to where nearly all are."""
    model = Curved(lift=1.0)
    x, y = start(20)
    noise = Noise.of(0, range(20))
    first = model(x, noise.fold("judge"))
    assert 0 < (first.argmax(1) == 1).sum() < 10
    seen = []
    ball = Linf(0.1)
    x_adv = SPSA(steps=60, samples=32)(
        model, x, y, ball, noise, watch=hear(lambda m: seen.append(m.accuracy))
    )
    assert 0.5 < seen[0].mean() < 1.0
    best = model.mean(x) + ball.eps * model.w.abs().sum()
    assert (model.mean(x_adv) > 0.9 * best).all()


def test_non_finite_estimates_stay_with_their_image(hear):
    class Broken(Curved):
        def forward(self, x, noise):
            bad = (x[:, 0, 0, 0] > 0.9) & (x[:, 0, 0, 1] > x[:, 0, 0, 2] + 0.4)
            return super().forward(x, noise) + torch.where(bad, torch.nan, 0.0)[:, None]

    x, y = start(2)
    x[1, 0, 0, :] = torch.tensor([0.95, 0.9, 0.5])
    seen = []
    noise = Noise.of(0, range(2))
    x_adv = SPSA(steps=2, samples=8, delta=0.02)(
        Broken(lift=0.1), x, y, Linf(0.01), noise, watch=hear(seen.append)
    )
    assert [m.finite.tolist() for m in seen] == [[True, False]] * 2
    assert not seen[0].grad[1].any()
    assert torch.equal(x_adv[1], x[1])
    alone = SPSA(steps=2, samples=8, delta=0.02)(
        Broken(lift=0.1), x[:1], y[:1], Linf(0.01), noise[:1]
    )
    torch.testing.assert_close(x_adv[:1], alone)


def test_watch(hear):
    x, y = start(2)
    seen = []
    SPSA(steps=9, samples=16)(
        Curved(), x, y, Linf(0.02), Noise.of(0, range(2)), watch=hear(seen.append)
    )
    assert len(seen) == 9
    torch.testing.assert_close(seen[0].loss, Curved().mean(x))
    assert seen[-1].loss.gt(seen[0].loss).all()
    assert seen[-1].accuracy.tolist() == [1.0, 1.0]


class Ring(Ball):
    eps = 0.1
    default_step = 0.1
    contains = project = size = None


def test_what_cannot_be_attacked():
    x, y = start(2)
    noise = Noise.of(0, range(2))
    with pytest.raises(ValueError, match=r"SPSA attacks in Linf, L2 only; got .*Ring"):
        SPSA()(Curved(), x, y, Ring(), noise)
    one = Curved()
    one.forward = lambda x, noise: x.flatten(1)[:, :1]
    with pytest.raises(ValueError, match=r"at least 2 classes .* the model has 1"):
        SPSA()(one, x, y, Linf(), noise)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"eot": True}, "eot must be at least 1"),
        ({"delta": 0.0}, "delta must be above 0"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"rule": "sgd"}, "rule must be one of adam, ascend"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SPSA(**settings)
