import pytest
import torch
from torch import nn

from depure.attacks import PGD, Case
from depure.attacks.unseen.perceptual import LPA, PPGD, steepest
from depure.networks.features.distance import FeatureDistance
from depure.noise import Noise
from depure.threat import Linf, Perceptual

DOUBLE = torch.float64


def pictures(n=3, shape=(2, 6, 6), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=g, dtype=DOUBLE)


def network(seed=0, channels=2):
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.Softplus(), nn.Conv2d(6, 4, 3, stride=2),
        nn.Softplus(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5
    return net.double().eval()


class Shaky(nn.Module):
    """Three smooth classes of a noisy image."""

    def __init__(self, pixels=72, level=0.05, broken=None):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.stages = ("a",) if level else ()
        self.level, self.broken = level, broken
        self.w = torch.randn(pixels, 3, generator=g, dtype=DOUBLE)

    def forward(self, x, noise):
        z = x + self.level * noise.normal("a", 0, x) if self.level else x
        out = torch.tanh(z.flatten(1) - 0.5) @ self.w.to(x)
        if self.broken is not None:
            out = out * torch.where(x[:, :1, 0, 0] > self.broken, torch.nan, 1.0)
        return out


def test_the_steepest_step_solves_the_linear_problem():
    """Enough conjugate steps give (J'J + damping)^-1 g, scaled to the length asked for."""
    distance, x = FeatureDistance(network()), pictures(2)
    g = pictures(2, seed=9) - 0.5
    step = steepest(distance, x, g, 0.3, conjugate=200)
    for i in range(2):
        row = x[i : i + 1]
        jac = torch.autograd.functional.jacobian(lambda z: distance.features(z)[0], row)
        jac = jac.flatten(1)
        v = g[i].flatten()
        square = jac.T @ jac
        damped = square + 1e-3 * (v @ square @ v) / (v @ v) * torch.eye(72, dtype=DOUBLE)
        exact = torch.linalg.solve(damped, v)
        exact = 0.3 * exact / (jac @ exact).norm()
        torch.testing.assert_close(step[i].flatten(), exact, rtol=1e-4, atol=1e-6)
        for other in range(20):  # and no other change of the features so large gains much more
            w = pictures(1, (72,), seed=other)[0] - 0.5
            assert v @ w * 0.3 / (jac @ w).norm() < v @ step[i].flatten() * 1.01
    assert torch.equal(steepest(distance, x, 0.0 * g, 0.3, 5), 0.0 * g)


@pytest.mark.parametrize("attack", [PPGD(6, eot=2), LPA(4, 3, eot=2)], ids=["PPGD", "LPA"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_bound_holds_and_is_used(attack, dtype, hear):
    x = pictures(8).to(dtype)
    x[:, :, 0] = 0.0
    distance = FeatureDistance(network().to(dtype))
    y, noise = torch.zeros(8, dtype=torch.int64), Noise.of(0, range(8))
    for eps in (0.02, 0.08):
        ball, heard = Perceptual(distance, eps), []
        x_adv = attack(Shaky(), x, y, ball, noise, watch=hear(heard.append))
        assert (ball.distance_of(x_adv, x) <= eps).all()
        assert ball.contains(x_adv, x).all()
        assert ball.distance_of(x_adv, x).mean() > 0.3 * eps
        assert len(heard) == attack.trace_length(Case(Shaky(), x, y, ball, noise))


@pytest.mark.parametrize("attack", [PPGD(10, eot=3), LPA(5, 3, eot=3)], ids=["PPGD", "LPA"])
def test_it_lowers_accuracy_and_more_with_a_larger_bound(attack):
    x = pictures(40, seed=4)
    model, noise, judge = Shaky(), Noise.of(0, range(40)), Noise.of(1, range(40))
    y = model(x, noise.fold("label")).argmax(1)
    right = [(model(x, judge).argmax(1) == y).double().mean()]
    distance = FeatureDistance(network())
    for eps in (0.015, 0.05):
        x_adv = attack(model, x, y, Perceptual(distance, eps), noise)
        right.append((model(x_adv, judge).argmax(1) == y).double().mean())
    assert right[0] > 0.8
    assert right[0] - 0.1 > right[1] > right[2] + 0.1


def test_errors():
    x, y, noise = pictures(1), torch.tensor([0]), Noise.of(0, [0])
    ball = Perceptual(FeatureDistance(network()))
    for attack in (PPGD(), LPA()):
        with pytest.raises(ValueError, match="Perceptual only; got Linf"):
            attack(Shaky(), x, y, Linf(0.1), noise)
    with pytest.raises(ValueError, match="an attack such as PPGD, LPA or LowFrequency"):
        PGD()(Shaky(), x, y, ball, noise)
    with pytest.raises(ValueError, match="no layer '7'"):
        FeatureDistance(network(), ("0", "7"))
    with pytest.raises(ValueError, match="no convolutions"):
        FeatureDistance(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"layer '4' must give \(B, C, H, W\); got \(1, 16\)"):
        FeatureDistance(network(), ("4",))(x, x)
    with pytest.raises(ValueError, match="train mode"):
        FeatureDistance(network().train())(x, x)
    with pytest.raises(ValueError, match="weights must be at least 0"):
        FeatureDistance(network(), ("0",), {"0": -torch.ones(6)})
    with pytest.raises(ValueError, match="eps must be positive"):
        Perceptual(FeatureDistance(network()), 0.0)
    for kind in (PPGD, LPA):
        with pytest.raises(ValueError, match="step must be positive"):
            kind(step=0.0)
        with pytest.raises(ValueError, match="steps must be at least 1"):
            kind(steps=0)
