import pytest
import torch

from depure.noise import Noise
from depure.threat import L1, L2, Flow, Linf

BALLS = [Linf(0.1), L2(0.7), L1(0.4)]
SHAPES = [(1, 1, 1, 1), (3, 1, 4, 4), (2, 3, 8, 5)]


@pytest.fixture(params=SHAPES, ids=str)
def x(request):
    return torch.rand(request.param, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_projection_lands_in_the_ball_and_leaves_inner_points_alone(ball, x):
    far = x + 5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    projected = ball.project(far, x)
    assert ball.contains(projected, x).all()
    near = ball.project(x + 0.3 * (projected - x), x)
    torch.testing.assert_close(ball.project(near, x), near)
    assert not ball.contains(x + 10, x).any()


def test_l2_projection_is_the_nearest_point():
    """Against scipy's constrained solver, without the [0, 1] box (which `contains` tests)."""
    from scipy.optimize import minimize

    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    far = x + torch.tensor([[[[0.4, -0.1], [0.2, 0.3]]]], dtype=torch.float64)
    ball = L2(0.2)
    found = minimize(
        lambda d: ((d - (far - x).numpy().ravel()) ** 2).sum(),
        x0=[0.0] * 4,
        constraints={"type": "ineq", "fun": lambda d: ball.eps**2 - (d**2).sum()},
        tol=1e-14,
    )
    assert abs((ball.project(far, x) - x).numpy().ravel() - found.x).max() < 1e-6


def by_bisection(far, x, eps):
    """Projection onto L1 ball and box, pixel by pixel given the multiplier, which is halved in."""
    low, high = 0.0, float((far - x).abs().max())
    for _ in range(200):
        cut = (low + high) / 2
        point = x + (far - x).sign() * ((far - x).abs() - cut).clamp_min(0)
        point = point.clamp(0, 1)
        low, high = (cut, high) if (point - x).abs().sum() > eps else (low, cut)
    inside = far.clamp(0, 1)
    return inside if (inside - x).abs().sum() <= eps else point


def l1_cases(shape):
    g = torch.Generator().manual_seed(3)
    z, u = torch.randn(shape, generator=g), torch.rand(shape, generator=g)
    black_or_white = u.round()
    return {
        "inside": (u + 1e-4 * z, u),
        "near": (u + 0.1 * z, u),
        "far": (u + 5.0 * z, u),
        "very far": (u + 1e3 * z, u),
        "no change": (u, u),
        "one pixel": (u + 2.0 * (u == u.max()), u),
        "black and white": (black_or_white + z, black_or_white),
        "all at the edge, outwards": (3.0 * black_or_white - 1.0, black_or_white),
        "all at the edge, inwards": (1.0 - black_or_white, black_or_white),
        "equal changes": (u + 0.2, u),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 4, 4), (2, 3, 32, 32)], ids=str)
@pytest.mark.parametrize("eps", [1e-3, 0.4, 12.0, 1e5])
@pytest.mark.parametrize("case", list(l1_cases((1, 1, 1, 1))))
def test_l1_projection_against_bisection(case, eps, shape, dtype):
    far, x = (t.to(dtype) for t in l1_cases(shape)[case])
    found = L1(eps).project(far, x)
    assert found.dtype == dtype
    assert L1(eps).contains(found, x).all()
    # A pixel value of 1000 is known to 6e-5 in float32.
    far_off = 1e-4 if case == "very far" else 2e-6
    for i in range(len(x)):
        exact = by_bisection(far[i].double(), x[i].double(), eps)
        error = float((found[i].double() - exact).abs().max())
        assert error < (far_off if dtype == torch.float32 else 1e-11)


def test_l1_projection_against_slsqp_and_unlike_the_two_projections_in_sequence():
    from scipy.optimize import minimize

    x = torch.tensor([[[[0.95, 0.1], [0.0, 0.6]]]], dtype=torch.float64)
    far = x + torch.tensor([[[[0.9, -0.5], [0.3, -0.1]]]], dtype=torch.float64)
    move, ball = (far - x).numpy().ravel(), L1(0.4)
    found = minimize(  # positive and negative parts make the norm smooth
        lambda d: ((d[:4] - d[4:] - move) ** 2).sum(),
        x0=[0.01] * 8,
        bounds=[(0, 1 - v) for v in x.flatten().tolist()] + [(0, v) for v in x.flatten().tolist()],
        constraints={"type": "ineq", "fun": lambda d: ball.eps - d.sum()},
        tol=1e-14,
    )
    exact = torch.from_numpy(found.x[:4] - found.x[4:]).view_as(x)
    torch.testing.assert_close(ball.project(far, x) - x, exact, rtol=0, atol=1e-6)
    sequence = (x + ball._into(far - x)).clamp(0, 1)
    assert ball.size(sequence - x) < 0.1  # of 0.4: the largest change has no room
    torch.testing.assert_close(ball.size(ball.project(far, x) - x).item(), 0.4)


