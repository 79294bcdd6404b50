"""Paths are PGD's own; a planar path is projected exactly; a linear defence has one path."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depure.analysis.store import Cells
from depure.analysis.trajectories import (
    Route,
    directions,
    follow,
    losses_at,
    path_of,
    project,
    trajectories,
)
from depure.attacks import PGD
from depure.data.images import Images
from depure.defences import Defended
from depure.evaluation.shards import compute_shard
from depure.noise import Noise
from depure.purifiers import Identity, Purifier
from depure.reporting.plots.trajectories import trajectories_figure
from depure.threat import L2, Linf, Threat


class Jitter(Purifier):
    stages = ("forward", "reverse")

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x + 0.1 * (noise.normal("forward", 0, x) + noise.normal("reverse", 0, x))


class Head(nn.Module):
    def __init__(self, bend: float = 3.0, classes: int = 3) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(2 * torch.randn(classes, 9, generator=g))
        self.bend = bend

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1) - 0.5
        return (torch.tanh(self.bend * h) if self.bend else h) @ self.w.T


def images_of(head: nn.Module, classes: int = 3) -> Images:
    x = 0.3 + 0.4 * torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    names = tuple("abc"[:classes])
    return Images(x, head(x).argmax(1), torch.arange(7, 11), names, "toy")


MODEL = Defended(Jitter(), Head())
IMAGES = images_of(Head())
SETTINGS = {"attack": PGD(steps=5, eot=3), "repeats": 2, "draws": 3, "batch": 3, "seed": 2}


@pytest.mark.parametrize("attack", [
    PGD(steps=5, eot=2), PGD(steps=3, random_start=True, loss="margin"),
    PGD(steps=3, target="runner_up", step_size=0.3),
])  # fmt: skip
@pytest.mark.parametrize("ball", [Linf(0.1), L2(0.4)])
def test_the_path_is_that_of_the_attack(attack, ball):
    noise = Noise.of(3, IMAGES.index).fold("attack")
    found = follow(attack, MODEL, IMAGES, ball, noise)
    assert found.shape == (4, attack.steps + 1, 1, 3, 3)
    for steps in range(1, attack.steps + 1):
        short = PGD(**{**vars(attack), "steps": steps})
        end = short(MODEL, IMAGES.x, IMAGES.y, ball, noise)
        assert torch.equal(found[:, steps], end)
    assert torch.equal(found[:, 0], IMAGES.x) != attack.random_start


def test_routes_are_the_evaluations_own_attacks():
    """DW-box knows all noise, the others none; a repetition has other draws."""
    cells, ends = Cells(None, {}), {}
    for route, threat, eot in (
        (Route("dw-box"), Threat(Linf(0.1), ("forward", "reverse")), 1),
        (Route("white-box-eot"), Threat(Linf(0.1)), 3),
        (Route("white-box"), Threat(Linf(0.1)), 1),
    ):
        found = path_of(MODEL, IMAGES, Linf(0.1), PGD(steps=4, eot=3), route, 2, cells)[:, -1]
        attack = PGD(steps=4, eot=eot)
        run = compute_shard(
            MODEL, IMAGES, attack, threat, draws=1, seed=2, chunk=64, device=torch.device("cpu")
        )
        torch.testing.assert_close(found, run[0].x_adv, rtol=0, atol=0)
        ends[route.name] = found
    again = Route("white-box", 1)
    other = path_of(MODEL, IMAGES, Linf(0.1), PGD(steps=4, eot=3), again, 2, cells)[:, -1]
    assert not torch.equal(other, ends["white-box"])
    with pytest.raises(ValueError, match="must be dw-box"):
        Route("dw")


def test_a_planar_path_is_projected_exactly():
    g = np.random.default_rng(0)
    plane = np.linalg.qr(g.standard_normal((20, 2)))[0]
    flat = g.standard_normal((3, 6, 2)) * [3.0, 1.0]
    at, share = project(flat @ plane.T)
    assert share.sum() == pytest.approx(1, abs=1e-12)
    rows, wanted = at.reshape(-1, 2), flat.reshape(-1, 2)
    np.testing.assert_allclose(rows @ rows.T, wanted @ wanted.T, atol=1e-12)
    assert at[0, -1, 0] >= 0
    assert at[1:, -1, 1].mean() >= 0


def test_the_share_explained_is_known():
    """Squared lengths 9, 4 and 1 on three axes, about zero and not about their mean."""
    rows = np.diag([3.0, 2.0, 1.0])[None]
    at, share = project(rows)
    np.testing.assert_allclose(share, [9 / 14, 4 / 14])
    np.testing.assert_allclose(np.abs(at[0]), [[3, 0], [0, 2], [0, 0]], atol=1e-12)
    assert np.isnan(project(np.zeros((2, 3, 4)))[1]).all()
    assert project(np.ones((1, 1, 1)))[0].shape == (1, 1, 2)


def test_cosines_of_known_paths():
    """One path along x, one along x then y: at 45 degrees in the end, a right angle at the turn."""
    x, y = np.eye(2)
    one, two = np.cumsum([0 * x, x, x], 0), np.cumsum([0 * x, x, y], 0)
    found = directions(np.stack([one, two])[None])
    np.testing.assert_allclose(found["ends"][0], [[1, 0.5**0.5], [0.5**0.5, 1]])
    np.testing.assert_allclose(found["steps"][0], [[1, 0.5], [0.5, 1]])
    np.testing.assert_allclose(found["turns"][0], [[1], [0]], atol=1e-15)


def test_a_linear_defence_has_one_path_and_its_loss():
    """Two classes, a linear map: every gradient has one direction, whatever the noise."""
    head = Head(0.0, 2)
    images = images_of(head, 2)
    model, eps = Defended(Jitter(), head), 0.2
    found = trajectories(model, images, L2(eps), **SETTINGS)
    assert found.paths == (
        "dw-box", "white-box-eot", "white-box-eot 2", "white-box", "white-box 2",
    )  # fmt: skip
    np.testing.assert_allclose(found.ends, 1, atol=1e-5)
    np.testing.assert_allclose(found.explained[:, 0], 1, atol=1e-5)
    np.testing.assert_allclose(found.coordinates[:, :, -1, 0], eps, rtol=1e-5)
    w = (head.w[1] - head.w[0]).detach().double().numpy()
    z = Noise.of(2, images.index).lock("forward", "reverse")
    z = sum(z.normal(s, 0, torch.empty(4, 9)).double().numpy() for s in ("forward", "reverse"))
    sign = 2 * images.y.numpy() - 1
    clean = sign * ((images.x.flatten(1).double().numpy() - 0.5 + 0.1 * z) @ w)
    for step in range(6):
        margin = clean - min(step * eps / 5, eps) * np.linalg.norm(w)
        wanted = np.logaddexp(0, -margin)
        np.testing.assert_allclose(found.fixed[:, 0, step], wanted, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found.fixed, found.fresh)


def test_losses_at_share_their_draws():
    """The same point twice has the same loss; a point's loss does not depend on its neighbours."""
    noise = Noise.of(0, IMAGES.index).fold("height")
    points = torch.stack([IMAGES.x, IMAGES.x, 1 - IMAGES.x], 1)
    found = losses_at(MODEL, points, IMAGES.y, noise, 4)
    assert torch.equal(found[:, 0], found[:, 1])
    each = []
    for k in range(4):
        rows = noise.draws(4)[torch.arange(4) * 4 + k]
        logits = MODEL(1 - IMAGES.x, rows)
        each.append(nn.functional.cross_entropy(logits, IMAGES.y, reduction="none"))
    torch.testing.assert_close(found[:, 2], torch.stack(each).mean(0).detach())


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = trajectories(MODEL, IMAGES, Linf(0.1), **SETTINGS).arrays()

    def stop(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trajectories(MODEL, IMAGES, Linf(0.1), cells=Cells(tmp_path, {}, progress=stop), **SETTINGS)
    seen = []
    cells = Cells(tmp_path, {}, progress=lambda *p: seen.append(p))
    again = trajectories(MODEL, IMAGES, Linf(0.1), cells=cells, **SETTINGS).arrays()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert seen[-1] == (12, 12)
    other = trajectories(MODEL, IMAGES, Linf(0.1), **{**SETTINGS, "seed": 3})
    assert not np.array_equal(other.fresh, whole["fresh"])


def test_bad_input():
    with pytest.raises(ValueError, match="draws no noise"):
        trajectories(Defended(Identity(), Head()), IMAGES, Linf(0.1))
    flat = Head()
    flat.w.data.zero_()
    with pytest.raises(ValueError, match="no attack moved any image"):
        trajectories(Defended(Jitter(), flat), IMAGES, Linf(0.1), **SETTINGS)
    with pytest.raises(ValueError, match="repeats must be at least 1; got 0"):
        trajectories(MODEL, IMAGES, Linf(0.1), repeats=0)


def test_the_figure_is_labelled():
    result = trajectories(MODEL, IMAGES, Linf(0.1), **SETTINGS)
    figure = trajectories_figure(result)
    assert len(figure.axes) == 6
    assert all(a.get_xlabel() and a.get_ylabel() for a in figure.axes[:4])
    assert "inference" in figure._supxlabel.get_text()
    with pytest.raises(ValueError, match="0 to 3; got 9"):
        trajectories_figure(result, 9)
