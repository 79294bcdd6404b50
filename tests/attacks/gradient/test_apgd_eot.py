"""APGD in a batch, on stochastic defences, and where things go wrong."""

import pytest
import torch
from torch import nn

from depure.attacks import APGD, Case
from depure.attacks.asking.losses import dlr_targeted, pair
from depure.noise import Noise
from depure.threat import L1, L2, Linf

BALLS = [Linf(0.1), L2(0.5), L1(1.5)]


class Noisy(nn.Module):
    """A random network with five classes behind noise; counts the rows it is given."""

    stages = ("forward",)

    def __init__(self, scale=0.2):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.first = torch.randn(32, 24, generator=g, dtype=torch.float64)
        self.second = torch.randn(24, 5, generator=g, dtype=torch.float64)
        self.scale, self.rows = scale, 0

    def forward(self, x, noise):
        self.rows += len(x)
        z = x + self.scale * noise.normal("forward", 0, x)
        return torch.tanh(z.flatten(1) @ self.first) @ self.second


def images(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, 4, 4, generator=g, dtype=torch.float64)


def problem(n, scale=0.2):
    model, x, noise = Noisy(scale), images(n), Noise.of(3, range(n))
    with torch.no_grad():
        y = model(x, Noise.of(9, range(n)).lock("forward")).argmax(1)
    return model, x, y, noise


def test_known_noise_is_one_draw_and_a_deterministic_attack():
    model, x, y, noise = problem(4)
    locked = noise.lock("forward")

    class Frozen(nn.Module):
        stages = ()

        def forward(self, z, _):
            return model(z, locked[: len(z)])

    known = APGD(steps=10, eot=20)(model, x, y, Linf(0.1), locked)
    assert model.rows == 4 + 4 * (1 + 11 + 1)  # the label; then one draw for each evaluation
    plain = APGD(steps=10)(Frozen(), x, y, Linf(0.1), noise)
    assert torch.equal(known, plain)
    model.rows = 0
    APGD(steps=10, eot=3)(model, x, y, Linf(0.1), noise)
    assert model.rows == 4 * (20 + 11 * 3 + 20)


def test_a_choice_on_one_lucky_draw_would_mislead():
    """The mean loss grows along the pixel, but single draws are wildest at its other end."""

    class Wild(nn.Module):
        stages = ("forward",)

        def forward(self, x, noise):
            pixel = x[:, 0, 0, 0]
            s = pixel + 6.0 * noise.normal("forward", 0, pixel) * (1.0 - pixel)
            return torch.stack([-s, s], 1)

    n = 40
    x, y = torch.full((n, 1, 1, 1), 0.5), torch.zeros(n, dtype=torch.int64)
    noise, ball = Noise.of(0, range(n)), Linf(0.5)

    def reached(eot):
        return APGD(steps=12, eot=eot, loss="margin")(Wild(), x, y, ball, noise).flatten()

    assert (reached(400) > 0.95).float().mean() > 0.9
    assert (reached(1) < 0.6).float().mean() > 0.3  # the trap is there


class Uphill(nn.Module):
    """The true class 0 wins where the pixel is high; the gradient says the opposite."""

    stages = ()

    def forward(self, x, noise):
        s = 4.0 * (2.0 * x.detach() - x)[:, 0, 0, 0] - 2.0
        return torch.stack([s, -s], 1)


def test_an_attack_that_only_harms_itself_gives_the_image_back():
    x = torch.full((8, 1, 1, 1), 0.45)  # misclassified, and the attack mends it
    y, noise = torch.zeros(8, dtype=torch.int64), Noise.of(0, range(8))
    found = APGD(steps=10)(Uphill(), x, y, Linf(0.2), noise)
    given_back = (found == x).flatten()  # where the random start is above
    assert 0 < given_back.sum() < 8
    assert (Uphill()(found, noise).argmax(1) == 1).all()


