"""The figure of the mix and the pools: every curve drawn, labelled, with its interval."""

from __future__ import annotations

from typing import Any

import numpy as np

from depure.analysis.stochasticity import Curves, Stochasticity
from depure.reporting.plots.stochasticity import stochasticity_figure

SETTINGS: dict[str, Any] = {
    "data": {"name": "toy"},
    "attack": {"name": "PGD", "steps": 7, "step_size": 0.05, "random_start": False},
    "threat": {"ball": {"name": "Linf", "eps": 0.2}},
    "draws": 4,
    "seed": 3,
}


def curves(rows: list[tuple[str, str]], at: list[float], n: int = 9) -> Curves:
    generator = np.random.default_rng(0)
    shape = (len(rows), len(at), n)
    shares = [generator.integers(0, 5, shape) / 4 for _ in range(2)]
    losses = [generator.random(shape), 1 + generator.random(shape)]
    models, stages = (tuple(r[i] for r in rows) for i in range(2))
    return Curves(models, stages, np.array(at), *shares, *losses, np.full(shape[:2], 4))


def result(pools: list[float]) -> Stochasticity:
    rows = [("plain", "forward"), ("plain", "both"), ("ADDT", "both")]
    mix = curves(rows, [0.0, 0.5, 1.0])
    pool = curves([("plain", "both"), ("ADDT", "both")], pools)
    return Stochasticity(mix, pool, np.arange(9), SETTINGS)


def test_every_curve_stands_at_its_numbers() -> None:
    found = result([1, 8])
    figure = stochasticity_figure(found)
    panels = np.array(figure.axes).reshape(3, 3)
    assert [len(a.containers) for a in panels[0]] == [2, 4, 4]
    assert [len(a.containers) for a in panels[2]] == [1, 2, 2]
    line = panels[0, 1].containers[3].lines[0]
    np.testing.assert_allclose(line.get_ydata(), 100 * found.mix.accuracy[2].mean(1))
    np.testing.assert_allclose(line.get_xdata(), found.mix.at, atol=0.02)
    bars = panels[2, 2].containers[0].lines[2][0].get_segments()
    wanted = found.pool.estimate("robustness_loss")[0, :, 1:]
    np.testing.assert_allclose([[b[0][1], b[1][1]] for b in bars], wanted)


def test_words() -> None:
    figure = stochasticity_figure(result([1, 8]))
    caption = figure.get_supxlabel().replace("\n", " ")
    for word in ("n = 9", "toy", "PGD", "steps 7", "Linf 0.2", "seed 3", "inference", "95 %"):
        assert word in caption
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend[:2] == ["plain", "ADDT"]
    assert "(%)" in figure.axes[0].get_ylabel()
    assert "(nats)" in figure.axes[3].get_ylabel()
    assert "seeds" in figure.axes[8].get_xlabel()


def test_without_pools_and_in_grey() -> None:
    figure = stochasticity_figure(result([]))
    assert len(figure.axes) == 6
    lines = [c.lines[0] for c in figure.axes[1].containers]
    looks = {(x.get_marker(), x.get_markerfacecolor()) for x in lines}
    assert len(looks) == 4  # told apart without colour: by marker and by filling
    assert len({m for m, _ in looks}) == 2
    assert {f for _, f in looks} > {"white"}
