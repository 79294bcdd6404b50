import pytest
import torch
from torch import nn

from depure.attacks import MIPGD, PGD, Case, DiffHammer, SubstituteAttack, Transfer
from depure.attacks.asking.queries import query_margins
from depure.attacks.gradient.diffhammer import weighted
from depure.noise import Noise
from depure.rows import Chunk, chunked
from depure.threat import L2, Linf

DOUBLE = torch.float64
SHAPE = (1, 4, 4)


def pictures(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=g, dtype=DOUBLE)


def direction(seed=5):
    return torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Shaky(nn.Module):
    """Three smooth classes of a noisy image."""

    def __init__(self, level=0.05, broken=None):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.stages, self.level, self.broken = ("a",) if level else (), level, broken
        self.w = torch.randn(16, 3, generator=g, dtype=DOUBLE)
        self.calls = 0

    def forward(self, x, noise):
        self.calls += len(x)
        z = x + self.level * noise.normal("a", 0, x) if self.level else x
        out = 3.0 * torch.tanh(z.flatten(1) - 0.5) @ self.w.to(x)
        if self.broken is not None:
            out = out * torch.where(x[:, :1, 0, 0] > self.broken, torch.nan, 1.0)
        return out


class HalfImmune(nn.Module):
    """Half of the draws cannot be fooled, and pull five times as hard the other way."""

    stages = ("a",)

    def forward(self, x, noise):
        immune = noise.uniform("a", 0, x[:, 0, 0, :1])[:, 0] > 0.5
        side = (x - 0.5).flatten(1) @ direction()
        margin = torch.where(immune, -30.0 - 5.0 * side, -0.3 + side)
        return torch.stack([-margin, margin], 1) / 2.0


class Bent(nn.Module):
    """A margin linear in the image, whose slope is noisy: many draws show it, few do not."""

    stages = ("a",)

    def forward(self, x, noise):
        z = noise.normal("a", 0, x).flatten(1)
        side = ((x - 0.5).flatten(1) * (direction() + 2.0 * z)).sum(1)
        return torch.stack([-side, side], 1) / 2.0


def test_immune_draws_are_left_aside():
    x = 0.5 + 0.0 * pictures(30)
    model, y, noise = HalfImmune(), torch.zeros(30, dtype=torch.int64), Noise.of(0, range(30))
    judge = noise.fold("judge").draws(20)

    def accuracy(attack):
        x_adv = attack(model, x, y, Linf(0.1), noise).repeat_interleave(20, 0)
        return (model(x_adv, judge).argmax(1) == 0).double().mean()

    assert accuracy(PGD(steps=10, eot=10, loss="margin")) == 1.0
    assert accuracy(DiffHammer(steps=10, eot=10, rounds=0)) > 0.9
    assert accuracy(DiffHammer(steps=10, eot=10)) < 0.6


def test_weights_by_hand():
    attack = DiffHammer(rounds=2, sharpness=3.0)
    g = torch.Generator().manual_seed(0)
    grads = torch.randn(2, 4, *SHAPE, generator=g, dtype=DOUBLE)
    margins = torch.randn(2, 4, generator=g, dtype=DOUBLE)
    found = attack.weights(grads, margins, Linf(0.1), 0.05)
    for b in range(2):
        w = torch.ones(4, dtype=DOUBLE)
        for _ in range(2):
            mean = sum(w[j] * grads[b, j] for j in range(4)) / w.sum()
            gain = [0.05 * (mean.sign() * grads[b, j]).sum() for j in range(4)]
            w = 1.0 / (1.0 + torch.exp(-3.0 * (margins[b] + torch.stack(gain))))
        torch.testing.assert_close(found[b], w)
    nothing = torch.zeros(2, 4, dtype=DOUBLE)
    torch.testing.assert_close(weighted(grads, nothing), grads.mean(1))


def test_diffhammer_without_weights_or_memory_is_pgd(hear):
    x, y, noise = pictures(), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    grads = []
    attack = DiffHammer(steps=3, eot=4, rounds=0, forget=0.0)
    attack(Shaky(), x, y, L2(0.5), noise, watch=hear(grads.append))
    here = x
    for seen in grads:  # each iterate follows the mean gradient told to the watch
        again = L2(0.5).project(here + 0.1 * L2(0.5).ascend(seen.grad), x)
        assert (again != here).any()
        here = again
    last = DiffHammer(steps=3, eot=4, rounds=0, forget=0.0)(Shaky(0), x, y, L2(0.5), noise)
    plain = PGD(steps=3, eot=1, loss="margin")(Shaky(0), x, y, L2(0.5), noise)
    torch.testing.assert_close(last, plain)


