"""Gradients whose noise, agreement and norms are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depure.analysis.gradients import (
    Gradients,
    agreement,
    chain_gradients,
    default_approximations,
    eot_statistics,
    gradients,
)
from depure.analysis.store import Cells
from depure.attacks import PGD
from depure.data.images import Images
from depure.defences import Defended
from depure.diffusion import DDIM, DDPM, VPSDE, Denoiser, EulerMaruyama, Straight, VPDiscrete
from depure.evaluation import evaluate
from depure.noise import Noise
from depure.purifiers import BPDA, DiffPure, Identity, Purifier
from depure.threat import Linf, Threat

BALL = Linf(0.05)
SIZE = 0.8


class Scaled(Purifier):
    """x (1 + size z): the gradient of a linear loss is w (1 + size z)."""

    @property
    def stages(self) -> tuple[str, ...]:
        return ("forward",)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x * (1.0 + SIZE * noise.normal("forward", 0, x))


class Shifted(Scaled):
    """x + size z: the gradient of the cross-entropy is -p(wrong | z) w."""

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x + SIZE * noise.normal("forward", 0, x)


class Linear(nn.Module):
    """Logits (0, w x) with weights of one size and mixed signs, or (0, 1, ..., 1)."""

    def __init__(self, pixels: int = 64, scale: float = 1.0) -> None:
        super().__init__()
        sign = (-1.0) ** torch.arange(pixels)
        self.w = nn.Parameter(scale * sign, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([torch.zeros_like(score), score], 1)


def pictures(n: int, side: int = 8) -> Images:
    x = 0.3 + 0.4 * torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(3))
    return Images(x, torch.arange(n) % 2, torch.arange(n) + 7, ("a", "b"), "toy")


SCALED = Defended(Scaled(), Linear())
QUICK: Any = {
    "attack": PGD(steps=2, loss="margin"), "draws": (1, 2, 4), "reference": 16, "eots": (1, 3),
    "judge": 4, "samples": 2,
}  # fmt: skip


def same(one: Gradients, two: Gradients) -> None:
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, two.arrays()[name], err_msg=name)


def test_the_signal_to_noise_ratio_grows_as_the_square_root() -> None:
    """g = w (1 + s z): SNR = sqrt(k) / s, cosine = 1 / sqrt(1 + s^2 / k) for many pixels."""
    draws = (1, 4, 16)
    settings = {**QUICK, "draws": draws, "reference": 256, "groups": 8}
    (found,) = gradients(SCALED, pictures(12), BALL, **settings).models.values()
    expected = np.sqrt(draws) / SIZE
    np.testing.assert_allclose(found.estimate("snr")[:, 0], expected, rtol=0.03)
    cosine = 1 / np.sqrt(1 + 1 / expected**2)
    ceiling = 1 / math.sqrt(1 + SIZE**2 / 256)
    np.testing.assert_allclose(found.estimate("cosine")[:, 0], cosine * ceiling, rtol=0.015)
    assert found.ceiling.mean() == pytest.approx(ceiling, abs=2e-3)


def test_the_ratio_of_a_logistic_loss_is_its_integral() -> None:
    """The gradient is always along w: SNR = sqrt(k) E p / sd p, with p = sigmoid(-margin)."""
    model, images, draws = Defended(Shifted(), Linear(4, 0.7)), pictures(6, 2), (1, 8)
    settings = {**QUICK, "attack": PGD(steps=1), "draws": draws, "reference": 3000, "groups": 300}
    (found,) = gradients(model, images, BALL, **settings).models.values()
    w = model.classifier.w.numpy().astype(float)
    margin = (2.0 * images.y.numpy() - 1) * (images.x.flatten(1).numpy() @ w)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    p = 1 / (1 + np.exp(margin[:, None] + SIZE * np.linalg.norm(w) * nodes))
    ratio = p @ weights / np.sqrt(p**2 @ weights - (p @ weights) ** 2)
    # the relative error of a variance from N numbers of kurtosis about 2 is sqrt(1 / N)
    np.testing.assert_allclose(found.snr, ratio[:, None] * np.sqrt(draws), rtol=0.15)
    np.testing.assert_allclose(found.snr.mean(0) / ratio.mean(), np.sqrt(draws), rtol=0.06)
    np.testing.assert_allclose(found.cosine, 1.0, atol=1e-6)


def test_the_signal_is_unbiased_where_there_is_none() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 40, 100))
    found = [eot_statistics(r[:20], r[20:], (1,)) for r in rows]
    assert 0.4 < np.mean([f["snr"][0] == 0 for f in found]) < 0.65  # zero half of the time
    assert np.mean([f["cosine"][0] for f in found]) == pytest.approx(0.0, abs=0.01)
    still = eot_statistics(np.ones((4, 3)), np.ones((4, 3)), (1, 2))
    assert np.isnan(still["snr"]).all()
    np.testing.assert_allclose(still["cosine"], 1.0)


def test_agreement_of_known_vectors() -> None:
    one = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 2.0]])
    cosine, signs = agreement(one, np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, -2.0]]))
    np.testing.assert_allclose(cosine, [1.0, math.sqrt(0.5), np.nan, -1.0])
    np.testing.assert_allclose(signs, [1.0, 0.5, np.nan, 0.0])


def test_bpda_of_a_scaled_image_agrees_as_the_closed_form() -> None:
    """BPDA gives w, the exact gradient is w (1 + s z): each cosine and sign is known."""
    images = pictures(5)
    found = gradients(SCALED, images, BALL, **QUICK).models["model"]
    assert found.approximations == ("BPDA",)
    base = Noise.of(0, images.index).fold("gradients").fold("agreement").draws(2)
    rows = images.x.repeat_interleave(2, 0)
    factor = (1 + SIZE * base.normal("forward", 0, rows)).flatten(1).double().numpy()
    cosine = factor.sum(1) / np.linalg.norm(factor, axis=1) / 8
    np.testing.assert_allclose(found.agreement[:, 0], cosine.reshape(5, 2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(found.signs[:, 0], (factor > 0).mean(1).reshape(5, 2).mean(1))
    assert found.norms.shape == (5, 0)


class Proportional(nn.Module):
    """eps = c x: every step of DDIM is then a factor."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return 0.6 * x


