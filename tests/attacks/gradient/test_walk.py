import pytest
import torch
from torch import nn

from depure.attacks import MIPGD, PGD, DiffHammer, Transfer
from depure.attacks.asking.queries import query_margins
from depure.noise import Noise
from depure.threat import L2, Linf

DOUBLE = torch.float64
SHAPE = (1, 4, 4)


def pictures(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=g, dtype=DOUBLE)


def direction(seed=5):
    return torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def test_calls_are_those_promised(shaky):
    x, y, noise = pictures(), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    for attack, calls in (
        (DiffHammer(steps=5, eot=4), 6 * 4),
        (MIPGD(steps=5, eot=4), 6 * 4),
    ):
        model = shaky()
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
def test_it_lowers_accuracy_and_hears_itself_alone(attack, ball, hear, shaky):
    x = pictures(30, seed=4)
    model, noise, judge = shaky(), Noise.of(0, range(30)), Noise.of(1, range(30))
    y, heard = model(x, noise.fold("label")).argmax(1), []
    x_adv = attack(model, x, y, ball, noise, watch=hear(heard.append))
    assert len(heard) == attack.steps  # not of the attack it starts from
    assert ball.contains(x_adv, x).all()
    before, after = ((model(z, judge).argmax(1) == y).double().mean() for z in (x, x_adv))
    assert after < before - 0.4


def test_a_start_helps_where_the_gradient_vanishes(shaky):
    """The defence saturates at the image; a transfer from a bare classifier leads out."""

    class Flat(shaky):
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


def test_errors():
    for kind, settings, words in (
        (DiffHammer, {"rounds": -1}, "rounds"),
        (DiffHammer, {"sharpness": -1.0}, "sharpness"),
        (DiffHammer, {"steps": 0}, "steps"),
        (MIPGD, {"decay": 2.0}, "decay"),
        (MIPGD, {"step_size": 0.0}, "step_size"),
        (MIPGD, {"loss": "mse"}, "loss must be one of"),
        (MIPGD, {"start": 3}, "start must be an attack"),
        (MIPGD, {"start": PGD(), "random_start": True}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=words):
            kind(**settings)


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