def test_momentum_by_hand(hear):
    """On a deterministic model: the second step follows the sum of both normalised gradients."""
    x, y, noise = pictures(), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    grads, ball = [], L2(0.5)
    attack = MIPGD(steps=3, eot=1, decay=0.5)
    out = attack(Shaky(0), x, y, ball, noise, watch=hear(lambda m: grads.append(m.grad)))
    here, memory = x, 0.0
    for g in grads:
        memory = 0.5 * memory + g / g.flatten(1).abs().sum(1).view(-1, 1, 1, 1)
        here = ball.project(here + 0.1 * ball.ascend(memory), x)
    torch.testing.assert_close(out, here)


def test_memory_lowers_variance_at_equal_calls():
    """At rest before a noisy slope, what is followed points nearer to the true one."""
    x, ball = 0.5 + 0.0 * pictures(60), L2(0.5)
    y, noise, near = torch.zeros(60, dtype=torch.int64), Noise.of(0, range(60)), []
    x = x + 0.1
    for settings in ({"decay": 0.0}, {}):
        attack = MIPGD(eot=2, loss="margin", **settings)
        follow = attack.direction(Case(Bent(), x, y, ball, noise), 0.1)
        for i in range(15):
            _, grad = follow(i, x)
        near.append(nn.functional.cosine_similarity(grad.flatten(1), direction()[None]).mean())
    assert near[1] > 1.3 * near[0] > 0.1


def test_calls_are_those_promised():
    x, y, noise = pictures(), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    for attack, calls in (
        (DiffHammer(steps=5, eot=4), 6 * 4),
        (MIPGD(steps=5, eot=4), 6 * 4),
    ):
        model = Shaky()
        attack(model, x, y, Linf(0.1), noise)
        assert model.calls == 3 * (calls + 2 * 20)  # and 20 draws of two proposals


@pytest.mark.parametrize(
    "attack",
    [
        DiffHammer(steps=8, eot=3), MIPGD(steps=8, eot=4),
        MIPGD(8, eot=4, random_start=True), DiffHammer(4, eot=3, start=PGD(steps=4, eot=2)),
    ],
    ids=["DiffHammer", "MIPGD", "random", "started"],
)  # fmt: skip
@pytest.mark.parametrize("ball", [Linf(0.08), L2(0.4)], ids=["Linf", "L2"])
def test_bound_accuracy_and_batch(attack, ball, hear):
    x = pictures(30, seed=4)
    model, noise, judge = Shaky(), Noise.of(0, range(30)), Noise.of(1, range(30))
    y, heard = model(x, noise.fold("label")).argmax(1), []
    x_adv = attack(model, x, y, ball, noise, watch=hear(heard.append))
    assert len(heard) == attack.steps  # not of the attack it starts from
    assert ball.contains(x_adv, x).all()
    before, after = ((model(z, judge).argmax(1) == y).double().mean() for z in (x, x_adv))
    assert after < before - 0.4
    for rows in (slice(0, 4), slice(4, 9)):
        part = attack(model, x[rows], y[rows], ball, noise[rows])
        torch.testing.assert_close(part, x_adv[rows])


@pytest.mark.parametrize("kind", [DiffHammer, MIPGD])
def test_chunks_change_nothing_and_non_finite_gradients_stay(kind):
    x = pictures(3)
    x[1, 0, 0, 0] = 0.9
    y, noise = torch.zeros(3, dtype=torch.int64), Noise.of(0, range(3))
    model = Shaky(broken=0.85)
    x_adv = kind(4, eot=3)(model, x, y, Linf(0.05), noise)
    assert (x_adv != x).flatten(1).any(1).tolist() == [True, False, True]
    with chunked(Chunk(2)):
        again = kind(4, eot=3)(model, x, y, Linf(0.05), noise)
    torch.testing.assert_close(again, x_adv)


def test_a_start_helps_where_the_gradient_vanishes():
    """The defence saturates at the image; a transfer from a bare classifier leads out."""

    class Flat(Shaky):
        def forward(self, x, noise):
            s = (x - 0.5).flatten(1) @ direction() + 0.01 * noise.normal("a", 0, x).flatten(1)[:, 0]
            return torch.stack([-s, s], 1) * (s.abs() > 0.2)[:, None] + torch.tensor([0.1, 0.0])

    class Bare(nn.Module):
        def forward(self, x):
            s = (x - 0.5).flatten(1) @ direction()
            return torch.stack([-s, s], 1)

    x, y, noise = (
        torch.full((2, *SHAPE), 0.5, dtype=DOUBLE),
        torch.tensor([0, 0]),
        Noise.of(0, [0, 1]),
    )
    lost = MIPGD(steps=5, eot=2)(Flat(), x, y, Linf(0.1), noise)
    start = Transfer(PGD(steps=5, eot=1), Bare().eval())
    found = MIPGD(steps=5, eot=2, start=start)(Flat(), x, y, Linf(0.1), noise)
    assert torch.equal(lost, x)
    assert (Flat()(found, noise).argmax(1) == 1).all()