def test_restarts_and_targets_keep_the_best_and_certain_failures_sit_out(hear):
    """Three classes at corners: only the target on the image's side is within reach."""

    class Corners(nn.Module):
        stages = ()
        rows = 0

        def forward(self, z, noise):
            self.rows += len(z)
            p = z.flatten(1) - 0.5
            a, b = 20.0 * (p[:, 0] - 0.1), 10.0 * (p[:, 1] - 0.1)
            return torch.stack([0.0 * a, a, b, 0.0 * a - 5.0, 0.0 * a - 6.0], 1)

    model, noise, seen = Corners(), Noise.of(0, range(4)), []
    x = torch.tensor([[0.55, 0.2], [0.2, 0.55], [0.2, 0.2], [0.65, 0.2]]).view(4, 1, 1, 2)
    y = torch.zeros(4, dtype=torch.int64)  # the last one is wrong before the attack
    attack = APGD(steps=10, loss="dlr", targets=2, restarts=2)
    found = attack(model, x, y, Linf(0.1), noise, watch=hear(seen.append))
    assert (model(found, noise).argmax(1) != y).tolist() == [True, True, False, True]
    assert len(seen) == attack.iterations == 40
    assert all(m.loss.shape == (4,) and m.grad.shape == x.shape for m in seen)
    # The first aim of each image is the class it can reach, so only image 2 stays for later runs.
    assert model.rows == 4 + 4 + 4 * (11 + 1) + 3 * (11 + 1) + 4
    for i in (0, 1, 3):
        assert len({m.loss[i].item() for m in seen[10:]}) == 1  # repeats what was last seen
    seen.clear()
    attack(model, x[:2], y[:2], Linf(0.1), noise[:2], watch=hear(seen.append))
    assert len(seen) == 40  # though all sat out from the second run on


