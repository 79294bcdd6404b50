"""What a purifier does to perturbations and clean images, along its chain and over t_star."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from depure.analysis.common import mean_known
from depure.analysis.purification import Purification
from depure.analysis.store import Array
from depure.reporting.figures import _DASHES, _MARKS, JUDGED, _figure, style
from depure.reporting.plots.common import MAP, attack_words, caption, legend_above

_SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "adversarial": ("attacked image to clean image", {**_MARKS["attacked"], "linestyle": "-"}),
    "clean": ("clean image to itself", {**_MARKS["clean"], "linestyle": _DASHES["clean"]}),
    "gap": (
        "between the two, same noise",
        {"color": JUDGED, "marker": "s", "linestyle": (0, (1.2, 1.2))},
    ),
}
_UNITS = {
    "l2": ("L2 distance", "L2, pixels in [0, 1]"),
    "linf": ("Largest difference of a pixel", "L-inf, pixels in [0, 1]"),
    "features": ("Penultimate features", "L2, features"),
}
_FAMILY = ("#0072B2", "#D55E00", "#000000", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def purification_figure(result: Purification) -> Figure:
    """Distances along the chain, removed against damage over t_star, and two accuracy grids."""
    kinds = [k for k in _UNITS if k in result.gap]
    with style():
        figure = _figure(9.0, 9.6)
        grid = figure.add_gridspec(3, 6)
        for i, kind in enumerate(kinds):
            width = 6 // len(kinds)
            axes = figure.add_subplot(grid[0, i * width : (i + 1) * width])
            _distances(axes, result, kind)
        _removed(figure.add_subplot(grid[1, :3]), result)
        _trade(figure.add_subplot(grid[1, 3:]), result)
        for i, name in enumerate(("clean", "attacked")):
            _accuracy(figure.add_subplot(grid[2, 3 * i : 3 * i + 3]), result, name)
        first = figure.axes[0].get_lines()
        legend_above(figure, first, [title for title, _ in _SIDES.values()], 3)
        caption(figure, _words(result))
    return figure


def _chain_axis(axes: Axes, result: Purification) -> None:
    k = len(result.time)
    shown = sorted({0, 1, *np.linspace(1, k - 1, min(k - 1, 6)).round().astype(int).tolist()})
    names = ["input" if i == 0 else f"{result.time[i]:.3g}" for i in shown]
    axes.set_xticks(shown, names, rotation=35, ha="right")
    axes.set_xlabel("time in the chain")


def _distances(axes: Axes, result: Purification, kind: str) -> None:
    for name, (_, look) in _SIDES.items():
        values = getattr(result, name)[kind]
        mean, error = values.mean(0), _error(values)
        mean = np.where(mean > 0, mean, np.nan)  # the clean image's distance from itself
        at = np.arange(len(mean))
        axes.plot(at, mean, linewidth=1.5, markersize=4.0, **look)
        low = np.maximum(mean - 2 * error, 0.2 * mean)
        axes.fill_between(at, low, mean + 2 * error, color=look["color"], alpha=0.16, lw=0)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    for write in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        write(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title(_UNITS[kind][0])
    axes.set_ylabel(_UNITS[kind][1])
    _chain_axis(axes, result)


def _error(values: Array) -> Array:
    """Standard error over images (n, K); 0 for one image, which shows no band."""
    n = len(values)
    return np.asarray(values.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(values.shape[1]))


def _removed(axes: Axes, result: Purification) -> None:
    at, mean = np.arange(len(result.time)), mean_known(result.removed, 0)
    axes.plot(at, 100 * mean, color=JUDGED, marker="s", markersize=4.0, linewidth=1.5)
    axes.axhline(0, color="#777777", lw=0.8)
    axes.set_title("Perturbation removed along the chain")
    axes.set_ylabel("removed (%)")
    _chain_axis(axes, result)


def _trade(axes: Axes, result: Purification) -> None:
    damage, gone = mean_known(result.grid_damage, 0), mean_known(result.grid_removed, 0)
    for j, steps in enumerate(result.steps.tolist()):
        axes.plot(
            damage[:, j], 100 * gone[:, j], color=_FAMILY[j % 6], marker=_MARKERS[j % 6],
            markersize=4.5, linewidth=1.2, label=f"{steps} step" + "s" * (steps > 1),
        )  # fmt: skip
    last = len(result.steps) - 1
    for i, t in enumerate(result.t_star):
        axes.annotate(f"{t:g}", (damage[i, last], 100 * gone[i, last]), (4, -10),
                      textcoords="offset points", fontsize=7)  # fmt: skip
    axes.legend(fontsize=7.5)
    axes.set_title("Removed against damage, t_star at points")
    axes.set_xlabel("damage: |purified(x) - x|, L2, pixels in [0, 1]")
    axes.set_ylabel("removed (%)")


def _accuracy(axes: Axes, result: Purification, name: str) -> None:
    mean = 100 * mean_known(getattr(result, f"accuracy_{name}"), 0)
    axes.imshow(mean, cmap=MAP, vmin=0, vmax=100, aspect="auto", origin="lower")
    axes.set_xticks(range(len(result.steps)), [str(s) for s in result.steps])
    axes.set_yticks(range(len(result.t_star)), [f"{t:g}" for t in result.t_star])
    axes.grid(False)
    for (i, j), value in np.ndenumerate(mean):
        known = not np.isnan(value)
        ink = "#FFFFFF" if known and value < 60 else "#000000"
        text = f"{value:.0f}" if known else "does\nnot fit"
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set_title(f"Accuracy on {name} images (%)")
    axes.set_xlabel("reverse steps")
    axes.set_ylabel("t_star")


def _words(result: Purification) -> str:
    s, n = result.settings, len(result.index)
    made = "given" if s["attacked"] != "white-box-eot" else f"by {attack_words(s)}"
    bands = "bands: 2 standard errors over images" if n > 1 else "one image, so no intervals"
    still = int(np.isnan(result.removed).any(1).sum())
    left = f"; {still} images that the attack did not move are left out of it" * bool(still)
    return (
        f"n = {n} images of {s['data']['name']}, mean of {s['draws']} draws each; {bands}. "
        f"Attacked images: {made}; the same ones in every cell of the grid, so an attack made "
        f"against a cell's own settings is stronger there. States of the chain are divided by "
        f"their alpha; the last is the purifier's output. Removed: "
        f"1 - <purified(x_adv) - purified(x), d> / |d|^2 with d = x_adv - x, same noise{left}. "
        f"The measures are our inference."
    )
