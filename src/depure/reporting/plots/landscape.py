"""The loss over a plane of perturbations, as surface and contours, with the attacks' paths."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke, withStroke
from matplotlib.ticker import MaxNLocator

from depure.analysis.landscape import Landscape
from depure.analysis.store import Array
from depure.reporting.figures import _figure, style
from depure.reporting.plots.common import (
    LOOKS,
    MAP,
    NAMES,
    attack_words,
    caption,
    legend_above,
    unit,
)


def landscape_figure(result: Landscape) -> Figure:
    """Four panels: surface and contours, under fixed (DW-box's) and fresh noise."""
    with style():
        figure = _figure(9.0, 8.4)
        rows = {"fixed": "fixed noise", "fresh": "fresh noise"}
        means = {k: getattr(result, k).mean(0) for k in rows}
        low, high = (f([f(m) for m in means.values()]) for f in (np.min, np.max))
        norm = Normalize(float(low), float(high))
        grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1.0))
        for i, (name, title) in enumerate(rows.items()):
            space: Any = figure.add_subplot(grid[i, 0], projection="3d", computed_zorder=False)
            _surface(space, result, means[name], name, norm)
            space.set_title(f"Loss under {title}")
            axes = figure.add_subplot(grid[i, 1])
            filled = _contours(axes, result, means[name], norm)
            bar = figure.colorbar(filled, ax=axes, shrink=0.9)
            bar.set_label(unit(result.settings))
        labels = [NAMES[p] + " attack's path" for p in result.paths]
        legend_above(figure, axes.get_lines()[: len(labels)], labels, 3)
        caption(figure, _words(result))
    return figure


def _surface(space: Any, result: Landscape, mean: Array, name: str, norm: Normalize) -> None:
    x, y = np.meshgrid(result.x, result.y, indexing="ij")
    space.plot_surface(
        x, y, mean, cmap=MAP, norm=norm, rstride=1, cstride=1, lw=0.2, edgecolor="#FFFFFF66",
        alpha=0.9, zorder=1,
    )  # fmt: skip
    at, height = result.path_coordinates.mean(0), getattr(result, f"path_{name}").mean(0)
    for i, path in enumerate(result.paths):
        space.plot(at[i, :, 0], at[i, :, 1], height[i], zorder=3, **_line(path, len(height[i])))
    space.set_xlabel("x (as right)")
    space.set_ylabel("y (as right)")
    space.set_zlabel(unit(result.settings), labelpad=2)
    space.view_init(elev=28, azim=-128)
    space.tick_params(pad=0)


def _contours(axes: Axes, result: Landscape, mean: Array, norm: Normalize) -> Any:
    levels = MaxNLocator(12).tick_values(norm.vmin or 0.0, norm.vmax or 1.0)
    filled = axes.contourf(result.x, result.y, mean.T, levels=levels, cmap=MAP, norm=norm)
    axes.contour(result.x, result.y, mean.T, levels=levels, colors="#00000055", linewidths=0.5)
    at = result.path_coordinates.mean(0)
    for i, path in enumerate(result.paths):
        axes.plot(at[i, :, 0], at[i, :, 1], **_line(path, len(at[i])))
    axes.plot(0, 0, "+", color="#FFFFFF", markersize=9, mew=1.6, zorder=4)
    axes.annotate(
        "clean", (0, 0), (6, -11), textcoords="offset points", color="#FFFFFF", fontsize=8,
        path_effects=[withStroke(linewidth=2.0, foreground="#333333")],
    )  # fmt: skip
    axes.grid(False)
    axes.set_aspect("equal")
    _name_axes(axes, result)
    return filled


def _line(path: str, points: int) -> dict[str, Any]:
    outline = [Stroke(linewidth=3.4, foreground="white"), Normal()]
    return {
        **LOOKS[path], "linewidth": 1.6, "markersize": 3.6, "markevery": max(1, points // 10),
        "path_effects": outline,
    }  # fmt: skip


def _name_axes(axes: Axes, result: Landscape) -> None:
    one, two = (NAMES[d] for d in result.directions)
    axes.set_xlabel(f"x: multiples of the {one} perturbation")
    axes.set_ylabel(f"y: multiples of the residual of {two}")


def _words(result: Landscape) -> str:
    s, n = result.settings, len(result.index)
    ends = ", ".join(
        f"{NAMES[p]} {100 * o:.0f} %"
        for p, o in zip(result.paths, result.off_plane.max(2).mean(0), strict=True)
    )
    left = f"; {len(result.left_out)} with parallel directions left out" * bool(
        len(result.left_out)
    )
    return (
        f"Mean over n = {n} images of {s['data']['name']}{left}. {attack_words(s)}. Fresh noise: "
        f"mean of {s['draws']} draws. Paths stand at the true loss of their iterates, projected "
        f"onto the plane; largest share of an iterate off it: {ends}. Points outside [0, 1] "
        f"are cut: {100 * result.clamped.mean():.0f} % of the pixels on average, "
        f"{100 * result.clamped.mean(0).max():.0f} % at most. Mean cosine between the directions "
        f"{result.cosine.mean():.2f}. Units, grid and averaging are our inference."
    )
