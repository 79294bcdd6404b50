import pytest
import torch
from torch import nn

from depure.attacks import PGD
from depure.attacks.asking.gradients import expected_grad
from depure.attacks.asking.losses import margin
from depure.attacks.unseen.search import pull_back, variation
from depure.attacks.unseen.stadv import StAdv, bend
from depure.noise import Noise
from depure.threat import Flow, Linf

DOUBLE = torch.float64


def pictures(n=3, shape=(2, 7, 5), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=g, dtype=DOUBLE)


class Shaky(nn.Module):
    """Three smooth classes of a noisy image."""

    def __init__(self, pixels, level=0.1, broken=None):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.stages = ("a",) if level else ()
        self.level, self.broken = level, broken
        self.w = torch.randn(pixels, 3, generator=g, dtype=DOUBLE)

    def forward(self, x, noise):
        z = x + self.level * noise.normal("a", 0, x) if self.level else x
        out = torch.tanh(z.flatten(1) - 0.5) @ self.w.to(x)
        if self.broken is not None:
            out = out + torch.where(x[:, :1, 0, 0] > self.broken, torch.nan, 0.0) * x[:, :1, 0, 0]
        return out


def small_flow(x, eps, seed=1):
    g = torch.Generator().manual_seed(seed)
    return eps * (2 * torch.rand(len(x), 2, *x.shape[2:], generator=g, dtype=x.dtype) - 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 4), (3, 5, 7), (2, 1, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_no_flow_no_change(shape, dtype):
    x = pictures(2, shape).to(dtype)
    assert torch.equal(bend(x, x.new_zeros(2, 2, *shape[1:])), x)


@pytest.mark.parametrize(("down", "across"), [(1, 0), (0, -2), (2, 1)])
def test_a_translation_moves_the_image(down, across):
    x = pictures()
    height, width = x.shape[2:]
    flow = torch.zeros(3, 2, height, width, dtype=DOUBLE)
    flow[:, 0], flow[:, 1] = 2.0 * down / height, 2.0 * across / width
    moved = bend(x, flow)
    for i in range(height):
        for j in range(width):
            source = min(max(i + down, 0), height - 1), min(max(j + across, 0), width - 1)
            torch.testing.assert_close(moved[:, :, i, j], x[:, :, source[0], source[1]])


def test_half_a_pixel_is_the_mean_of_two():
    x = pictures()
    flow = torch.zeros(3, 2, 7, 5, dtype=DOUBLE)
    flow[:, 1] = 1.0 / 5
    moved = bend(x, flow)
    torch.testing.assert_close(moved[..., :-1], (x[..., :-1] + x[..., 1:]) / 2)
    torch.testing.assert_close(moved[..., -1], x[..., -1])


def test_it_is_bilinear_sampling():
    """As torch samples, away from the rounding of its own coordinates."""
    x = pictures()
    flow = small_flow(x, 0.4)
    identity = torch.eye(2, 3, dtype=DOUBLE).expand(3, 2, 3)
    grid = nn.functional.affine_grid(identity, x.shape, align_corners=False)
    grid = grid + flow.flip(1).movedim(1, 3)
    expected = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(bend(x, flow), expected)


@pytest.mark.parametrize("average", ["gradients", "logits"])
def test_the_gradient_pulled_back_is_that_of_finite_differences(average):
    x = pictures()
    model, y, noise = Shaky(70), torch.tensor([0, 1, 2]), Noise.of(0, range(3))
    flow = small_flow(x, 0.3)

    def objective(f):
        seen = expected_grad(model, bend(x, f), y, margin, noise, 5, average=average)
        return seen, seen.loss - 0.1 * variation(f)

    seen, _ = objective(flow)
    grad = pull_back(lambda f: bend(x, f), flow, seen.grad, lambda f: 0.1 * variation(f))
    g = torch.Generator().manual_seed(3)
    for _ in range(4):
        v = torch.randn(flow.shape, generator=g, dtype=DOUBLE)
        rise = (objective(flow + 1e-6 * v)[1] - objective(flow - 1e-6 * v)[1]) / 2e-6
        torch.testing.assert_close((grad * v).flatten(1).sum(1), rise, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("random_start", [False, True])
def test_the_proposal_is_a_flow_within_the_bound(random_start):
    """Each pixel within the values that 0.9 pixels reach, and no image leaves [0, 1]."""
    x = pictures(4, (1, 6, 6)).round()  # black and white: rounding shows at once
    model, y, noise = Shaky(36), torch.zeros(4, dtype=torch.int64), Noise.of(0, range(4))
    ball = Flow(0.3)
    attack = StAdv(steps=15, lr=0.2, smooth=0.0, eot=3, random_start=random_start)
    x_adv = attack(model, x, y, ball, noise)
    assert ball.contains(x_adv, x).all()
    assert not torch.equal(x_adv, x)
    near = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    assert (x_adv <= near.amax((-1, -2)) + 1e-12).all()
    flat = torch.full_like(x, 0.5)  # a flow changes nothing in an image of one colour
    assert torch.equal(attack(model, flat, y, ball, noise), flat)


def test_bound_and_scale():
    """The flow is cut at eps and no sooner: a ramp moves by its slope times eps pixels."""
    x = (torch.arange(8, dtype=DOUBLE) / 10).expand(1, 1, 8, 8).contiguous()

    class Sum(nn.Module):
        stages = ()

        def forward(self, x, noise):
            s = x.flatten(1).sum(1)
            return torch.stack([s, -s], 1)

    y = torch.tensor([0])
    x_adv = StAdv(steps=60, smooth=0.0)(Sum(), x, y, Flow(0.2), Noise.of(0, [0]))
    torch.testing.assert_close(x_adv[..., 1:-1], x[..., 1:-1] - 0.08, rtol=0, atol=1e-9)


def test_it_lowers_accuracy_and_more_with_a_wider_flow():
    x = pictures(40, (1, 6, 6), seed=4)
    model, noise = Shaky(36, 0.05), Noise.of(0, range(40))
    y = model(x, noise.fold("label")).argmax(1)
    judge = noise.fold("judge")
    right = [(model(x, judge).argmax(1) == y).float().mean()]
    for eps in (0.03, 0.15):
        x_adv = StAdv(steps=25, lr=eps / 5, eot=4)(model, x, y, Flow(eps), noise)
        right.append((model(x_adv, judge).argmax(1) == y).float().mean())
    assert right[0] > 0.9
    assert right[0] - 0.15 > right[1] > right[2] + 0.15


def test_the_last_row_and_column_have_a_slope_inwards():
    x, flow = pictures(), torch.zeros(3, 2, 7, 5, dtype=DOUBLE)
    grad = pull_back(lambda f: bend(x, f), flow, torch.ones_like(x))
    down = (x[:, :, -1] - x[:, :, -2]).sum(1) * 7 / 2
    torch.testing.assert_close(grad[:, 0, -1], down)
    torch.testing.assert_close(grad[:, 1, :, -1], (x[..., -1] - x[..., -2]).sum(1) * 5 / 2)


def test_errors():
    x, y, noise = pictures(1, (1, 4, 4)), torch.tensor([0]), Noise.of(0, [0])
    model = Shaky(16)
    with pytest.raises(ValueError, match="Flow only; got Linf"):
        StAdv()(model, x, y, Linf(0.1), noise)
    with pytest.raises(ValueError, match="an attack such as StAdv"):
        PGD()(model, x, y, Flow(), noise)
    for settings, words in (
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"smooth": -1.0}, "smooth must be at least 0"),
        ({"loss": "mse"}, "loss must be one of"),
        ({"average": "losses"}, "average must be one of"),
    ):
        with pytest.raises(ValueError, match=words):
            StAdv(**settings)
    with pytest.raises(ValueError, match="eps must be positive"):
        Flow(0.0)


@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_the_rate_by_default_is_a_fifth_of_the_bound(eps):
    """A step of Adam is about its rate: five reach the bound."""
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    y, noise = torch.tensor([0, 1]), Noise.of(0, range(2))
    settings = {"steps": 4, "eot": 1, "loss": "ce"}
    plain = StAdv(**settings)(Shaky(64), x, y, Flow(eps), noise)
    assert torch.equal(plain, StAdv(lr=eps / 5, **settings)(Shaky(64), x, y, Flow(eps), noise))
    assert not torch.equal(plain, StAdv(lr=0.07, **settings)(Shaky(64), x, y, Flow(eps), noise))
