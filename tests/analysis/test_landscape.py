"""The loss surface of a linear defence is a closed form; bad planes are refused."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depure.analysis.landscape import landscape, plane
from depure.analysis.store import Cells
from depure.attacks import PGD
from depure.data.images import Images
from depure.defences import Defended
from depure.diffusion import DDIM, Denoiser, VPDiscrete
from depure.noise import Noise
from depure.purifiers import DiffPure, Identity
from depure.reporting.plots.landscape import landscape_figure
from depure.threat import L2, Threat

V = 0.04  # variance of the data, Gaussian about grey, in [-1, 1]
BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Exact(nn.Module):
    """E[eps | x_t] of that data."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        a2 = float(BAR[int(labels[0])])
        return x * (1 - a2) ** 0.5 / (a2 * V + 1 - a2)


class Linear(nn.Module):
    def __init__(self, scale: float = 1.0, classes: int = 2) -> None:
        super().__init__()
        w = torch.randn(classes, 4, generator=torch.Generator().manual_seed(3))
        self.head = nn.Linear(4, classes)
        self.head.weight.data = 4 * scale * w
        self.head.bias.data = scale * torch.tensor([0.3, -0.2, 0.1])[:classes]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) - 0.5)


def defence(scale: float = 1.0, classes: int = 2) -> Defended:
    denoiser = Denoiser(Exact(), VPDiscrete.linear())
    return Defended(DiffPure(denoiser, DDIM(), t_star=0.1, steps=4), Linear(scale, classes))


