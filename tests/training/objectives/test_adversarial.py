"""Adversarial training of classifiers against naive re-implementations."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from depure.data import Images
from depure.noise import Noise
from depure.threat import L2, Linf
from depure.training import TRADES, PGDTraining
from depure.training.objectives.adversarial import divergence, mode


class Net(nn.Module):
    """Batch statistics and dropout: what train mode changes."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(12), nn.Dropout(0.3)
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 3)
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.double()

    def forward(self, x):
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x.flatten(1).double())))))


@pytest.fixture
def batch():
    x = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return Images(x, torch.arange(6) % 3, torch.arange(6), ("a", "b", "c"), "toy")


NOISE = Noise.of(0, range(6))


def naive_attack(network, x, start, eps, steps, step, loss, norm):
    """One image at a time, every line spelled out."""
    network.eval()
    found = []
    for i in range(len(x)):
        point = start[i : i + 1].clone()
        for _ in range(steps):
            point.requires_grad_()
            (grad,) = torch.autograd.grad(loss(network(point), i), point)
            with torch.no_grad():
                if norm == "linf":
                    point = point + step * grad.sign()
                    point = torch.max(torch.min(point, x[i] + eps), x[i] - eps)
                else:
                    moved = point + step * grad / grad.norm() - x[i]
                    point = x[i] + moved * min(1.0, eps / float(moved.norm()))
                point = point.clamp(0, 1)
        found.append(point.detach())
    network.train()
    return torch.cat(found)


@pytest.mark.parametrize(("ball", "norm"), [(Linf(0.1), "linf"), (L2(0.3), "l2")])
def test_pgd_training_is_cross_entropy_on_the_attacked_images(batch, ball, norm):
    network = Net().train()
    start = ball.start(batch.x, NOISE.fold("start"))
    attacked = naive_attack(
        network, batch.x, start, ball.eps, 4, 0.05,
        lambda z, i: cross_entropy(z, batch.y[i : i + 1]), norm,
    )  # fmt: skip
    torch.manual_seed(0)
    wanted = cross_entropy(network(attacked), batch.y)
    fresh = Net().train()
    torch.manual_seed(0)
    found = PGDTraining(ball, 4, 0.05)(fresh, batch, NOISE)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert fresh.training


@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_trades(batch, beta):
    network, ball = Net().train(), Linf(0.1)
    z = NOISE.fold("start").normal("start", 0, batch.x)
    start = (batch.x + 0.001 * z).clamp(0, 1)
    network.eval()
    clean = network(batch.x).softmax(1).detach()

    def loss(logits, i):
        return kl_div(logits.log_softmax(1), clean[i : i + 1], reduction="sum")

    attacked = naive_attack(network, batch.x, start, 0.1, 3, 0.02, loss, "linf")
    torch.manual_seed(0)
    natural, moved = network(batch.x), network(attacked)
    apart = kl_div(moved.log_softmax(1), natural.softmax(1), reduction="sum") / len(batch)
    wanted = cross_entropy(natural, batch.y) + beta * apart
    fresh = Net().train()  # before the seed: its weights draw numbers too
    torch.manual_seed(0)
    found = TRADES(ball, beta, 3, 0.02)(fresh, batch, NOISE)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_the_inner_attack_leaves_no_gradient_and_no_statistics(batch):
    network = Net().train()
    before = network.norm.running_mean.clone()
    seen = []
    network.norm.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    loss = PGDTraining(Linf(0.1), 3)(network, batch, NOISE)
    assert seen == [False] * 3 + [True]
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    loss.backward()
    assert not torch.equal(before, network.norm.running_mean)


def test_divergence_and_modes():
    p, q = torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.5, 0.5]]).log()
    wanted = 0.2 * torch.tensor(0.4).log() + 0.8 * torch.tensor(1.6).log()
    torch.testing.assert_close(divergence(p, q), wanted[None])
    network = Net().train()
    network.norm.eval()
    with mode(network, training=False):
        assert not any(part.training for part in network.modules())
    assert network.training
    assert not network.norm.training


@pytest.mark.parametrize("bad", [{"steps": 0}, {"step_size": -1.0}])
def test_bad_settings(bad):
    for kind in (PGDTraining, TRADES):
        with pytest.raises(ValueError, match=next(iter(bad))):
            kind(Linf(), **bad)
    with pytest.raises(ValueError, match="beta"):
        TRADES(Linf(), beta=0.0)