@pytest.mark.parametrize("better", [0, 1])
def test_the_best_of_the_runs_is_proposed(better):
    """Two classes to aim at, one out of reach; whichever is tried first."""

    class Two(nn.Module):
        stages = ("forward",)

        def forward(self, z, noise):
            p = z[:, 0, 0] - 0.5
            lead = [-0.25, -0.25]
            lead[1 - better] = -0.2  # likelier, but too steep a climb
            steep = [1.0, 1.0]
            steep[better] = 10.0
            left, right = steep[0] * p[:, 0] + lead[0], steep[1] * p[:, 1] + lead[1]
            return torch.stack([0.0 * left, left, right, left - 9.0, right - 9.0], 1)

    x, y = torch.full((3, 1, 1, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    model, noise = Two(), Noise.of(0, range(3))
    attack = APGD(steps=10, loss="dlr", targets=2, random_start=False)
    found = attack(model, x, y, Linf(0.1), noise)
    assert (model(found, noise).argmax(1) == 1 + better).all()


def test_draws_are_fresh_at_every_iterate_and_common_to_all_proposals():
    model, x, y, noise = problem(1)
    seen = []

    class Hooked(nn.Module):
        stages = model.stages

        def forward(self, z, n):
            seen.append(tuple(n.normal("forward", 0, z)[:, 0, 0, 0].tolist()))
            return model(z, n)

    APGD(steps=4, eot=2, restarts=2)(Hooked(), x, y, Linf(0.1), noise)
    judging = [draws for draws in seen if len(draws) == 20]
    climbing = [draw for draws in seen if len(draws) == 2 for draw in draws]
    assert len(judging) == 3
    assert len(set(judging)) == 1
    assert len(set(climbing)) == len(climbing) == 2 * (4 + 1) * 2
    assert not set(climbing) & set(judging[0])


@pytest.mark.parametrize("eot", [1, 2])
def test_every_restart_counts_where_the_defence_is_stochastic(eot):
    model, x, y, noise = problem(3)
    model.rows = 0
    APGD(steps=5, eot=eot, restarts=3)(model, x, y, Linf(0.3), noise)
    assert model.rows == 3 * (20 + 3 * (6 * eot + 20))


def test_targets_are_the_likeliest_wrong_classes_in_turn():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0, -1.0], [0.0, 5.0, 4.0, 9.0, 1.0]])

    class Fixed(nn.Module):
        stages = ()

        def forward(self, x, noise):
            return logits[: len(x)] + 0.0 * x.sum()

    from depure.attacks.gradient.apgd import _Runs

    x, y = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    attack = APGD.targeted(4)
    case = Case(Fixed(), x, y, Linf(0.1), Noise.of(0, range(2)))
    aims = _Runs(attack, case, x).aims()
    assert torch.stack([a // 5 for a in aims], 1).tolist() == [[0] * 4, [1] * 4]
    assert torch.stack([a % 5 for a in aims], 1).tolist() == [[2, 1, 3, 4], [3, 2, 4, 0]]
    with pytest.raises(ValueError, match="pass at most targets=4"):
        APGD.targeted(5)(Fixed(), x, y, Linf(0.1), Noise.of(0, range(2)))


def test_targeted_dlr_by_hand():
    z = torch.tensor([[3.0, 1.0, -2.0, 0.5, -4.0], [0.0, 2.0, 1.0, -1.0, 3.0]])
    pairs = pair(torch.tensor([0, 1]), torch.tensor([2, 4]), 5)
    # sorted logits: 3, 1, .5, -2, -4 and 3, 2, 1, 0, -1
    expected = torch.tensor([-5.0 / (3.0 - (0.5 - 2.0) / 2), 1.0 / (3.0 - (1.0 + 0.0) / 2)])
    torch.testing.assert_close(dlr_targeted(z, pairs), expected)
    torch.testing.assert_close(dlr_targeted(4.0 * z - 3.0, pairs), expected)
    with pytest.raises(ValueError, match="at least 4 classes"):
        dlr_targeted(z[:, :3], pairs)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_an_image_with_a_broken_gradient_stays_and_is_reported(ball, hear):
    class Broken(nn.Module):
        stages = ()

        def forward(self, x, noise):
            s, pixel = x.flatten(1).sum(1), x[:, 0, 0, 0]
            for i in (pixel > 0.9).nonzero()[:, 0]:
                s = s.index_add(0, i[None], (pixel[i] * 0.0).sqrt()[None])
            return torch.stack([-s, s], 1)

    x = 0.3 + 0.1 * images(3)
    x[1, 0, 0, 0] = 0.95
    y, noise, seen = torch.zeros(3, dtype=torch.int64), Noise.of(0, range(3)), []
    attack = APGD(steps=8, random_start=False)
    found = attack(Broken(), x, y, ball, noise, watch=hear(seen.append))
    assert torch.equal(found[1], x[1])
    assert [m.finite.tolist() for m in seen] == [[True, False, True]] * 8
    rows = [0, 2]
    alone = attack(Broken(), x[rows], y[rows], ball, noise[rows])
    torch.testing.assert_close(found[rows], alone)
    assert not torch.equal(alone, x[rows])


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_random_starts_are_keyed_and_on_the_edge(ball):
    model, x, y, noise = problem(4)
    seen = []

    class Hooked(nn.Module):
        stages = model.stages

        def forward(self, z, n):
            seen.append(z.detach().clone())
            return model(z, n)

    def start(**settings):
        seen.clear()
        APGD(steps=1, **settings)(Hooked(), x, y, ball, noise)
        return [z for z in seen if len(z) == 4]  # judging takes 20 draws of each

    first, _, second, _ = start(restarts=2)
    assert ball.contains(first, x).all()
    assert (ball.size(first - x) > 0.3 * ball.eps).all()
    assert torch.equal(start()[0], first)
    assert not torch.allclose(second, first)
    assert torch.equal(start(random_start=False)[0], x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"targets": -1}, "targets must be at least 0"),
        ({"eot": 1.5}, "eot must be at least 1"),
        ({"rho": 1.0}, r"rho must lie inside \(0, 1\)"),
        ({"loss": "cw"}, "loss must be one of ce, margin, dlr"),
        ({"average": "losses"}, "average must be one of"),
        ({"targets": 3}, "pass loss='dlr'"),
        ({"steps": 4, "shrinking": True}, "at least 5 steps"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        APGD(**settings)


def test_shrinking_is_for_l1():
    model, x, y, noise = problem(2)
    with pytest.raises(ValueError, match=r"APGD attacks in L1 only; got L2"):
        APGD(shrinking=True)(model, x, y, L2(0.5), noise)
