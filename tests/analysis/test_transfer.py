"""The diagonal is each setting's own evaluation; off it, what a linear problem must give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depure.analysis.store import Cells
from depure.analysis.transfer import TransferMatrix, accuracy_of, mean_of, table_of, transfer
from depure.attacks import PGD
from depure.data.images import Images
from depure.defences import Defended
from depure.evaluation import evaluate
from depure.evaluation.statistics import mean_accuracy
from depure.noise import Noise
from depure.purifiers import Identity, Purifier
from depure.threat import L2, Linf, Threat

BALL = Linf(0.06)
WEIGHTS = torch.tensor([1.0, -2.0, 1.5, 0.5])
FLIPPED = torch.tensor([1.0, 2.0, -1.5, 0.5])


class Additive(Purifier):
    @property
    def stages(self) -> tuple[str, ...]:
        return ("forward",)

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        return x + 0.15 * noise.normal("forward", 0, x)

    def __repr__(self) -> str:
        return "Additive()"


class Linear(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([-score, score], 1)


def pictures(n: int = 12) -> Images:
    x = 0.2 + 0.6 * torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    y = ((x.flatten(1) - 0.5) @ WEIGHTS > 0).long()
    return Images(x, y, torch.arange(n), ("a", "b"), "toy")


NOISY = Defended(Additive(), Linear(WEIGHTS))
BOX = Threat(BALL, ("forward",))
SETTINGS = {
    "seed 0": (NOISY, BOX, 0),
    "seed 1": (NOISY, BOX, 1),
    "white-box": (NOISY, Threat(BALL), 0),
    "undefended": (Defended(Identity(), Linear(WEIGHTS)), Threat(BALL), 0),
}
ATTACK = PGD(steps=4, eot=3)


def run(settings: Any = SETTINGS, n: int = 12, **more: Any) -> TransferMatrix:
    return transfer(settings, pictures(n), attack=ATTACK, draws=5, **more)


def test_the_diagonal_is_the_evaluation_exactly() -> None:
    found, images = run(batch=5), pictures()
    for i, (model, threat, seed) in enumerate(SETTINGS.values()):
        result = evaluate(model, images, ATTACK, threat, draws=5, seed=seed, shard_size=5,
                          check_images=0)  # fmt: skip
        for seen, ours in (
            (result.shard.clean, found.clean[i]),
            (result.shard.adversarial, found.robust[i, i]),
        ):
            np.testing.assert_array_equal((seen == images.y[:, None]).numpy().mean(1), ours)
        assert found.robust_accuracy()[i, i, 0] == result.robust.value
        assert found.draws[i] == result.shard.clean.shape[1]


def test_off_the_diagonal_another_setting_judges() -> None:
    """All attacks on a linear model make the same images: the rows of a column are equal."""
    found = run()
    for column in range(len(SETTINGS)):
        np.testing.assert_array_equal(found.robust[0, column], found.robust[3, column])
    assert not np.array_equal(found.robust[0, 0], found.robust[0, 1])  # other known noise


def test_images_made_against_another_model_fool_less() -> None:
    one, two = (Defended(Identity(), Linear(w)) for w in (WEIGHTS, FLIPPED))
    found = run({"one": (one, Threat(BALL), 0), "two": (two, Threat(BALL), 0)}, n=40)
    images = pictures(40)
    side = 2.0 * images.y - 1.0
    for i, against in enumerate((WEIGHTS, FLIPPED)):
        x_adv = images.x.flatten(1) - BALL.eps * side[:, None] * against.sign()
        for j, under in enumerate((WEIGHTS, FLIPPED)):
            right = side * ((x_adv - 0.5) @ under) > 0
            np.testing.assert_array_equal(found.robust[i, j], right.double())
    assert found.robust[0, 0].mean() < found.robust[1, 0].mean()


def test_the_same_again_resumed_and_in_other_batches(tmp_path: Path) -> None:
    whole = run()

    def stop(done: float, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(batch=5, cells=Cells(tmp_path, {}, progress=stop))
    seen: list[tuple[float, int]] = []
    cells = Cells(tmp_path, {}, progress=lambda done, total: seen.append((done, total)))
    for other in (run(), run(batch=5), run(batch=5, cells=cells)):
        for name, array in whole.arrays().items():
            np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name)
    assert seen[-1] == (48, 48)


def test_intervals() -> None:
    generator = np.random.default_rng(0)
    table = generator.random((9, 6)) < 0.6
    assert accuracy_of(table.mean(1), 6) == mean_accuracy(table)
    np.testing.assert_array_equal(table_of(table.mean(1), 6).sum(1), table.sum(1))
    covered = 0
    for _ in range(2000):
        found = mean_of(generator.normal(3.0, 2.0, 5))
        covered += found.low < 3.0 < found.high
    assert abs(covered / 2000 - 0.95) < 4.5 * (0.95 * 0.05 / 2000) ** 0.5
    assert mean_of(np.array([1.0, np.nan, 3.0])).value == 2.0
    assert np.isnan(mean_of(np.array([1.0, np.nan])).low)


@pytest.mark.parametrize(
    ("settings", "n", "words"),
    [
        ({}, 3, "no settings"),
        (SETTINGS, 1, "at least 2 images"),
        ({"a": SETTINGS["seed 0"], "b": (NOISY, Threat(L2(0.5)), 0)}, 3, "share one ball"),
        ({"a": (NOISY, Threat(BALL, ("reverse",)), 0)}, 3, "'reverse'"),
    ],
)
def test_bad_input(settings: Any, n: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(settings, n=n)
