import pytest
import torch
from torch import nn

from depure.attacks import PGD
from depure.noise import Noise
from depure.threat import L2, Linf


class Linear(nn.Module):
    """Deterministic: two classes, logits +-(w x + b)."""

    stages = ()

    def __init__(self, w, b=0.0):
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x, noise):
        s = x.flatten(1) @ self.w.to(x) + self.b
        return torch.stack([s, -s], 1)


def problem(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    d = shape[1] * shape[2] * shape[3]
    w = torch.randn(d, generator=g)
    x = 0.3 + 0.4 * torch.rand(shape, generator=g)  # inside the box, so that it does not bind
    return Linear(w, -float(0.5 * w.sum())), x, w


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 4, 4), (5, 3, 4, 2), pytest.param((17, 1, 8, 8), marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("ball", [Linf, L2])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_known_answer_on_a_linear_classifier(shape, ball, loss):
    """It succeeds just beyond the distance to the hyperplane and fails just before it."""
    model, x, w = problem(shape)
    noise = Noise.of(0, range(len(x)))
    score = model(x, noise)[:, 0]
    y = (score < 0).long()
    dual = w.abs().sum() if ball is Linf else w.norm()
    for i in range(len(x)):
        row, label, distance = x[i : i + 1], y[i : i + 1], float(score[i].abs() / dual)
        for factor, broken in ((1.05, True), (0.95, False)):
            attack = PGD(steps=20, eot=1, loss=loss)
            x_adv = attack(model, row, label, ball(distance * factor), noise[i : i + 1])
            assert (model(x_adv, noise).argmax(1) != label).item() == broken
        if ball is L2:
            x_adv = attack(model, row, label, ball(distance * 1.05), noise[i : i + 1])
            exact = row - 1.05 * score[i] / w.norm() ** 2 * w.view(1, *shape[1:])
            torch.testing.assert_close(x_adv, exact, rtol=1e-3, atol=1e-4)


def test_one_step_by_hand():
    model, x, w = problem((2, 1, 2, 2))
    noise = Noise.of(0, range(2))
    y = torch.tensor([0, 0])
    x_adv = PGD(steps=1, eot=1, step_size=0.01)(model, x, y, Linf(0.1), noise)
    torch.testing.assert_close(x_adv, x - 0.01 * w.sign().view(1, 1, 2, 2))


def test_targets_reach_the_class_named(digits_like):
    model, x = digits_like
    noise = Noise.of(0, range(len(x)))
    logits = model(x, noise)
    y = logits.argmax(1)
    ranked = logits.argsort(1, descending=True)
    for target, place in (("runner_up", 1), ("least_likely", -1)):
        attack = PGD(steps=100, eot=1, target=target)
        x_adv = attack(model, x, y, L2(8.0), noise)
        assert (model(x_adv, noise).argmax(1) == ranked[:, place]).float().mean() > 0.8


@pytest.fixture
def digits_like():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(5, 64, generator=g)

    class Model(nn.Module):
        stages = ()

        def forward(self, x, noise):
            return x.flatten(1) @ w.T

    return Model(), torch.rand(16, 1, 8, 8, generator=g)


def test_watch_sees_every_iterate_and_the_loss_rises(hear):
    model, x, _ = problem((6, 1, 4, 4))
    seen = []
    y = torch.zeros(6, dtype=torch.int64)
    PGD(steps=7, eot=1)(
        model,
        x,
        y,
        Linf(0.2),
        Noise.of(0, range(6)),
        watch=hear(lambda m: seen.append(m.loss.mean())),
    )
    assert len(seen) == 7
    assert seen[-1] > seen[0]


def test_strong_preset_and_random_start_are_keyed():
    assert (PGD.strong().steps, PGD.strong().eot) == (200, 20)
    model, x, _ = problem((3, 1, 4, 4))
    attack = PGD(steps=1, eot=1, random_start=True)
    y = torch.zeros(3, dtype=torch.int64)
    whole = attack(model, x, y, Linf(0.1), Noise.of(0, range(3)))
    alone = attack(model, x[1:2], y[1:2], Linf(0.1), Noise.of(0, [1]))
    torch.testing.assert_close(whole[1:2], alone)
    other = attack(model, x, y, Linf(0.1), Noise.of(1, range(3)))
    assert not torch.allclose(whole, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"eot": 0}, "eot must be at least 1"),
        ({"step_size": 0.0}, "step_size must be positive"),
        ({"loss": "cw"}, "loss must be one of ce, margin, dlr"),
        ({"average": "losses"}, "average must be one of"),
        ({"target": "random"}, "target must be one of"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        PGD(**settings)
