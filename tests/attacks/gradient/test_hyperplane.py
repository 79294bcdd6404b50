"""The projections against independent solvers, on random and degenerate problems."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog

from depure.attacks.gradient.hyperplane import onto_plane
from depure.threat import L1, L2, Ball, Linf

BALLS = [Linf(), L2(), L1()]
FAR = 1e6  # a rise that no box allows


def solved(ball, x, w, rise):
    """Norm of the smallest change, by another method."""
    low, high = -x, 1.0 - x
    if isinstance(ball, L2):
        # The optimum is clip(m * w); <w, clip(m * w)> rises with the multiplier m.

        def gain(m):
            return w @ np.clip(m * w, low, high) - rise

        edge = 1.0
        while gain(edge) * gain(-edge) > 0 and edge < 1e12:
            edge *= 2.0
        m = brentq(gain, -edge, edge, xtol=1e-15, rtol=1e-14)
        return np.linalg.norm(np.clip(m * w, low, high))
    d = len(x)
    if isinstance(ball, L1):  # d = p - q
        cost, rows = np.ones(2 * d), np.concatenate([w, -w])
        bounds = [(0, h) for h in high] + [(0, -v) for v in low]
        return linprog(cost, A_eq=rows[None], b_eq=[rise], bounds=bounds).fun
    cost = np.zeros(d + 1)
    cost[-1] = 1.0
    within = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
    bounds = [*zip(low, high, strict=True), (0, None)]
    return linprog(
        cost, within, np.zeros(2 * d), np.append(w, 0.0)[None], [rise], bounds=bounds
    ).fun


def problems(count=60, d=7):
    """Random ones; points on the box's edge, pixels of no weight, equal weights, no rise."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(count, d, generator=g, dtype=torch.float64)
    w = torch.randn(count, d, generator=g, dtype=torch.float64)
    x[10:20] = x[10:20].round()
    w[15:30] *= torch.rand(15, d, generator=g) < 0.5
    w[30:35] = w[30:35].sign()
    w[35:40] *= 1e-30
    w[40:45] *= 1e20
    most = torch.maximum(w * (1 - x), -w * x).sum(1)
    least = torch.minimum(w * (1 - x), -w * x).sum(1)
    share = torch.rand(count, generator=g, dtype=torch.float64)
    rise = least + share * (most - least)
    rise[45:48] = 0.0
    rise[48:50] = torch.stack([most[48], least[49]]) * (1 - 1e-9)  # almost a corner
    return x.view(count, 1, 1, d), w.view(count, 1, 1, d), rise


@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_as_small_as_another_solver_finds_it(ball):
    x, w, rise = problems()
    change = onto_plane(ball, x, w, rise)
    moved = x + change
    assert moved.min() >= -1e-15
    assert moved.max() <= 1 + 1e-15
    scale = w.flatten(1).abs().amax(1).clamp_min(1e-300)
    torch.testing.assert_close((w * change).flatten(1).sum(1) / scale, rise / scale)
    assert (change[(w == 0)] == 0).all()
    for i in range(len(x)):
        unit = w[i].flatten().numpy() / scale[i].item()  # the solvers dislike 1e-30
        wanted = solved(ball, x[i].flatten().numpy(), unit, (rise[i] / scale[i]).item())
        assert ball.size(change[i : i + 1]).item() == pytest.approx(wanted, abs=1e-8), i


@pytest.mark.parametrize("ball", BALLS, ids=repr)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_too_small_a_box_gives_the_nearest_corner(ball, sign):
    x, w, _ = problems()
    change = onto_plane(ball, x, w, torch.full((len(x),), sign * FAR * 1e30, dtype=x.dtype))
    corner = torch.where(w == 0, x, (sign * w > 0).to(x))
    torch.testing.assert_close(x + change, corner)


@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_no_gradient_no_change(ball):
    x = torch.rand(4, 1, 2, 2)
    rise = torch.tensor([1.0, -1.0, 0.0, 1e30])
    assert (onto_plane(ball, x, torch.zeros_like(x), rise) == 0).all()


@pytest.mark.parametrize("ball", BALLS, ids=repr)
def test_single_precision_on_many_pixels(ball):
    """The plane is reached to rounding, and rows do not touch each other."""
    g = torch.Generator().manual_seed(1)
    x, w = torch.rand(5, 3, 64, 64, generator=g), torch.randn(5, 3, 64, 64, generator=g)
    most = torch.maximum(w * (1 - x), -w * x).flatten(1).sum(1)
    rise = most * torch.tensor([0.001, 0.01, 0.1, 0.5, 0.95])
    change = onto_plane(ball, x, w, rise)
    torch.testing.assert_close((w * change).flatten(1).sum(1), rise, rtol=1e-4, atol=0.0)
    exact = onto_plane(ball, x.double(), w.double(), rise.double())
    torch.testing.assert_close(ball.size(change).double(), ball.size(exact), rtol=1e-4, atol=0.0)
    for factor in (1e-30, 1e20):  # gradients come in all sizes
        again = onto_plane(ball, x, factor * w, factor * rise)
        torch.testing.assert_close(ball.size(again), ball.size(change), rtol=1e-4, atol=0.0)
    for i in range(5):
        alone = onto_plane(ball, x[i : i + 1], w[i : i + 1], rise[i : i + 1])
        assert torch.equal(alone[0], change[i])


def test_by_hand():
    x, w = torch.full((1, 1, 1, 3), 0.5), torch.tensor([4.0, -2.0, 0.0]).view(1, 1, 1, 3)
    rise = torch.tensor([1.2])
    expected = {Linf: [0.2, -0.2, 0.0], L2: [0.24, -0.12, 0.0], L1: [0.3, 0.0, 0.0]}
    for kind, values in expected.items():
        change = onto_plane(kind(), x, w, rise).flatten()
        torch.testing.assert_close(change, torch.tensor(values))
    full = onto_plane(L1(), x, w, torch.tensor([2.4])).flatten()
    torch.testing.assert_close(full, torch.tensor([0.5, -0.2, 0.0]))


def test_another_norm_is_refused():
    class L3(Ball):
        contains = project = size = None

    with pytest.raises(ValueError, match="projected onto in L-inf, L2 and L1; got L3"):
        onto_plane(L3(), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.ones(1))
