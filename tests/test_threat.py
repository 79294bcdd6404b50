import pytest
import torch

from depure.noise import Noise
from depure.threat import L2, Linf, Threat

BALLS = [Linf(0.1), L2(0.7)]
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


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_ascent_is_the_steepest_unit_step(ball, x):
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    step = ball.ascend(grad)
    torch.testing.assert_close(ball.size(step), torch.ones(len(x)))
    gain = (grad * step).flatten(1).sum(1)
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


def test_knows_must_be_a_tuple():
    with pytest.raises(ValueError, match="tuple of stage names"):
        Threat(Linf(), knows="forward")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": 0}, "pool must be at least 1"),
        ({"mix": 1.5}, r"mix must lie in \[0, 1\]"),
        ({"pool": 4, "mix": 0.5}, "exclude each other"),
        ({"knows": (), "pool": 4}, "act on known noise"),
        ({"knows": (), "mix": 0.5}, "act on known noise"),
    ],
)
def test_bad_knowledge(settings, message):
    with pytest.raises(ValueError, match=message):
        Threat(Linf(), **{"knows": ("forward",), **settings})


def test_what_is_held():
    x = torch.zeros(3, 1, 8, 8)
    noise = Noise.of(0, range(3))

    def draws(*settings):
        held = Threat(Linf(), ("forward",), *settings).hold(noise)
        found = [held.fold("judge", i).normal("forward", 0, x) for i in range(40)]
        return [row.numpy().tobytes() for row in torch.stack(found)[:, 0]], found

    assert len(set(draws()[0])) == 1
    assert len(set(draws(4)[0])) == 4  # 40 draws of a pool of 4 see each with probability 0.99998
    mixed, fresh = draws(1, 0.5)[1], draws(1, 1.0)[1]
    locked = draws()[1][0]
    torch.testing.assert_close(mixed[7], 0.75**0.5 * locked + 0.5 * fresh[7])
    assert torch.equal(fresh[7], noise.fold("judge", 7).normal("forward", 0, x))
    assert torch.equal(draws(1, 0.0)[1][0], locked)
