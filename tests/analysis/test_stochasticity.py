"""A linear classifier behind Gaussian noise: accuracy and loss in closed form at every level."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from depure.analysis.stochasticity import Stochasticity, stochasticity
from depure.analysis.store import Cells
from depure.attacks import PGD
from depure.data.images import Images
from depure.defences import Defended
from depure.evaluation import evaluate
from depure.evaluation.statistics import mean_accuracy
from depure.noise import Noise
from depure.purifiers import Identity, Purifier
from depure.threat import Linf, Threat

BALL = Linf(0.05)
SIZES = {"forward": 0.3, "reverse": 0.2}
WEIGHTS = torch.tensor([1.0, -2.0, 1.5, 0.5])


class Additive(Purifier):
    """x + the noise of every stage at its own size."""

    def __init__(self, *stages: str) -> None:
        super().__init__()
        self.names = stages

    @property
    def stages(self) -> tuple[str, ...]:
        return self.names

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x + sum(SIZES[s] * noise.normal(s, 0, x) for s in self.names)

    def __repr__(self) -> str:
        return f"Additive{self.names}"


class Linear(nn.Module):
    """Logits (0, w x)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(WEIGHTS.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([torch.zeros_like(score), score], 1)


def toy(*stages: str) -> Defended:
    return Defended(Additive(*stages), Linear())


def pictures(n: int) -> Images:
    x = 0.3 + 0.4 * torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    y = (x.flatten(1) @ WEIGHTS > 0.5).long()
    return Images(x, y, torch.arange(n) + 7, ("a", "b"), "toy")


BOTH = toy("forward", "reverse")
QUICK: Any = {"attack": PGD(steps=5, eot=3), "draws": 6, "levels": (0.0, 0.4, 1.0), "pools": (1, 2)}


def same(one: Stochasticity, two: Stochasticity) -> None:
    assert one.arrays().keys() == two.arrays().keys()
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, two.arrays()[name], err_msg=name)


@pytest.mark.parametrize("held", ["forward", "both"])
def test_accuracy_and_losses_are_the_closed_form(held: str) -> None:
    images, draws, levels = pictures(5), 1000, (0.0, 0.3, 0.8, 1.0)
    found = stochasticity(BOTH, images, BALL, attack=PGD(steps=6, eot=4), levels=levels,
                          stages=[held], pools=(), draws=draws).mix  # fmt: skip
    x, w = images.x.flatten(1).numpy().astype(float), WEIGHTS.numpy().astype(float)
    side = 2.0 * images.y.numpy() - 1.0
    noise = Noise.of(0, images.index).lock("forward", "reverse")
    known = {s: SIZES[s] * noise.normal(s, 0, images.x).flatten(1).numpy() @ w for s in SIZES}
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    for i, m in enumerate(levels):
        mean, variance = side * (x @ w), 0.0
        for s, size in SIZES.items():
            is_held = held in (s, "both")
            mean = mean + (side * math.sqrt(1 - m * m) * known[s] if is_held else 0.0)
            variance += (size**2 * w @ w) * (m * m if is_held else 1.0)
        sd = math.sqrt(variance)
        for name, shift in (("clean", 0.0), ("adversarial", BALL.eps * np.abs(w).sum())):
            at = mean - shift
            right = ndtr(at / sd) if sd else (at > 0).astype(float)
            shares = (found.accuracy_clean if name == "clean" else found.accuracy)[0, i]
            slack = 4.5 * np.sqrt(right * (1 - right) / draws) + 1e-9 + 3 / draws * (sd > 0)
            assert (np.abs(shares - right) <= slack).all(), (m, name)
            values = np.log1p(np.exp(-(at[:, None] + sd * nodes)))
            loss = values @ weights / weights.sum()
            spread = np.sqrt(np.maximum(values**2 @ weights / weights.sum() - loss**2, 0))
            error = np.abs(getattr(found, f"{name}_loss")[0, i] - loss)
            assert (error <= 4.5 * spread / math.sqrt(draws) + 1e-5).all(), (m, name)
    np.testing.assert_array_equal(found.robustness_loss, found.adversarial_loss - found.clean_loss)