def linear_chain(rounds: int = 1) -> tuple[Defended, list[float], float]:
    """A defence, the factors of its steps, and the alpha of its noising."""
    schedule = VPDiscrete.linear()
    purifier = DiffPure(Denoiser(Proportional(), schedule, "epsilon"), DDIM(), t_star=0.2, steps=4,
                        rounds=rounds)  # fmt: skip
    path, factors = purifier.grid.path(schedule), []
    for t, s in path.pairs:
        a, b = (schedule.alpha(t), schedule.sigma(t)), (schedule.alpha(s), schedule.sigma(s))
        factors.append(b[0] / a[0] * (1 - 0.6 * a[1]) + 0.6 * b[1])
    return Defended(purifier, Linear()), factors, path.alpha


@pytest.mark.parametrize("rounds", [1, 2])
def test_norms_along_a_linear_chain_are_products(rounds: int) -> None:
    model, factors, alpha = linear_chain(rounds)
    (found,) = gradients(model, pictures(3), BALL, **QUICK).models.values()
    flow, wanted = 8 / 2, [8 / 2]  # |w| = 8 in [0, 1], half of it in [-1, 1]
    for _ in range(rounds):
        for factor in factors[::-1]:
            flow *= factor
            wanted.append(flow)
        flow *= alpha
    np.testing.assert_allclose(found.norms, np.tile(wanted[::-1], (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.estimate("norms")[:, 0], np.log10(wanted[::-1]), rtol=1e-4)


def test_chain_gradients_are_those_of_the_defence(
    make_denoiser: Callable[..., Denoiser], images: Tensor
) -> None:
    purifier = DiffPure(make_denoiser(), DDPM(), steps=3, rounds=2, clamp=True)
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).double()
    model, y, noise = Defended(purifier, classifier), torch.tensor([1, 4]), Noise.of(0, [3, 5])
    grads = chain_gradients(model, images, y, noise)
    x = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(x, noise), y, reduction="sum")
    (whole,) = torch.autograd.grad(loss, x)
    alpha = purifier.grid.path(purifier.denoiser.schedule).alpha
    assert len(grads) == 7
    torch.testing.assert_close(2 * alpha * grads[0], whole)


