"""On Gaussian data the exact denoiser shrinks a perturbation by known factors."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depure.analysis.purification import penultimate, purification
from depure.analysis.store import Cells
from depure.attacks import PGD
from depure.data.images import Images
from depure.defences import Defended
from depure.diffusion import DDIM, DDPM, Denoiser, VPDiscrete
from depure.noise import Noise
from depure.purifiers import DiffPure, Identity
from depure.reporting.plots.purification import purification_figure
from depure.threat import Linf

V = 0.04
BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def bar(t: int) -> float:
    return 1.0 if t < 0 else float(BAR[t])


class Exact(nn.Module):
    """E[eps | x_t] of data with variance V about grey, in [-1, 1]."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        a2 = bar(int(labels[0]))
        return x * (1 - a2) ** 0.5 / (a2 * V + 1 - a2)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(2)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(3 * (x.flatten(1) - 0.5))))


def gains(sampler: str, times: list[int]) -> list[float]:
    """What multiplies the state at every step, as the papers print it."""
    found = []
    for t, s in pairwise(times):
        a, b = bar(t), bar(s)
        total = a * V + 1 - a
        if sampler == "ddim":
            found.append(((a * b) ** 0.5 * V + ((1 - a) * (1 - b)) ** 0.5) / total)
        else:
            found.append((b / a) ** 0.5 * (1 - (1 - a / b) / total))
    return found


def defence(sampler: str = "ddpm", steps: int = 4, **settings) -> Defended:
    denoiser = Denoiser(Exact(), VPDiscrete.linear())
    rule = DDIM() if sampler == "ddim" else DDPM()
    return Defended(DiffPure(denoiser, rule, t_star=0.1, steps=steps, **settings), Head())


X = 0.5 + 0.1 * torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
TOLD = (Head()(X).argmax(1) + torch.tensor([0, 1, 0, 1, 0])) % 3  # two are wrong
IMAGES = Images(X, TOLD, torch.arange(30, 35), ("a", "b", "c"), "toy")
DELTA = 0.05 * torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1)).sign()
SETTINGS = {"draws": 3, "batch": 2, "seed": 4, "t_stars": (0.05, 0.1), "steps": (1, 4)}


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_share_removed_is_the_closed_form(sampler, rounds):
    model = defence(sampler, rounds=rounds)
    found = purification(model, IMAGES, Linf(0.05), attacked=X + DELTA, **SETTINGS)
    times = [99, 74, 49, 24, -1]
    kept, total = [1.0], 1.0
    for _ in range(rounds):
        kept.append(total)  # noising scales by alpha, which is divided out
        state = total * bar(99) ** 0.5
        for gain, s in zip(gains(sampler, times), times[1:], strict=True):
            state *= gain
            kept.append(state / bar(s) ** 0.5)
        total = kept[-1]
    assert total < 0.9
    np.testing.assert_allclose(found.removed, np.tile(1 - np.array(kept), (5, 1)), atol=3e-5)
    size = DELTA.flatten(1).norm(dim=1).numpy()[:, None]
    np.testing.assert_allclose(found.gap["l2"], size * kept, rtol=1e-4)
    np.testing.assert_allclose(found.gap["linf"], np.tile(0.05 * np.array(kept), (5, 1)), rtol=1e-3)
    for i, top in enumerate((50, 100)):
        for j, n in enumerate((1, 4)):
            one = [top * (n - k) // n - 1 for k in range(n + 1)]
            left = (bar(top - 1) ** 0.5 * np.prod(gains(sampler, one))) ** rounds
            np.testing.assert_allclose(found.grid_removed[:, i, j], 1 - left, atol=3e-5)
            np.testing.assert_allclose(found.grid_left[:, i, j], left, atol=3e-5)


def test_states_and_distances_are_those_of_the_purifier():
    model = defence()
    noise = Noise.of(4, IMAGES.index).fold("purification").draws(3)
    rows = X.repeat_interleave(3, 0)
    ends = [model.purifier(r, noise) for r in (rows, rows + DELTA.repeat_interleave(3, 0))]
    every = list(model.purifier.pictures(rows, noise))
    assert torch.equal(every[0], rows)
    torch.testing.assert_close(every[-1], ends[0])
    found = purification(model, IMAGES, Linf(0.05), attacked=X + DELTA, **SETTINGS)
    assert len(every) == len(found.time) == found.removed.shape[1] == 6

    def mean(far: Tensor) -> np.ndarray:
        return far.view(5, 3).mean(1).detach().numpy()

    for name, end in (("clean", ends[0]), ("adversarial", ends[1])):
        far = (end - rows).flatten(1)
        kinds = getattr(found, name)
        np.testing.assert_allclose(kinds["l2"][:, -1], mean(far.norm(dim=1)), rtol=1e-5)
        np.testing.assert_allclose(kinds["linf"][:, -1], mean(far.abs().amax(1)), rtol=1e-5)
        seen = [torch.tanh(Head().first(3 * (i.clamp(0, 1).flatten(1) - 0.5))) for i in (end, rows)]
        wanted = mean((seen[0] - seen[1]).norm(dim=1))
        np.testing.assert_allclose(kinds["features"][:, -1], wanted, rtol=1e-4)
        right = Head()(end).argmax(1) == IMAGES.y.repeat_interleave(3)
        column = "clean" if name == "clean" else "attacked"
        accuracy = getattr(found, f"accuracy_{column}")[:, 1, 1]
        np.testing.assert_allclose(accuracy, mean(right.double()))
    damage = mean((ends[0] - rows).flatten(1).norm(dim=1))
    np.testing.assert_allclose(found.grid_damage[:, 1, 1], damage, rtol=1e-5)
    assert found.clean["l2"][:, 0].max() == 0


def test_times_and_levels():
    time, level = zip(*defence(rounds=2).purifier.levels(X[:1], Noise.of(0, [0])), strict=True)
    turn = [0.1, 0.075, 0.05, 0.025, 0]
    np.testing.assert_allclose(time, [0, *turn, *turn])
    assert level[1] == pytest.approx(((1 - bar(99)) / bar(99)) ** 0.5)
    assert level[5] == 0
    assert level[3] == pytest.approx(((1 - bar(49)) / bar(49)) ** 0.5)


def test_steps_that_do_not_fit_are_left_empty():
    settings = {**SETTINGS, "t_stars": (0.002, 0.1), "steps": (1, 4)}
    found = purification(defence(), IMAGES, Linf(0.05), attacked=X + DELTA, **settings)
    assert np.isnan(found.accuracy_clean[:, 0, 1]).all()
    assert not np.isnan(found.accuracy_clean[:, 0, 0]).any()
    assert not np.isnan(found.accuracy_clean[:, 1]).any()
    figure = purification_figure(found)
    assert any("does" in t.get_text() for a in figure.axes for t in a.texts)


def test_penultimate_features():
    head, x = Head(), X[:2]
    found = penultimate(head, x)
    torch.testing.assert_close(found, torch.tanh(head.first(3 * (x.flatten(1) - 0.5))).detach())
    assert penultimate(nn.Sequential(nn.Flatten(), nn.Tanh()), x) is None
    assert not head.last._forward_hooks
    conv = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten())
    found = purification(
        Defended(defence().purifier, conv), IMAGES, Linf(0.05), attacked=X + DELTA, **SETTINGS
    )
    assert set(found.gap) == {"l2", "linf"}
    purification_figure(found)