def purified(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """DDIM in closed form: every step multiplies the state by one number."""
    times, bar = [99, 74, 49, 24, -1], lambda t: 1.0 if t < 0 else float(BAR[t])
    u = bar(99) ** 0.5 * (2 * x - 1) + (1 - bar(99)) ** 0.5 * z
    for t, s in pairwise(times):
        a, b = bar(t), bar(s)
        u = u * ((a * b) ** 0.5 * V + ((1 - a) * (1 - b)) ** 0.5) / (a * V + 1 - a)
    return (u + 1) / 2


def loss(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    head = Linear().head
    w, b = head.weight.detach().numpy(), head.bias.detach().numpy()
    logits = (purified(x, z) - 0.5) @ w.T + b
    sign = 2 * y - 1
    return np.logaddexp(0, -sign * (logits[..., 1] - logits[..., 0]))


@pytest.fixture
def images() -> Images:
    x = 0.5 + 0.1 * torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Images(x, Linear()(x).argmax(1), torch.arange(40, 45), ("a", "b"), "toy")


CURVED = defence(classes=3)  # with two classes, every gradient has one direction
ATTACK = PGD(steps=4, eot=3)
SETTINGS = {"attack": ATTACK, "points": 4, "draws": 3, "batch": 2, "seed": 5}


def test_the_surface_is_the_closed_form(images):
    g = torch.Generator().manual_seed(1)
    one, two = (0.1 * torch.randn(5, 1, 2, 2, generator=g) for _ in range(2))
    found = landscape(defence(), images, L2(0.3), directions=(one, two), span=(-0.5, 1), **SETTINGS)
    a, b = (d.flatten(1).double().numpy() for d in (one, two))
    r = b - (a * b).sum(1, keepdims=True) / (a * a).sum(1, keepdims=True) * a
    grid = np.linspace(-0.5, 1, 4)
    x = images.x.flatten(1).double().numpy()[:, None, None]
    points = x + grid[:, None, None] * a[:, None, None] + grid[None, :, None] * r[:, None, None]
    assert points.min() > 0
    assert points.max() < 1
    y, base, like = images.y.numpy()[:, None, None], Noise.of(5, images.index), torch.empty(5, 4)
    z = base.lock("forward").normal("forward", (0, 0), like).numpy()
    np.testing.assert_allclose(found.fixed, loss(points, y, z[:, None, None]), atol=2e-5)
    rows = base.fold("height").draws(3)
    zs = rows.normal("forward", (0, 0), torch.empty(15, 4)).numpy().reshape(5, 3, 4)
    fresh = np.mean([loss(points, y, zs[:, k, None, None]) for k in range(3)], 0)
    np.testing.assert_allclose(found.fresh, fresh, atol=2e-5)
    assert found.clamped.max() == 0
    assert np.ptp(found.fixed) > 0.1


def test_paths_lie_where_they_must(images):
    """The DW-box attack ends at (1, 0), the EoT attack at (its projection, 1), on the plane."""
    model, ball = CURVED, L2(0.3)
    found = landscape(model, images, ball, **SETTINGS)
    assert found.paths == ("dw-box", "white-box-eot")
    np.testing.assert_allclose(found.path_coordinates[:, :, 0], 0)
    ends = found.path_coordinates[:, :, -1]
    np.testing.assert_allclose(ends[:, 0], [[1, 0]] * len(ends), atol=1e-5)
    np.testing.assert_allclose(ends[:, 1, 1], 1, atol=1e-5)
    assert found.off_plane[:, :, -1].max() < 1e-5
    threats = (Threat(ball, ("forward",)), Threat(ball))
    deltas = []
    for threat, eot in zip(threats, (1, 3), strict=True):
        noise = threat.hold(Noise.of(5, images.index)).fold("attack")
        x_adv = PGD(steps=4, eot=eot)(model, images.x, images.y, ball, noise)
        deltas.append((x_adv - images.x).flatten(1).double())
    one, two = (d[torch.isin(images.index, torch.tensor(found.index))] for d in deltas)
    np.testing.assert_allclose(ends[:, 1, 0], (one * two).sum(1) / (one * one).sum(1), atol=1e-5)


def test_gram_schmidt_is_orthogonal():
    g = torch.Generator().manual_seed(0)
    one, two = (torch.randn(3, 1, 2, 2, generator=g) for _ in range(2))
    found = plane(one, two)
    assert np.abs((found.first * found.residual).sum(1)).max() < 1e-12
    at, off = found.coordinates(found.first[:, None] * 2 - found.residual[:, None])
    np.testing.assert_allclose(at, np.tile([[[2, -1]]], (3, 1, 1)))
    assert off.max() < 1e-12
    third = torch.randn(3, 1, 2, 2, generator=g).flatten(1).double().numpy()[:, None]
    assert found.coordinates(third)[1].min() > 0.01


def test_clamped_pixels_are_counted(images):
    up, side = torch.zeros_like(images.x), torch.zeros_like(images.x)
    up[:, 0, 0, 0], side[:, 0, 1, 1] = 2.0, 0.01
    found = landscape(defence(), images, L2(0.3), directions=(up, side), span=(0, 1), **SETTINGS)
    np.testing.assert_allclose(found.clamped[:, 0], 0)
    np.testing.assert_allclose(found.clamped[:, -1], 0.25)


def test_bad_planes(images):
    g = torch.Generator().manual_seed(1)
    one, two = (0.1 * torch.randn(5, 1, 2, 2, generator=g) for _ in range(2))
    run = lambda m=None, **s: landscape(m or defence(), images, L2(0.3), **{**SETTINGS, **s})  # noqa: E731
    with pytest.raises(ValueError, match="zero or parallel for all 5"):
        run(directions=(one, -2 * one))
    with pytest.raises(ValueError, match="dw-box and white-box-eot are zero or parallel"):
        run()
    with pytest.raises(ValueError, match="does not change over the plane"):
        run(defence(scale=0.0), directions=(one, two))
    with pytest.raises(ValueError, match="draws no noise"):
        run(Defended(Identity(), Linear()))
    with pytest.raises(ValueError, match="images' shape"):
        run(directions=(one[:3], two))
    with pytest.raises(ValueError, match="must be dw-box"):
        run(directions=("dw-bx", "random"))
    with pytest.raises(ValueError, match="3 points"):
        run(points=2)
    two[1] = 3 * one[1]
    found = run(directions=(one, two))
    assert found.left_out.tolist() == [41]
    assert found.index.tolist() == [40, 42, 43, 44]
    assert len(found.fixed) == len(found.path_fixed) == 4
    still = run(Defended(Identity(), Linear()), directions=("dw-box", "random"))
    assert still.paths == ("dw-box",)
    np.testing.assert_array_equal(still.fixed, still.fresh)


def test_a_resumed_run_equals_an_uninterrupted_one(images, tmp_path):
    whole = landscape(CURVED, images, L2(0.3), **SETTINGS).arrays()

    def stop(done, total):
        assert done <= total
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        landscape(CURVED, images, L2(0.3), cells=Cells(tmp_path, {}, progress=stop), **SETTINGS)
    seen = []
    cells = Cells(tmp_path, {}, progress=lambda *p: seen.append(p))
    again = landscape(CURVED, images, L2(0.3), cells=cells, **SETTINGS).arrays()
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert seen[-1][0] == seen[-1][1]
    other = landscape(CURVED, images, L2(0.3), **{**SETTINGS, "seed": 6})
    assert not np.array_equal(other.fixed, whole["fixed"])
    large = landscape(CURVED, images, L2(0.3), **{**SETTINGS, "batch": 5})
    np.testing.assert_allclose(large.fresh, whole["fresh"], atol=1e-5)


def test_the_figure_is_labelled(images):
    figure = landscape_figure(landscape(CURVED, images, L2(0.3), **SETTINGS))
    assert all(a.get_xlabel() and a.get_ylabel() for a in figure.axes if a.get_label() == "")
    assert "inference" in figure._supxlabel.get_text()
    assert "DW-box" in figure.axes[1].get_xlabel()