def test_the_attacks_are_the_evaluations_exactly() -> None:
    images = pictures(6)
    found = gradients(SCALED, images, BALL, **QUICK, batch=4).models["model"]
    for i, eot in enumerate(QUICK["eots"]):
        attack = PGD(steps=2, loss="margin", eot=eot)
        shard = evaluate(SCALED, images, attack, Threat(BALL), draws=4, shard_size=4,
                         check_images=0).shard  # fmt: skip
        right = (shard.adversarial == images.y[:, None]).numpy().mean(1)
        np.testing.assert_array_equal(found.accuracy[:, i], right)
    gain = found.gain()
    assert gain[0].value == pytest.approx(found.accuracy[:, 0].mean() - found.accuracy[:, 1].mean())
    assert gain[-1].value == 0


def test_how_many_draws_are_enough() -> None:
    """Of 40 images, EoT 1 fools none, 5 and 20 all but a few: 5 is enough, 1 is not."""
    one = gradients(SCALED, pictures(2), BALL, **QUICK).models["model"]
    accuracy = np.stack([np.ones(40), np.arange(40) % 10 == 0, np.arange(40) % 10 == 1], 1) * 1.0
    changed = type(one)(**{**vars(one), "accuracy": accuracy, "judged": 4})
    assert changed.needed(np.array([1, 5, 20])) == 5


def test_default_approximations() -> None:
    model, *_ = linear_chain()
    assert list(default_approximations(model.purifier, pictures(1).x)) == [
        "BPDA",
        "surrogate, 2 of 4 steps",
    ]
    pytest.importorskip("torchsde")
    sde = Denoiser(Proportional(), VPSDE(), "epsilon")
    purifier = DiffPure(sde, EulerMaruyama(), steps=3)
    assert list(default_approximations(purifier, pictures(1).x))[-1] == "adjoint"
    found = gradients(Defended(purifier, Linear()), pictures(2), BALL, **QUICK).models["model"]
    # all gradients are multiples of w; taken at the other end of a stiff step, even of another sign
    np.testing.assert_allclose(np.abs(found.agreement[:, -1]), 1.0, rtol=1e-4)
    ode = DiffPure(sde, EulerMaruyama(), steps=3, convention="addt")
    assert "adjoint" not in default_approximations(ode, pictures(1).x)


def test_the_same_seed_gives_the_same_and_batches_do_not_matter() -> None:
    model, images = Defended(Shifted(), Linear()), pictures(5)
    one = gradients(model, images, BALL, **QUICK)
    same(one, gradients(model, images, BALL, **QUICK))
    split = gradients(model, images, BALL, **QUICK, batch=2)
    for name, array in one.arrays().items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(split.arrays()[name], array, atol=2e-6, err_msg=name)
    zero, one_ = (gradients(SCALED, images, BALL, **QUICK, seed=s).models["model"] for s in (0, 1))
    assert not np.array_equal(zero.snr, one_.snr)


def test_a_stopped_run_continues(tmp_path: Path) -> None:
    models = {"chain": linear_chain()[0], "scaled": SCALED}
    whole = gradients(models, pictures(4), BALL, **QUICK, batch=3)

    def stop(done: float, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    cells = Cells(tmp_path, {}, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        gradients(models, pictures(4), BALL, **QUICK, batch=3, cells=cells)
    seen: list[tuple[float, int]] = []
    cells = Cells(tmp_path, {}, progress=lambda done, total: seen.append((done, total)))
    same(whole, gradients(models, pictures(4), BALL, **QUICK, batch=3, cells=cells))
    assert seen[-1] == (18, 18)  # 2 batches of 5 and of 4 pieces


def test_a_defence_without_exact_gradients_is_compared_with_nothing() -> None:
    found = gradients(Defended(BPDA(Scaled()), Linear()), pictures(2), BALL, **QUICK)
    one = found.models["model"]
    assert one.approximations == ()
    assert one.agreement.shape == one.norms.shape == (2, 0)
    assert np.isnan(one.snr).all()  # BPDA's gradient of a linear loss has no noise


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"models": Defended(Identity(), Linear())}, "draws no noise"),
        ({"images": pictures(1)}, "at least 2 images"),
        ({"knows": ("forward",)}, "knows all noise"),
        ({"draws": (2, 1)}, "must rise"),
        ({"draws": ()}, "must rise"),
        ({"eots": (0, 1)}, "at least 1"),
        ({"groups": 1}, "a variance needs 2"),
        ({"approximations": {"BPDA": Straight()}}, "loop drivers of a Chained purifier"),
    ],
)
def test_bad_input(settings: dict[str, Any], words: str) -> None:
    given = {"models": SCALED, "images": pictures(3), "ball": BALL, **settings}
    with pytest.raises(ValueError, match=words):
        gradients(**given)