def test_a_stand_in_is_confirmed_on_the_defence():
    x = pictures(30, seed=4)
    model, noise, ball = Shaky(), Noise.of(0, range(30)), Linf(0.08)
    y, judge = model(x, noise.fold("label")).argmax(1), Noise.of(1, range(30))
    attack = SubstituteAttack(PGD(steps=8, eot=2, loss="margin"), Shaky(0.1), judge_draws=20)
    x_adv = attack(model, x, y, ball, noise)
    assert attack.trace_length(Case(model, x, y, ball, noise)) == 8
    assert ball.contains(x_adv, x).all()
    right = [(model(z, judge).argmax(1) == y).double().mean() for z in (x, x_adv)]
    assert right[1] < right[0] - 0.4

    class Opposite(Shaky):
        def forward(self, x, noise):
            return -super().forward(x, noise)

    worse = SubstituteAttack(PGD(steps=8, eot=2, loss="margin"), Opposite(), judge_draws=20)
    kept = (worse(model, x, y, ball, noise) == x).flatten(1).all(1)
    assert kept.double().mean() > 0.8  # what helps the defence is not proposed


def test_a_source_without_noise_is_held_at_nothing():
    class Strict(Shaky):
        def forward(self, x, noise):
            assert not noise.held
            return super().forward(x, noise)

    x, y, noise = pictures(), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    SubstituteAttack(PGD(steps=1, eot=1), Strict(0))(Shaky(), x, y, Linf(0.1), noise.lock("a"))


def test_errors():
    x, y, noise = pictures(1), torch.tensor([0]), Noise.of(0, [0])
    for kind, settings, words in (
        (DiffHammer, {"rounds": -1}, "rounds"),
        (DiffHammer, {"sharpness": -1.0}, "sharpness"),
        (DiffHammer, {"steps": 0}, "steps"),
        (MIPGD, {"decay": 2.0}, "decay"),
        (MIPGD, {"step_size": 0.0}, "step_size"),
        (MIPGD, {"loss": "mse"}, "loss must be one of"),
        (MIPGD, {"start": 3}, "start must be an attack"),
        (MIPGD, {"start": PGD(), "random_start": True}, "exclude each other"),
        (SubstituteAttack, {"attack": 3, "source": Shaky()}, "attack must be"),
        (SubstituteAttack, {"attack": PGD(), "source": Shaky(), "judge_draws": 0}, "judge_draws"),
    ):
        with pytest.raises(ValueError, match=words):
            kind(**settings)
    with pytest.raises(ValueError, match="make the source from the same purifier"):
        SubstituteAttack(PGD(), Shaky())(Shaky(0), x, y, Linf(0.1), noise)


class Lucky(nn.Module):
    """Right with a chance that falls with the image's brightness; draws decide alone."""

    stages = ("a",)

    def forward(self, x, noise):
        u = noise.uniform("a", 0, x[:, 0, 0, :1])[:, 0]
        margin = 2.0 * (u > 1.0 - x.flatten(1).mean(1)).to(x) - 1.0 + 1e-3 * x.flatten(1).sum(1)
        return torch.stack([-margin, margin], 1)


def test_the_last_iterate_is_proposed_where_the_best_was_lucky():
    """Steps raise the chance to be wrong; with a draw each, an early one looks best as often."""
    x, y = torch.full((64, *SHAPE), 0.2, dtype=DOUBLE), torch.zeros(64, dtype=torch.int64)
    noise = Noise.of(0, range(64))
    found = MIPGD(steps=8, eot=1, step_size=0.05)(Lucky(), x, y, Linf(0.4), noise)
    brightness = found.flatten(1).mean(1)
    assert (brightness > 0.59).double().mean() > 0.9
    fresh = query_margins(
        Lucky(), torch.stack([x, found], 1), y, noise.fold("fresh"), 200
    ).accuracy.mean(0)
    torch.testing.assert_close(fresh, torch.tensor([0.8, 0.4], dtype=DOUBLE), atol=0.02, rtol=0)