def test_the_ends_are_the_evaluations_exactly() -> None:
    images = pictures(7)
    found = stochasticity(BOTH, images, BALL, **QUICK, seed=4, batch=3)
    assert found.mix.stages == ("forward", "reverse", "both")
    knows = [("forward",), ("reverse",), ("forward", "reverse")]
    for row, stages in enumerate(knows):
        for level, threat in ((0, Threat(BALL, stages)), (-1, Threat(BALL))):
            result = evaluate(BOTH, images, QUICK["attack"], threat, draws=6, seed=4,
                              shard_size=3, check_images=0)  # fmt: skip
            for seen, ours in (
                (result.shard.clean, found.mix.accuracy_clean),
                (result.shard.adversarial, found.mix.accuracy),
            ):
                table = (seen == images.y[:, None]).numpy()
                np.testing.assert_array_equal(table.mean(1), ours[row, level])
            estimate = found.mix.estimate("accuracy")[row, level]
            robust = mean_accuracy(table)
            assert tuple(estimate) == (robust.value, robust.low, robust.high)
            assert estimate[0] == result.robust.value
            assert found.mix.draws[row, level] == seen.shape[1]


def test_a_pool_of_one_is_dw_box_and_of_two_has_two_answers() -> None:
    found = stochasticity(toy("forward"), pictures(12), BALL, attack=PGD(steps=5, eot=8),
                          levels=(0.0, 1.0), pools=(1, 2), draws=800)  # fmt: skip
    np.testing.assert_array_equal(found.pool.accuracy[0, 0], found.mix.accuracy[0, 0])
    np.testing.assert_array_equal(
        found.pool.adversarial_loss[0, 0], found.mix.adversarial_loss[0, 0]
    )
    twice = 2 * found.pool.accuracy[0, 1]
    assert np.abs(twice - twice.round()).max() < 0.1
    assert (twice.round() == 1).any()


def test_the_known_loss_beats_the_expected_one() -> None:
    """DW-box: accuracy is 0 or 1 per image and all draws coincide."""
    found = stochasticity(BOTH, pictures(8), BALL, **QUICK)
    assert set(np.unique(found.mix.accuracy[2, 0])) <= {0.0, 1.0}
    assert found.mix.draws[2].tolist() == [1, 6, 6]


def test_several_models_and_their_stages() -> None:
    models = {"two": BOTH, "one": toy("forward")}
    found = stochasticity(models, pictures(4), BALL, **QUICK)
    rows = list(zip(found.mix.models, found.mix.stages, strict=True))
    assert rows == [
        ("two", "forward"),
        ("one", "forward"),
        ("two", "reverse"),
        ("two", "both"),
        ("one", "both"),
    ]
    np.testing.assert_array_equal(found.mix.accuracy[1], found.mix.accuracy[4])
    alone = stochasticity(models["one"], pictures(4), BALL, **QUICK)
    np.testing.assert_array_equal(alone.mix.adversarial_loss[0], found.mix.adversarial_loss[4])
    assert found.pool.models == ("two", "one")


def test_the_same_seed_gives_the_same_and_batches_do_not_matter() -> None:
    images = pictures(5)
    one = stochasticity(BOTH, images, BALL, **QUICK)
    same(one, stochasticity(BOTH, images, BALL, **QUICK))
    split = stochasticity(BOTH, images, BALL, **QUICK, batch=2)
    for name, array in one.arrays().items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(split.arrays()[name], array, atol=2e-6, err_msg=name)
    other = stochasticity(BOTH, images, BALL, **QUICK, seed=1)
    assert not np.array_equal(one.mix.adversarial_loss, other.mix.adversarial_loss)


def test_a_stopped_run_continues(tmp_path: Path) -> None:
    images = pictures(5)
    whole = stochasticity(BOTH, images, BALL, **QUICK, batch=2)

    def stop(done: float, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stochasticity(
            BOTH, images, BALL, **QUICK, batch=2, cells=Cells(tmp_path, {}, progress=stop)
        )
    assert len(list((tmp_path / "cells").iterdir())) == 7
    seen: list[tuple[float, int]] = []
    cells = Cells(tmp_path, {}, progress=lambda done, total: seen.append((done, total)))
    same(whole, stochasticity(BOTH, images, BALL, **QUICK, batch=2, cells=cells))
    assert seen[-1][0] == seen[-1][1] == len(list((tmp_path / "cells").iterdir()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"models": Defended(Identity(), Linear())}, "draws no noise"),
        ({"models": {}}, "no models"),
        ({"images": pictures(1)}, "at least 2 images"),
        ({"stages": ["sideways"]}, "'sideways'"),
        ({"stages": "forward"}, "a list of names"),
        ({"levels": (1.0, 0.0)}, "must rise"),
        ({"levels": (0.0, 1.5)}, r"\[0, 1\]"),
        ({"pools": (0, 1)}, "at least 1"),
        ({"draws": 0}, "at least 1"),
    ],
)
def test_bad_input(settings: dict[str, Any], words: str) -> None:
    given = {"models": BOTH, "images": pictures(3), "ball": BALL, **settings}
    with pytest.raises(ValueError, match=words):
        stochasticity(**given)
