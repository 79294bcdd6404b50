"""The transfer matrix: every cell written with its interval, the diagonal framed."""

from __future__ import annotations

import numpy as np

from depure.analysis.transfer import TransferMatrix
from depure.reporting.plots.transfer import transfer_figure


def test_the_matrix_shows_the_numbers() -> None:
    generator = np.random.default_rng(0)
    robust, clean = generator.integers(0, 5, (3, 3, 10)) / 4, np.ones((3, 10))
    settings = {
        "data": {"name": "toy"},
        "attack": {"name": "PGD", "steps": 7},
        "ball": {"name": "L2", "eps": 0.5},
    }
    result = TransferMatrix(
        ("a", "b", "c"), robust, clean, np.array([4, 4, 4]), np.arange(10), settings
    )
    figure = transfer_figure(result)
    axes = figure.axes[0]
    values = 100 * result.robust_accuracy()
    written = {(t.get_position()[0], round(t.get_position()[1])): [] for t in axes.texts}
    for text in axes.texts:
        x, y = text.get_position()
        written[x, round(y)].append(text.get_text())
    for made in range(3):
        for judge in range(3):
            value, low, high = values[made, judge]
            assert written[judge, made + 1] == [f"{value:.0f}", f"{low:.0f} to {high:.0f}"]
    assert written[0, 0][0] == "100"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["no attack", "a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("judged under", "made against")
    np.testing.assert_allclose(axes.images[0].get_array()[1:], values[..., 0])
    centres = {tuple(np.round(p.get_center()).astype(int)) for p in axes.patches}
    assert centres == {(0, 1), (1, 2), (2, 3)}
    caption = figure.get_supxlabel().replace("\n", " ")
    for word in ("n = 10", "toy", "steps 7", "L2 0.5", "4 judge's draws", "inference"):
        assert word in caption
    assert figure.axes[1].get_ylabel() == "accuracy (%)"
