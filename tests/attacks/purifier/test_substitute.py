"""Attacks on something simpler in the defence's place."""

import pytest
import torch
from torch import nn

from depure.attacks import APGD, PGD, Case, SubstituteAttack, Transfer
from depure.noise import Noise
from depure.threat import Linf

DOUBLE = torch.float64


SHAPE = (1, 4, 4)


def pictures(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=g, dtype=DOUBLE)


def test_a_stand_in_is_confirmed_on_the_defence(shaky):
    x = pictures(30, seed=4)
    model, noise, ball = shaky(), Noise.of(0, range(30)), Linf(0.08)
    y, judge = model(x, noise.fold("label")).argmax(1), Noise.of(1, range(30))
    attack = SubstituteAttack(PGD(steps=8, eot=2, loss="margin"), shaky(0.1), judge_draws=20)
    x_adv = attack(model, x, y, ball, noise)
    assert attack.trace_length(Case(model, x, y, ball, noise)) == 8
    assert ball.contains(x_adv, x).all()
    right = [(model(z, judge).argmax(1) == y).double().mean() for z in (x, x_adv)]
    assert right[1] < right[0] - 0.4

    class Opposite(shaky):
        def forward(self, x, noise):
            return -super().forward(x, noise)

    worse = SubstituteAttack(PGD(steps=8, eot=2, loss="margin"), Opposite(), judge_draws=20)
    kept = (worse(model, x, y, ball, noise) == x).flatten(1).all(1)
    assert kept.double().mean() > 0.8  # what helps the defence is not proposed


def test_a_source_without_noise_is_held_at_nothing(shaky):
    class Strict(shaky):
        def forward(self, x, noise):
            assert not noise.held
            return super().forward(x, noise)

    x, y, noise = pictures(), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    SubstituteAttack(PGD(steps=1, eot=1), Strict(0))(shaky(), x, y, Linf(0.1), noise.lock("a"))


def test_errors(shaky):
    x, y, noise = pictures(1), torch.tensor([0]), Noise.of(0, [0])
    for settings, words in (
        ({"attack": 3, "source": shaky()}, "attack must be"),
        ({"attack": PGD(), "source": shaky(), "judge_draws": 0}, "judge_draws"),
    ):
        with pytest.raises(ValueError, match=words):
            SubstituteAttack(**settings)
    with pytest.raises(ValueError, match="make the source from the same purifier"):
        SubstituteAttack(PGD(), shaky())(shaky(0), x, y, Linf(0.1), noise)


class Bare(nn.Module):
    """A classifier that counts."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(16, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        return x.flatten(1) @ self.weight


def test_transfer_attacks_the_classifier_alone(hear, shaky):
    model, x, noise = shaky(), pictures(4), Noise.of(3, range(4)).lock("a")
    bare, heard = Bare().eval(), []
    y = bare(x).argmax(1)
    bare.rows, attack = 0, APGD(steps=6, eot=3)
    found = Transfer(attack, bare)(model, x, y, Linf(0.1), noise, watch=hear(heard.append))
    assert model.calls == 0
    assert bare.rows == 4 * (7 + 2)  # one draw only

    class Plain(nn.Module):
        stages = ()

        def forward(self, x, noise):
            return bare(x)

    torch.testing.assert_close(found, attack(Plain(), x, y, Linf(0.1), noise))

    class Held(PGD):
        def propose(self, case, watch):
            assert case.noise.held == case.model.stages == ()
            return case.x

    Transfer(Held(), bare)(model, x, y, Linf(0.1), noise)
    case = Case(model, x, y, Linf(0.1), noise)
    assert len(heard) == Transfer(attack, bare).trace_length(case) == 6
    assert "weight" not in repr(Transfer(attack, bare))
    with pytest.raises(ValueError, match=r"train mode.*classifier\.eval\(\)"):
        Transfer(attack, bare.train())(model, x, y, Linf(0.1), noise)