def test_bad_input():
    model = defence()
    with pytest.raises(ValueError, match="such as a DiffPure's; got Identity"):
        purification(Defended(Identity(), Head()), IMAGES, Linf(0.05))
    with pytest.raises(ValueError, match="5 of 5 attacked images lie outside Linf"):
        purification(model, IMAGES, Linf(0.04), attacked=X + DELTA, **SETTINGS)
    with pytest.raises(ValueError, match="every attacked image is its clean image"):
        purification(model, IMAGES, Linf(0.05), attacked=X, **SETTINGS)
    with pytest.raises(ValueError, match="none of the steps"):
        purification(model, IMAGES, Linf(0.05), **{**SETTINGS, "steps": (70, 200)})
    with pytest.raises(ValueError, match="at least one t_star"):
        purification(model, IMAGES, Linf(0.05), **{**SETTINGS, "t_stars": ()})
    attacked = torch.cat([X[:1], (X + DELTA)[1:]])
    found = purification(model, IMAGES, Linf(0.05), attacked=attacked, **SETTINGS)
    assert np.isnan(found.removed[0]).all()
    assert not np.isnan(found.removed[1:]).any()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    settings = {**SETTINGS, "attack": PGD(steps=2, eot=2)}
    whole = purification(defence(), IMAGES, Linf(0.05), **settings).arrays()

    def stop(done, total):
        if done == 9:
            raise KeyboardInterrupt

    cells = Cells(tmp_path, {}, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        purification(defence(), IMAGES, Linf(0.05), cells=cells, **settings)
    seen = []
    cells = Cells(tmp_path, {}, progress=lambda *p: seen.append(p))
    again = purification(defence(), IMAGES, Linf(0.05), cells=cells, **settings).arrays()
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert seen[-1] == (18, 18)
    large = purification(defence(), IMAGES, Linf(0.05), **{**settings, "batch": 5}).arrays()
    np.testing.assert_allclose(large["gap_l2"], whole["gap_l2"], atol=1e-5)


def test_the_figure_is_labelled():
    settings = {**SETTINGS, "attack": PGD(steps=2, eot=2)}
    figure = purification_figure(purification(defence(), IMAGES, Linf(0.05), **settings))
    assert len(figure.axes) == 7
    assert all(a.get_xlabel() and a.get_ylabel() for a in figure.axes)
    assert "inference" in figure._supxlabel.get_text()
