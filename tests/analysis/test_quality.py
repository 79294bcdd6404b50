"""FID and KID on distributions with known distances."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn

from depure.analysis.quality import Features, fid, kid, mmd, quality
from depure.analysis.store import Cells
from depure.data.images import Images
from depure.defences import Defended
from depure.diffusion import DDIM, Denoiser, VPDiscrete
from depure.noise import Noise
from depure.purifiers import DiffPure, Identity
from depure.reporting.plots.quality import quality_figure

V = 0.04
BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


class Exact(nn.Module):
    """E[eps | x_t] of data with variance V about grey, in [-1, 1]."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        a2 = float(BAR[int(labels[0])])
        return x * (1 - a2) ** 0.5 / (a2 * V + 1 - a2)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.last.weight.data = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(10 * (x.flatten(1) - 0.5))


def images_of(n: int, seed: int, first: int = 0) -> Images:
    z = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    x = ((V**0.5 * z + 1) / 2).clamp(0, 1)
    return Images(x, Head()(x).argmax(1), torch.arange(first, first + n), ("a", "b", "c"), "toy")


MODEL = Defended(DiffPure(Denoiser(Exact(), VPDiscrete.linear()), DDIM(), t_star=0.1, steps=4),
                 Head())  # fmt: skip
IMAGES, REFERENCE = images_of(24, 0), images_of(60, 1, 100)
SETTINGS = {"blocks": 4, "steps": 10, "shown": 3, "batch": 10, "seed": 3}


def test_fid_of_gaussians_is_the_closed_form():
    """Independent features: the sum of (m - m')^2 + (s - s')^2; rotated, the same."""
    g, n = np.random.default_rng(0), 40_000
    means, sds = (
        np.array([[0, 1, 0, 2.0], [1, 1, 0, 0]]),
        np.array([[1, 2, 1, 0.5], [1, 1, 3, 0.5]]),
    )
    one, two = (m + s * g.standard_normal((n, 4)) for m, s in zip(means, sds, strict=True))
    wanted = ((means[0] - means[1]) ** 2 + (sds[0] - sds[1]) ** 2).sum()
    assert fid(one, two) == pytest.approx(wanted, rel=0.02)
    turn = np.linalg.qr(g.standard_normal((4, 4)))[0]
    assert fid(one @ turn, two @ turn) == pytest.approx(fid(one, two), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 80, 6), (5, 9, 20)])
def test_fid_is_the_formula_with_a_matrix_root(n, m, d):
    """Correlated features of two sizes, more images than features and fewer."""
    g = np.random.default_rng(1)
    one = g.standard_normal((n, d)) @ g.standard_normal((d, d))
    two = g.standard_normal((m, d)) @ g.standard_normal((d, d)) + 1
    first, second = np.cov(one.T), np.cov(two.T)
    root = linalg.sqrtm(first)
    common = np.sqrt(np.maximum(np.linalg.eigvalsh((root @ second @ root).real), 0)).sum()
    apart = ((one.mean(0) - two.mean(0)) ** 2).sum()
    wanted = apart + np.trace(first) + np.trace(second) - 2 * common
    assert fid(one, two) == pytest.approx(wanted, rel=1e-4)
    assert fid(one, one) == pytest.approx(0, abs=1e-9)
    assert fid(one, one + 2) == pytest.approx(4 * d)


def test_kid_is_unbiased():
    """Over many pairs of samples of one distribution the mean is zero, and so is its t-value."""
    g = np.random.default_rng(2)
    values = [mmd(g.standard_normal((8, 3)), g.standard_normal((12, 3))) for _ in range(3000)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0
    biased = np.mean([mmd(x := g.standard_normal((8, 3)), x) for _ in range(10)])
    assert abs(biased) > 10 * error  # the test has the power to see a bias of that size


def test_mmd_is_its_definition():
    g = np.random.default_rng(3)
    one, two = g.standard_normal((4, 5)), g.standard_normal((3, 5)) + 1
    k = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731
    inside = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])
              for s in (one, two)]  # fmt: skip
    across = np.mean([k(a, b) for a in one for b in two])
    assert mmd(one, two) == pytest.approx(sum(inside) - 2 * across)


def test_the_error_of_kid_is_that_of_its_repetition():
    g = np.random.default_rng(4)
    found = np.array([
        kid(g.standard_normal((64, 3)), g.standard_normal((96, 3)) + 0.3, 8) for _ in range(300)
    ])  # fmt: skip
    spread = found[:, 0].std()
    assert np.sqrt((found[:, 1] ** 2).mean()) == pytest.approx(spread, rel=0.15)
    assert found[:, 0].mean() > 10 * spread / np.sqrt(300)
    assert np.isnan(kid(found, found, 1)[1])


def test_generated_images_have_the_distribution_of_the_data():
    """The exact denoiser makes Gaussian data with variance V out of noise."""
    generator = MODEL.purifier.generator(100)
    grey = torch.full((4000, 1, 2, 2), 0.5)
    out = 2 * generator(grey, Noise.of(0, range(4000))) - 1
    assert out.mean().item() == pytest.approx(0, abs=5 * (V / 16_000) ** 0.5)
    assert out.var().item() == pytest.approx(variance(100), rel=5 * (2 / 16_000) ** 0.5)
    assert variance(1000) == pytest.approx(V, rel=0.02)