def test_l1_projection_stays_inside_however_thousands_of_pixels_round():
    x = torch.full((1, 3, 64, 64), 0.7)
    for eps in (0.3, 0.31, 0.32, 0.33, 0.34, 0.35):
        found = L1(eps).project(x + 6e-5, x)
        assert L1(eps).contains(found, x).all()
        assert (found > x).any()


def test_l1_start_is_uniform():
    """In the square |a| + |b| <= eps, a - b and a + b are independent and uniform."""
    x = torch.full((4000, 1, 1, 2), 0.5)
    start = (L1(0.4).start(x, Noise.of(0, range(4000))) - x).view(-1, 2) / 0.4
    sides = torch.stack([start[:, 0] + start[:, 1], start[:, 0] - start[:, 1]])
    assert sides.mean(1).abs().max() < 4 * (1 / 3 / 4000) ** 0.5
    assert (sides.square().mean(1) - 1 / 3).abs().max() < 4 * (4 / 45 / 4000) ** 0.5
    assert (sides[0] * sides[1]).mean().abs() < 4 * (1 / 9 / 4000) ** 0.5


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_ascent_is_the_steepest_unit_step(ball, x):
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    step = ball.ascend(grad)
    torch.testing.assert_close(ball.size(step), torch.ones(len(x)))
    gain = (grad * step).flatten(1).sum(1)
    order = {Linf: 1, L2: 2, L1: torch.inf}[type(ball)]  # of the dual norm
    torch.testing.assert_close(gain, grad.flatten(1).norm(order, dim=1))
    for seed in range(20):
        other = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        other /= ball.size(other).view(-1, 1, 1, 1)
        assert ((grad * other).flatten(1).sum(1) <= gain + 1e-5).all()


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_zero_and_tiny_gradients(ball):
    zero = torch.zeros(2, 1, 3, 3)
    assert torch.equal(ball.ascend(zero), zero)
    tiny = torch.full((2, 1, 3, 3), 1e-38)
    torch.testing.assert_close(ball.size(ball.ascend(tiny)), torch.ones(2))


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_random_start_fills_the_ball_and_is_keyed(ball):
    x = torch.full((400, 1, 1, 2), 0.5)
    start = ball.start(x, Noise.of(0, range(400)))
    assert ball.contains(start, x).all()
    sizes = ball.size(start - x).clamp_max(0.5) / min(ball.eps, 0.5)
    assert 0.6 < sizes.mean() < 0.95
    assert sizes.min() < 0.4
    alone = ball.start(x[7:8], Noise.of(0, [7]))
    assert torch.equal(alone, start[7:8])


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_eps(eps):
    with pytest.raises(ValueError, match="eps must be positive"):
        Linf(eps)
    with pytest.raises(ValueError, match="eps must be positive"):
        L2(eps)
    with pytest.raises(ValueError, match="eps must be positive"):
        L1(eps)


@pytest.mark.parametrize("ball", [Linf, L2, L1, Flow])
@pytest.mark.parametrize(
    "eps",
    [0, -0.0, -1, float("nan"), float("inf"), 10**400, None, "0.1", "²", True, 1j, [1.0]],
    ids=repr,
)
def test_eps_must_be_a_positive_number(ball, eps):
    with pytest.raises(ValueError, match="eps must be positive and finite"):
        ball(eps)


@pytest.mark.parametrize("eps", [8, 1.0001, 255.0])
def test_linf_above_one_is_refused_with_a_guess(eps):
    with pytest.raises(ValueError, match=rf"at most 1, .* did you mean {eps:g}/255\?"):
        Linf(eps)
    assert Linf(1.0).eps == 1.0


def test_a_ball_that_holds_every_image_is_refused():
    x = torch.zeros(2, 1, 4, 4)
    for ball, most in ((L2, 4.0), (L1, 16.0), (Linf, 1.0)):
        assert ball(0.1).diameter(16) == most == float(ball(0.1).size(torch.ones(1, 1, 4, 4)))
        ball(most).check_images(x)
    with pytest.raises(ValueError, match="eps must be at most 4, the largest L2 change"):
        L2(4.1).check_images(x)
    with pytest.raises(ValueError, match="eps must be at most 16, the largest L1 change"):
        L1(17).check_images(x)
    Flow(2.0).check_images(x)
