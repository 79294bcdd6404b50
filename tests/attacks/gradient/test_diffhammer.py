"""DiffHammer: draws that cannot be fooled are left aside."""

import torch
from torch import nn

from depure.attacks import PGD, DiffHammer
from depure.attacks.gradient.diffhammer import weighted
from depure.noise import Noise
from depure.threat import L2, Linf

DOUBLE = torch.float64


SHAPE = (1, 4, 4)


def pictures(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=g, dtype=DOUBLE)


def direction(seed=5):
    return torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class HalfImmune(nn.Module):
    """Half of the draws cannot be fooled, and pull five times as hard the other way."""

    stages = ("a",)

    def forward(self, x, noise):
        immune = noise.uniform("a", 0, x[:, 0, 0, :1])[:, 0] > 0.5
        side = (x - 0.5).flatten(1) @ direction()
        margin = torch.where(immune, -30.0 - 5.0 * side, -0.3 + side)
        return torch.stack([-margin, margin], 1) / 2.0


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


def test_diffhammer_without_weights_or_memory_is_pgd(hear, shaky):
    x, y, noise = pictures(), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    grads = []
    attack = DiffHammer(steps=3, eot=4, rounds=0, forget=0.0)
    attack(shaky(), x, y, L2(0.5), noise, watch=hear(grads.append))
    here = x
    for seen in grads:  # each iterate follows the mean gradient told to the watch
        again = L2(0.5).project(here + 0.1 * L2(0.5).ascend(seen.grad), x)
        assert (again != here).any()
        here = again
    last = DiffHammer(steps=3, eot=4, rounds=0, forget=0.0)(shaky(0), x, y, L2(0.5), noise)
    plain = PGD(steps=3, eot=1, loss="margin")(shaky(0), x, y, L2(0.5), noise)
    torch.testing.assert_close(last, plain)
