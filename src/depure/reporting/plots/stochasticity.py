"""Accuracy and loss between known and fresh noise, several models in one figure."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from depure.analysis.stochasticity import Curves, Stochasticity
from depure.analysis.store import Array
from depure.reporting.figures import _figure, _percent_axis, style
from depure.reporting.plots.common import caption, legend_above

# Okabe and Ito, dark to light; the marker tells the same in grey.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHED: Any = (0, (4, 1.5))


def stochasticity_figure(result: Stochasticity) -> Figure:
    """Rows: accuracy, loss, robustness loss; a column for each stage mixed, and for the pools."""
    names = tuple(dict.fromkeys(result.mix.models))
    held = list(dict.fromkeys(result.mix.stages))
    columns = [*((result.mix, stage) for stage in held)]
    columns += [(result.pool, "both")] if len(result.pool.at) else []
    with style():
        figure = _figure(max(6.5, 2.75 * len(columns) + 0.6), 8.2)
        panels = figure.subplots(3, len(columns), sharey="row", squeeze=False)
        for column, (curves, stage) in zip(panels.T, columns, strict=True):
            for row, name in enumerate(curves.models):
                if curves.stages[row] == stage:
                    _column(column, curves, row, names.index(name), curves is result.pool)
            _labels(column, curves, stage, curves is result.pool)
        _percent_axis(panels[0, 0], "accuracy (%)")
        panels[1, 0].set_ylabel("loss (nats)")
        panels[2, 0].set_ylabel("robustness loss\nJ(\u03b4*) \u2212 J(0) (nats)")
        for axes in panels[1:, 0]:
            axes.set_ylim(min(0.0, axes.get_ylim()[0]))
        _legend(figure, names)
        caption(figure, _words(result), 46 * len(columns) + 10)
    return figure


def look(model: int) -> dict[str, Any]:
    """Colour and marker of a model."""
    return {"color": COLOURS[model % len(COLOURS)], "marker": MARKERS[model % len(MARKERS)]}


def curve(
    axes: Axes, x: Array, estimate: Array, model: int, *, hollow: bool = False, **more: Any
) -> None:
    """Means with their intervals as bars, from (points, 3); hollow and dashed without attack."""
    value, low, high = estimate.T
    style_: dict[str, Any] = {"linestyle": "-", **look(model), **more}
    if hollow:
        style_ |= {"markerfacecolor": "white", "linestyle": DASHED}
    error = np.maximum([value - low, high - value], 0.0)
    axes.errorbar(
        x, value, error, linewidth=1.5, markersize=4.5,
        elinewidth=0.9, capsize=2.2, **style_,
    )  # fmt: skip


def _column(panels: Array, curves: Curves, row: int, model: int, pooled: bool) -> None:
    """All measures of one row, the models side by side by a hair."""
    x = np.log2(curves.at) if pooled else curves.at
    x = x + (0.06 if pooled else 0.01) * model
    pairs = (("accuracy", "accuracy_clean", 100.0), ("adversarial_loss", "clean_loss", 1.0))
    for axes, (attacked, clean, scale) in zip(panels, pairs, strict=False):
        curve(axes, x, scale * curves.estimate(clean)[row], model, hollow=True)
        curve(axes, x, scale * curves.estimate(attacked)[row], model)
    curve(panels[2], x, curves.estimate("robustness_loss")[row], model)


def _labels(panels: Array, curves: Curves, stage: str, pooled: bool) -> None:
    words = "all stages" if stage == "both" else f"{stage} only"
    panels[0].set_title(f"Pool of K seeds:\n{words}" if pooled else f"Noise mix:\n{words}")
    for axes in panels:
        if pooled:
            axes.set_xticks(np.log2(curves.at), [f"{k:g}" for k in curves.at])
        else:
            axes.set_xticks(curves.at, [f"{m:g}" for m in curves.at])
            axes.set_xlim(-0.08, 1.08)
    panels[2].set_xlabel(
        "K (seeds; 1 is DW-box)" if pooled else "mix level m\n(0: noise known, 1: white-box)"
    )


def _legend(figure: Figure, names: tuple[str, ...]) -> None:
    handles = [Line2D([], [], linewidth=1.5, markersize=5, **look(i)) for i in range(len(names))]
    plain: Any = {"color": "#555555", "marker": "o", "markersize": 5, "linewidth": 1.5}
    handles += [
        Line2D([], [], **plain),
        Line2D([], [], **{**plain, "markerfacecolor": "white", "linestyle": DASHED}),
    ]
    labels = [*names, "attacked: J(\u03b4*)", "no attack: J(0), the null control"]
    legend_above(figure, handles, labels, 4)


def attack_words(settings: dict[str, Any]) -> str:
    """Any attack, with the settings that were chosen, and the ball."""
    attack, ball = settings["attack"], settings["threat"]["ball"]
    chosen = ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in attack.items()
        if k != "name" and v not in (None, False)
    )
    return f"{attack['name']} ({chosen}), {ball['name']} {ball['eps']:.4g}, seed {settings['seed']}"


def _words(result: Stochasticity) -> str:
    s = result.settings
    return (
        f"Mean over n = {len(result.index)} images of {s['data']['name']} with 95 % intervals "
        f"clustered by image; {s['draws']} judge's draws (1 where all noise is known). "
        f"{attack_words(s)}. Every point is attacked and judged at its own level. Loss: "
        f"cross-entropy under the judge's draws. Our inference: the mix \u221a(1 \u2212 m\u00b2) "
        f"known + m fresh, the losses' definitions, and the pool."
    )
