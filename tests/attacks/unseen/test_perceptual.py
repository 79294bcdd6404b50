import json

import pytest
import torch
from torch import nn

from depure.attacks import PGD, Case
from depure.attacks.unseen.perceptual import LPA, PPGD, steepest
from depure.evaluation.record import settings_of
from depure.networks.features.distance import FeatureDistance
from depure.noise import Noise
from depure.rows import Chunk, chunked
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


def naive(net, names, x, y, weights=None):
    """LPIPS as it is written, and then its root."""
    total = []
    for a, b in zip(x, y, strict=True):
        outs = []
        for image in (a, b):
            h, kept = image[None], {}
            for name, part in net.named_children():
                h = part(h)
                kept[name] = h[0]
            outs.append(kept)
        d = 0.0
        for name in names:
            f, g = outs[0][name], outs[1][name]
            for i in range(f.shape[1]):
                for j in range(f.shape[2]):
                    gap = f[:, i, j] / f[:, i, j].norm() - g[:, i, j] / g[:, i, j].norm()
                    w = 1.0 if weights is None else weights[name]
                    d = d + (w * gap**2).sum() / (f.shape[1] * f.shape[2])
        total.append(d**0.5)
    return torch.stack(total)


def test_the_distance_is_what_it_says():
    net, x, y = network(), pictures(), pictures(seed=1)
    distance = FeatureDistance(net)
    assert distance.layers == ("0", "2")
    torch.testing.assert_close(distance(x, y), naive(net, ["0", "2"], x, y))
    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert torch.equal(distance(x, x), torch.zeros(3, dtype=DOUBLE))
    weights = {"1": torch.arange(6.0, dtype=DOUBLE), "3": torch.ones(4, dtype=DOUBLE) / 2}
    other = FeatureDistance(net, ("1", "3"), weights)
    with chunked(Chunk(2)):
        torch.testing.assert_close(other(x, y), naive(net, ["1", "3"], x, y, weights))
    assert not any(part._forward_hooks for part in net.modules())


def test_convolutions_are_found_evenly():
    net = nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in range(9)]).eval()
    assert FeatureDistance(net).layers == ("0", "2", "4", "6", "8")


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


def test_projection():
    x = pictures(20)
    ball = Perceptual(FeatureDistance(network()), 0.08)
    far = (x + 0.8 * (pictures(20, seed=1) - 0.5)).clamp(0, 1)
    assert (ball.distance_of(far, x) > 0.08).sum() > 10
    near = ball.project(far, x)
    assert (ball.distance_of(near, x) <= 0.08).all()
    inside = ball.distance_of(far, x) <= 0.08
    assert torch.equal(near[inside], far[inside])
    assert (ball.distance_of(near, x)[~inside] > 0.05).all()  # and not back at the image
    line = ball._on_the_line(far, x, ball.metric.features(x))
    assert (ball.distance_of(line, x) <= 0.08).all()
    assert (ball.distance_of(line, x)[~inside] > 0.0799).all()
    assert not ball.contains(far, x)[~inside].any()
    assert ball.contains(near, x).all()
    assert ball.contains(near - 2.0, x).logical_not().all()


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


@pytest.mark.parametrize("kind", [PPGD, LPA])
def test_other_images_and_chunks_change_nothing(kind):
    x, y = pictures(5), torch.tensor([0, 1, 2, 0, 1])
    model, noise = Shaky(), Noise.of(0, [3, 1, 4, 15, 9])
    ball = Perceptual(FeatureDistance(network()), 0.2)
    whole = kind(4, eot=3)(model, x, y, ball, noise)
    with chunked(Chunk(2)):
        again = kind(4, eot=3)(model, x, y, ball, noise)
    torch.testing.assert_close(again, whole)
    for rows in (slice(0, 2), slice(2, 5)):
        part = kind(4, eot=3)(model, x[rows], y[rows], ball, noise[rows])
        torch.testing.assert_close(part, whole[rows])


@pytest.mark.parametrize("kind", [PPGD, LPA])
def test_a_non_finite_gradient_leaves_that_image_in_place(kind):
    x = pictures(3) * 0.4
    x[1, 0, 0, 0] = 0.9
    y, noise = torch.zeros(3, dtype=torch.int64), Noise.of(0, range(3))
    ball = Perceptual(FeatureDistance(network()), 0.05)
    attack = kind(4, eot=2, random_start=False)
    x_adv = attack(Shaky(broken=0.5), x, y, ball, noise)
    assert (x_adv != x).flatten(1).any(1).tolist() == [True, False, True]


def test_the_record_is_plain_and_tells_networks_apart():
    ball = Perceptual(FeatureDistance(network()), 0.2)
    data = json.loads(json.dumps(settings_of(ball)))
    assert data["eps"] == 0.2
    assert "layers=('0', '2')" in data["features"]
    other = Perceptual(FeatureDistance(network(1)), 0.2)
    assert settings_of(other) != settings_of(ball)
    assert ball == Perceptual(FeatureDistance(network()), 0.2)
    json.dumps(settings_of(PPGD()))


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


def test_slope_is_the_gradient_of_the_distance_chunk_by_chunk():
    x, other = pictures(5), pictures(5, seed=1)
    distance = FeatureDistance(network())
    leaf = x.clone().requires_grad_()
    apart = distance(leaf, other)
    (grad,) = torch.autograd.grad(apart.sum(), leaf)
    for chunk in (128, 2, 5):
        with chunked(Chunk(chunk)):
            found = distance.slope(x, distance.features(other))
        torch.testing.assert_close(found[0], apart.detach())
        torch.testing.assert_close(found[1], grad)
    assert not found[1].requires_grad
    at, none = distance.slope(x, distance.features(x))  # at the image itself there is no slope
    assert not at.any()
    assert not none.any()
