"""Momentum damps the gradients' noise."""

import torch
from torch import nn

from depure.attacks import MIPGD, Case
from depure.noise import Noise
from depure.threat import L2

DOUBLE = torch.float64


SHAPE = (1, 4, 4)


def pictures(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=g, dtype=DOUBLE)


def direction(seed=5):
    return torch.randn(16, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Bent(nn.Module):
    """A margin linear in the image, whose slope is noisy: many draws show it, few do not."""

    stages = ("a",)

    def forward(self, x, noise):
        z = noise.normal("a", 0, x).flatten(1)
        side = ((x - 0.5).flatten(1) * (direction() + 2.0 * z)).sum(1)
        return torch.stack([-side, side], 1) / 2.0


def test_momentum_by_hand(hear, shaky):
    """On a deterministic model: the second step follows the sum of both normalised gradients."""
    x, y, noise = pictures(), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    grads, ball = [], L2(0.5)
    attack = MIPGD(steps=3, eot=1, decay=0.5)
    out = attack(shaky(0), x, y, ball, noise, watch=hear(lambda m: grads.append(m.grad)))
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