def variance(steps: int) -> float:
    """Of what DDIM makes out of noise: every step multiplies the state by one number."""
    times = [1000 * (steps - i) // steps - 1 for i in range(steps + 1)]
    scale = (1 - BAR[-1]) ** 0.5
    for t, s in pairwise(times):
        a, b = BAR[t], 1.0 if s < 0 else BAR[s]
        scale *= ((a * b) ** 0.5 * V + ((1 - a) * (1 - b)) ** 0.5) / (a * V + 1 - a)
    return float(scale**2)


def test_the_sets_and_their_distances():
    attacked = (IMAGES.x + 0.3).clamp(0, 1)
    found = quality(MODEL, IMAGES, REFERENCE, attacked=attacked, generated=20, **SETTINGS)
    assert found.sets == ("held-out", "purified", "generated", "attacked", "purified attacked")
    assert found.counts.tolist() == [24, 24, 20, 24, 24]
    assert (found.reference, found.dimensions) == (60, 4)
    assert "classifier Head" in found.features
    seen = [i.flatten(1).double().numpy() for i in (IMAGES.x, attacked, REFERENCE.x)]
    inputs = [10 * (s - 0.5) for s in seen]
    # the head's linear layer takes 10 (x - 0.5): those are the penultimate features
    assert found.fid[0] == pytest.approx(fid(inputs[0], inputs[2]), rel=1e-5)
    assert found.fid[3] == pytest.approx(fid(inputs[1], inputs[2]), rel=1e-5)
    assert found.kid[3] == pytest.approx(kid(inputs[1], inputs[2], 4)[0], rel=1e-5)
    assert found.fid[3] > 10 * found.fid[0]
    noise = Noise.of(3, IMAGES.index).fold("quality")
    purified = MODEL.purifier(IMAGES.x, noise).clamp(0, 1)
    np.testing.assert_allclose(found.samples["purified"], purified[:3], atol=1e-6)
    figure = quality_figure(found)
    assert all(a.get_xlabel() for a in figure.axes[:2])
    assert "not the published FID" in " ".join(figure._supxlabel.get_text().split())


def test_other_features_have_their_name():
    own = Features("brightness", lambda x: x.mean((1, 2, 3))[:, None])
    found = quality(MODEL, IMAGES, REFERENCE, features=own, **SETTINGS)
    assert (found.features, found.dimensions) == ("brightness", 1)
    a, b = (i.x.double().mean((1, 2, 3)).numpy() for i in (IMAGES, REFERENCE))
    wanted = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert found.fid[0] == pytest.approx(wanted, rel=1e-3)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = quality(MODEL, IMAGES, REFERENCE, **SETTINGS).arrays()

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quality(MODEL, IMAGES, REFERENCE, cells=Cells(tmp_path, {}, progress=stop), **SETTINGS)
    seen = []
    cells = Cells(tmp_path, {}, progress=lambda *p: seen.append(p))
    again = quality(MODEL, IMAGES, REFERENCE, cells=cells, **SETTINGS).arrays()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    # three of each set to make or to look at, six of the reference
    assert (seen[0], seen[-1]) == ((1, 21), (21, 21))
    other = quality(MODEL, IMAGES, REFERENCE, **{**SETTINGS, "seed": 4})
    assert not np.array_equal(other.fid, whole["fid"])
    larger = quality(MODEL, IMAGES, REFERENCE, **{**SETTINGS, "batch": 24})
    np.testing.assert_allclose(larger.fid, whole["fid"], rtol=1e-4)


def named(calls, weights, scale=1.0):
    """Features that count their calls."""

    def extract(x):
        calls.append(len(x))
        return scale * x.flatten(1)

    return Features("pixels", extract, weights)


def test_features_are_kept_for_the_very_images_and_weights(tmp_path):
    calls, made = [], []

    def run(features, attacked=None):
        calls.clear()
        cells = Cells(tmp_path, {})
        found = quality(MODEL, IMAGES, REFERENCE, attacked=attacked, features=features,
                        cells=cells, **SETTINGS)  # fmt: skip
        made.append(len(list((tmp_path / "cells").iterdir())))
        return found

    first = run(named(calls, "a"), IMAGES.x)
    assert sum(calls) == 60 + 5 * 24
    assert (first.settings["features"], first.settings["features_weights"]) == ("pixels", "a")
    again = run(named(calls, "a"), IMAGES.x)
    assert not calls
    np.testing.assert_array_equal(again.fid, first.fid)
    other = run(named(calls, "a"), IMAGES.x.flip(-1))  # of the same shape, under the same name
    assert sum(calls) == 2 * 24
    assert other.fid[3] != first.fid[3]
    count = made[-1]
    larger = run(named(calls, "b", 2.0))
    assert sum(calls) == 60 + 3 * 24
    assert made[-1] == count + 6 + 3 * 3  # the images were there
    np.testing.assert_allclose(larger.fid, 4 * first.fid[:3], rtol=1e-9)
    for scale in (1.0, 3.0):  # nothing tells these two apart, so nothing is kept
        found = run(named(calls, "", scale))
        assert sum(calls) == 60 + 3 * 24
        np.testing.assert_allclose(found.fid, scale**2 * first.fid[:3], rtol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="12 blocks need at least 24 generated images"):
        quality(MODEL, IMAGES, REFERENCE, blocks=12, generated=20)
    with pytest.raises(ValueError, match="generates no images: take a diffusion purifier"):
        quality(Defended(Identity(), Head()), IMAGES, REFERENCE, **SETTINGS)
    flat = nn.Sequential(nn.Flatten(), nn.Tanh())
    with pytest.raises(ValueError, match="no linear layer"):
        quality(Defended(MODEL.purifier, flat), IMAGES, REFERENCE, **SETTINGS)
