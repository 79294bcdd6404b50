import pytest
import torch
from torch import nn

from depure.attacks.unseen.low_frequency import Filter, LowFrequency, _form
from depure.attacks.unseen.search import pull_back
from depure.networks.features.distance import FeatureDistance
from depure.noise import Noise
from depure.threat import L2, Linf, Perceptual

DOUBLE = torch.float64
SHORT = {"kernels": (3, 5), "eot": 3, "lr": 0.05}


def pictures(n=3, shape=(2, 6, 6), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=g, dtype=DOUBLE)


def distance():
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 3, stride=2))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5
    return FeatureDistance(net.double().eval())


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


def test_a_filter_by_hand():
    """Pixel (2, 2): weights by distance, mirrored, times likeness of colour, over their sum."""
    guide, x = pictures(2), pictures(2, seed=1)
    f = Filter(guide, 3)
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 4, 36, generator=g, dtype=DOUBLE)
    out = f(x, logits)
    for b in range(2):
        top, whole = torch.zeros(2, dtype=DOUBLE), 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                weight = logits[b, 2 * abs(dy) + abs(dx), 2 * 6 + 2].exp()
                gap = (guide[b, :, 2 + dy, 2 + dx] - guide[b, :, 2, 2]).abs().sum()
                weight = weight * torch.exp(-0.5 * (gap / 0.1) ** 2)
                top, whole = top + weight * x[b, :, 2 + dy, 2 + dx], whole + weight
        torch.testing.assert_close(out[b, :, 2, 2], top / whole)


def test_it_starts_at_the_image():
    x = pictures()
    form = _form(LowFrequency(kernels=(3, 5)), x, Linf(0.1))
    torch.testing.assert_close(form.make(form.start), x, rtol=0, atol=2e-4)
    assert form.lr.unique().tolist() == [0.008, 0.05]


@pytest.mark.parametrize("ball", [Linf(0.3), Perceptual(distance())], ids=["Linf", "Perceptual"])
def test_the_gradient_is_that_of_finite_differences(ball):
    x = pictures(2)
    form = _form(LowFrequency(kernels=(3, 5)), x, ball)
    g = torch.Generator().manual_seed(3)
    params = form.start + 0.2 * torch.randn(form.start.shape, generator=g, dtype=DOUBLE)
    w = torch.randn(x.shape, generator=g, dtype=DOUBLE)
    grad = pull_back(form.make, params, w)
    for _ in range(4):
        v = torch.randn(params.shape, generator=g, dtype=DOUBLE)
        rise = (w * (form.make(params + 1e-6 * v) - form.make(params - 1e-6 * v))) / 2e-6
        torch.testing.assert_close((grad * v).sum(1), rise.flatten(1).sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_bound_holds_and_is_used(dtype):
    x = pictures(8).to(dtype)
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0
    y, noise, far = torch.zeros(8, dtype=torch.int64), Noise.of(0, range(8)), distance()
    far.network.to(dtype)
    attack = LowFrequency(12, **SHORT)
    x_adv = attack(Shaky(), x, y, Perceptual(far, 0.05), noise)
    assert (Perceptual(far, 0.05).distance_of(x_adv, x) <= 0.05).all()
    assert Perceptual(far, 0.05).distance_of(x_adv, x).mean() > 0.015
    x_adv = attack(Shaky(), x, y, Linf(0.05), noise)
    assert Linf(0.05).contains(x_adv, x).all()
    assert (Linf(0.05).size(x_adv - x) > 0.03).all()


@pytest.mark.parametrize("bounds", [(0.02, 0.15), (0.01, 0.1)], ids=["Linf", "Perceptual"])
def test_it_lowers_accuracy_and_more_with_a_larger_bound(bounds):
    x = pictures(40, seed=4)
    model, noise, judge = Shaky(), Noise.of(0, range(40)), Noise.of(1, range(40))
    y = model(x, noise.fold("label")).argmax(1)
    right = [(model(x, judge).argmax(1) == y).double().mean()]
    for eps in bounds:
        ball = Linf(eps) if bounds[0] == 0.02 else Perceptual(distance(), eps)
        x_adv = LowFrequency(20, **SHORT)(model, x, y, ball, noise)
        right.append((model(x_adv, judge).argmax(1) == y).double().mean())
    assert right[0] > 0.8
    assert right[0] - 0.05 > right[1] > right[2] + 0.1


def test_errors():
    x, y, noise = pictures(1), torch.tensor([0]), Noise.of(0, [0])
    with pytest.raises(ValueError, match="attacks in Perceptual, Linf only; got L2"):
        LowFrequency()(Shaky(), x, y, L2(1.0), noise)
    with pytest.raises(ValueError, match="13 pixels do not fit images of 6 x 6"):
        LowFrequency(kernels=(13,))(Shaky(), x, y, Linf(0.1), noise)
    for settings, words in (
        ({"kernels": (4,)}, "odd widths"),
        ({"kernels": [3]}, "a tuple"),
        ({"filter_lr": 0.0}, "filter_lr"),
        ({"steps": 0}, "steps"),
    ):
        with pytest.raises(ValueError, match=words):
            LowFrequency(**settings)
