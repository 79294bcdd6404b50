import pytest
import torch
from torch import nn

from depure.attacks.asking.gradients import expected_grad
from depure.attacks.asking.losses import margin
from depure.attacks.unseen.recolor import ReColorAdv, _bounded, colouring, nodes
from depure.attacks.unseen.search import pull_back, variation
from depure.noise import Noise
from depure.threat import L2, Linf

DOUBLE = torch.float64


def pictures(n=3, shape=(3, 4, 5), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=g, dtype=DOUBLE)


class Shaky(nn.Module):
    """Three smooth classes of a noisy image."""

    def __init__(self, pixels, level=0.05, broken=None):
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


def random_change(n, channels, resolution, eps=0.1, seed=2):
    g = torch.Generator().manual_seed(seed)
    shape = (n, channels, *[resolution] * channels)
    return eps * (2 * torch.rand(shape, generator=g, dtype=DOUBLE) - 1)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_no_change_no_change(channels):
    x = pictures(2, (channels, 4, 5))
    change = torch.zeros(2, channels, *[4] * channels, dtype=DOUBLE)
    assert torch.equal(colouring(x, 4)(change), x)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_an_affine_change_of_colour_is_followed_exactly(channels):
    """Linear interpolation reproduces x + a + M x, channels mixed, whatever the image."""
    x = pictures(2, (channels, 4, 5))
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(channels, channels, generator=g, dtype=DOUBLE)
    lift = torch.randn(channels, generator=g, dtype=DOUBLE)
    grid = nodes(channels, 5, x)
    change = torch.einsum("ab,b...->a...", mix, grid) + lift.view(-1, *[1] * channels)
    expected = x + torch.einsum("ab,nbhw->nahw", mix, x) + lift.view(-1, 1, 1)
    torch.testing.assert_close(colouring(x, 5)(change.expand(2, *change.shape)), expected)


def test_a_tone_curve_by_hand():
    x = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0], dtype=DOUBLE).view(1, 1, 1, 5)
    change = torch.tensor([0.1, -0.2, 0.3], dtype=DOUBLE).view(1, 1, 3)
    expected = x + torch.tensor([0.1, -0.05, -0.2, 0.2, 0.3], dtype=DOUBLE)
    torch.testing.assert_close(colouring(x, 3)(change), expected)


def test_equal_colours_change_equally_and_images_have_their_own_change():
    x = pictures(2)
    x[:, :, 0, 0] = x[:, :, 3, 4]
    x[1] = x[0]
    out = colouring(x, 4)(random_change(2, 3, 4))
    torch.testing.assert_close(out[:, :, 0, 0], out[:, :, 3, 4])
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_pulled_back_is_that_of_finite_differences(channels):
    x = pictures(2, (channels, 4, 5))
    model, y, noise = Shaky(20 * channels), torch.tensor([0, 1]), Noise.of(0, range(2))
    make, change = colouring(x, 3), random_change(2, channels, 3)

    def objective(c):
        seen = expected_grad(model, make(c), y, margin, noise, 4)
        return seen, seen.loss - 0.1 * variation(c)

    grad = pull_back(make, change, objective(change)[0].grad, lambda c: 0.1 * variation(c))
    g = torch.Generator().manual_seed(3)
    for _ in range(4):
        v = torch.randn(change.shape, generator=g, dtype=DOUBLE)
        rise = (objective(change + 1e-6 * v)[1] - objective(change - 1e-6 * v)[1]) / 2e-6
        torch.testing.assert_close((grad * v).flatten(1).sum(1), rise, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("random_start", [False, True])
def test_the_bound_holds(shape, dtype, random_start):
    x = pictures(4, shape).to(dtype)
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0
    model, noise = Shaky(x[0].numel()), Noise.of(0, range(4))
    y = torch.zeros(4, dtype=torch.int64)
    attack = ReColorAdv(15, lr=0.05, resolution=4, smooth=0.0, eot=2, random_start=random_start)
    x_adv = attack(model, x, y, Linf(0.06), noise)
    change = (x_adv - x).abs().flatten(1).amax(1)
    assert (change <= 0.06 + 1e-7).all()
    assert (change > 0.04).all()  # and is used
    assert x_adv.min() >= 0.0
    assert x_adv.max() <= 1.0
    assert Linf(0.06).contains(x_adv, x).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_nodes_stay_within_the_bound_and_the_cube(channels):
    colours = nodes(channels, 4, pictures())
    change = _bounded(random_change(2, channels, 4, eps=0.5), colours, 0.1)
    assert change.abs().max() == 0.1
    assert (colours + change).min() >= 0.0
    assert (colours + change).max() <= 1.0
    kept = random_change(2, channels, 4, eps=0.1)
    inside = (colours + kept >= 0) & (colours + kept <= 1)
    assert torch.equal(_bounded(kept, colours, 0.1)[inside], kept[inside])


def test_the_proposal_is_a_recolouring():
    x = pictures(2, (3, 4, 4))
    x[:, :, 0, 0] = x[:, :, 3, 3]
    y, noise = torch.tensor([0, 1]), Noise.of(0, range(2))
    x_adv = ReColorAdv(10, resolution=4, eot=2)(Shaky(48), x, y, Linf(0.06), noise)
    assert not torch.equal(x_adv, x)
    torch.testing.assert_close(x_adv[:, :, 0, 0], x_adv[:, :, 3, 3])


def test_it_lowers_accuracy_and_more_with_a_larger_bound():
    x = pictures(40, (3, 4, 4), seed=4)
    model, noise = Shaky(48), Noise.of(0, range(40))
    y = model(x, noise.fold("label")).argmax(1)
    judge = noise.fold("judge")
    right = [(model(x, judge).argmax(1) == y).float().mean()]
    for eps in (0.05, 0.2):
        attack = ReColorAdv(20, lr=eps / 5, resolution=4, eot=3)
        right.append((model(attack(model, x, y, Linf(eps), noise), judge).argmax(1) == y).float())
    assert right[0] > 0.85
    assert right[0] - 0.1 > right[1].mean() > right[2].mean() + 0.1


def test_errors():
    y, noise = torch.tensor([0]), Noise.of(0, [0])
    with pytest.raises(ValueError, match="Linf only; got L2"):
        ReColorAdv()(Shaky(16), pictures(1, (1, 4, 4)), y, L2(0.1), noise)
    with pytest.raises(ValueError, match="1 to 3 channels; got 4"):
        ReColorAdv()(Shaky(64), pictures(1, (4, 4, 4)), y, Linf(0.1), noise)
    for settings, words in (({"resolution": 1}, "2 to 64"), ({"lr": -1.0}, "lr must be positive")):
        with pytest.raises(ValueError, match=words):
            ReColorAdv(**settings)


@pytest.mark.parametrize("eps", [0.06, 0.2])
def test_the_rate_by_default_is_a_sixth_of_the_bound(eps):
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    y, noise, settings = torch.tensor([0, 1]), Noise.of(0, range(2)), {"steps": 4, "eot": 1}
    plain = ReColorAdv(**settings)(Shaky(16), x, y, Linf(eps), noise)
    assert torch.equal(plain, ReColorAdv(lr=eps / 6, **settings)(Shaky(16), x, y, Linf(eps), noise))
    assert not torch.equal(
        plain, ReColorAdv(lr=0.02, **settings)(Shaky(16), x, y, Linf(eps), noise)
    )
