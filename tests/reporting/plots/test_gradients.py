"""Six panels on gradients: numbers, labels, and words where there is nothing to draw."""

from __future__ import annotations

from typing import Any

import numpy as np

from depure.analysis.gradients import GradientQuality, Gradients
from depure.reporting.plots.gradients import gradients_figure

N = 9


def quality(names: tuple[str, ...], steps: int, seed: int) -> GradientQuality:
    draw = np.random.default_rng(seed)
    return GradientQuality(
        snr=1 + draw.random((N, 3)), cosine=draw.random((N, 3)), ceiling=draw.random(N),
        approximations=names, agreement=draw.random((N, len(names))),
        signs=draw.random((N, len(names))), norms=np.exp(draw.random((N, steps))),
        accuracy=draw.integers(0, 5, (N, 3)) / 4, judged=4,
    )  # fmt: skip


def result(models: dict[str, GradientQuality], eots: tuple[int, ...] = (1, 5, 20)) -> Gradients:
    settings: dict[str, Any] = {
        "data": {"name": "toy"},
        "attack": {"name": "PGD", "steps": 7, "eot": 10, "loss": "ce"},
        "threat": {"ball": {"name": "Linf", "eps": 0.2}, "knows": ["forward"]},
        "reference": 32, "groups": 4, "samples": 2, "judge": 4, "seed": 3,
    }  # fmt: skip
    return Gradients(models, np.array([1, 2, 8]), np.array(eots), np.arange(N), settings)


def test_every_panel_stands_at_its_numbers() -> None:
    one, two = quality(("BPDA", "adjoint"), 4, 0), quality(("BPDA",), 3, 1)
    figure = gradients_figure(result({"plain": one, "ADDT": two}))
    panels = figure.axes
    assert [len(a.containers) for a in panels] == [2, 2, 4, 2, 2, 2]

    def heights(panel: int, curve: int) -> Any:
        return panels[panel].containers[curve].lines[0].get_ydata()

    np.testing.assert_allclose(heights(0, 1), two.snr.mean(0))
    np.testing.assert_allclose(heights(1, 0), one.cosine.mean(0))
    np.testing.assert_allclose(heights(2, 1), one.signs.mean(0))
    np.testing.assert_allclose(heights(3, 0), np.exp(np.log(one.norms).mean(0)))
    np.testing.assert_allclose(heights(4, 0), 100 * one.accuracy.mean(0))
    gain = 100 * (two.accuracy[:, :-1] - two.accuracy[:, -1:]).mean(0)
    np.testing.assert_allclose(heights(5, 1), gain)
    assert all(a.get_title(loc="left") and a.get_ylabel() for a in panels)
    assert [t.get_text() for t in panels[2].get_xticklabels()] == ["BPDA", "adjoint"]


def test_words() -> None:
    found = result({"plain": quality(("BPDA",), 4, 0)})
    caption = gradients_figure(found).get_supxlabel().replace("\n", " ")
    enough = found.models["plain"].needed(found.eots)
    for word in ("n = 9", "toy", "steps 7", "Linf 0.2", "forward noise known", f"plain: {enough}",
                 "inference"):  # fmt: skip
        assert word in caption
    assert "eot 10" not in caption  # the attacks' own numbers are on the axis


def test_a_panel_with_nothing_to_show_says_so() -> None:
    one = quality((), 0, 0)
    single = GradientQuality(**{**vars(one), "accuracy": one.accuracy[:, :1]})
    panels = gradients_figure(result({"plain": single}, (5,))).axes
    said = ["\n".join(t.get_text() for t in a.texts) for a in panels]
    assert "no exact gradient" in said[2]
    assert "not a DiffPure" in said[3]
    assert "nothing to compare" in said[5]
