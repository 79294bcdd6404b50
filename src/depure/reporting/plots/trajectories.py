"""Paths of attacks in a linear projection, their losses, and how far their directions agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depure.analysis.common import mean_known
from depure.analysis.store import Array
from depure.analysis.trajectories import Trajectories
from depure.reporting.figures import _counting_axis, _figure, style
from depure.reporting.plots.common import LOOKS, MAP, NAMES, attack_words, caption, unit
from depure.reporting.plots.common import legend_above as _above


def trajectories_figure(result: Trajectories, image: int | None = None) -> Figure:
    """One image's paths in space, and over all images: losses, turns, and two cosine matrices.

    Args:
        result: what to draw.
        image: its row; by default the image whose final DW-box loss is the median.

    Raises:
        ValueError: there is no such image, or no attack moved it.
    """
    image = _median(result) if image is None else image
    _check(result, image)
    with style():
        figure = _figure(9.0, 10.4)
        grid = figure.add_gridspec(3, 2, height_ratios=(1.35, 1.0, 1.3))
        for i, (name, title) in enumerate((("fixed", "fixed"), ("fresh", "fresh"))):
            space: Any = figure.add_subplot(grid[0, i], projection="3d")
            _paths(space, result, image, getattr(result, name)[image])
            space.set_title(f"Image {result.index[image]}: height = loss under {title} noise")
        _losses(figure.add_subplot(grid[1, 0]), result)
        _turns(figure.add_subplot(grid[1, 1]), result)
        for i, (name, title) in enumerate((("ends", "final perturbations"), ("steps", "steps"))):
            axes = figure.add_subplot(grid[2, i])
            _matrix(axes, mean_known(getattr(result, name), 0), result.paths, i == 0)
            axes.set_title(f"Cosines between the {title}")
        kinds = list(dict.fromkeys(p.split()[0] for p in result.paths))
        lines = [next(x for x in space.get_lines() if x.get_label() == kind) for kind in kinds]
        _above(figure, lines, [NAMES[k] for k in kinds], 3)
        caption(figure, _words(result, image))
    return figure


def _median(result: Trajectories) -> int:
    moved = np.flatnonzero(~np.isnan(result.explained[:, 0]))
    order = moved[np.argsort(result.fixed[moved, 0, -1], kind="stable")]
    return int(order[len(order) // 2])


def _check(result: Trajectories, image: int) -> None:
    n = len(result.index)
    if not 0 <= image < n:
        raise ValueError(f"image must be a row, 0 to {n - 1}; got {image}")
    if np.isnan(result.explained[image]).any():
        moved = np.flatnonzero(~np.isnan(result.explained[:, 0])).tolist()
        raise ValueError(f"no attack moved image {image}: choose one of the rows {moved}")


def _look(path: str) -> dict[str, Any]:
    return {**LOOKS[path.split()[0]], "linewidth": 1.3, "markersize": 3.6}


def _paths(space: Any, result: Trajectories, image: int, height: Array) -> None:
    for i, path in enumerate(result.paths):
        x, y = result.coordinates[image, i].T
        space.plot(x, y, height[i], label=path.split()[0], **_look(path))
    start = (*result.coordinates[image, 0, 0], height[0, 0])
    space.plot(*([v] for v in start), "k+", markersize=9, mew=1.6)
    one, two = 100 * result.explained[image]
    space.set_xlabel(f"axis 1 ({one:.0f} %)")
    space.set_ylabel(f"axis 2 ({two:.0f} %)")
    space.set_zlabel(unit(result.settings), labelpad=2)
    space.view_init(elev=22, azim=-125)
    space.tick_params(pad=0)


def _kinds(result: Trajectories, values: Array) -> dict[str, Array]:
    """Means over images and repetitions of (n, P, ...), by the kind of attack."""
    names = [p.split()[0] for p in result.paths]
    found = {}
    for kind in dict.fromkeys(names):
        rows = [i for i, name in enumerate(names) if name == kind]
        found[kind] = mean_known(mean_known(values[:, rows], 0), 0)
    return found


def _losses(axes: Axes, result: Trajectories) -> None:
    for name, pale in (("fixed", {}), ("fresh", {"alpha": 0.5, "linewidth": 0.8})):
        for kind, mean in _kinds(result, getattr(result, name)).items():
            axes.plot(range(len(mean)), mean, **{**_look(kind), **pale})
    axes.set_title("Mean loss: strong lines fixed noise, pale fresh")
    axes.set_ylabel(unit(result.settings))
    _counting_axis(axes, "attack iteration")


def _turns(axes: Axes, result: Trajectories) -> None:
    for kind, mean in _kinds(result, result.turns).items():
        axes.plot(range(1, len(mean) + 1), mean, **_look(kind))
    axes.set_ylim(-1.05, 1.05)
    axes.axhline(0, color="#777777", lw=0.8)
    axes.set_title("Successive steps of one path")
    axes.set_ylabel("cosine")
    _counting_axis(axes, "attack iteration")


def _matrix(axes: Axes, cosines: Array, paths: tuple[str, ...], named: bool) -> None:
    axes.imshow(cosines, cmap=MAP, vmin=-0.2, vmax=1.0)
    labels = [" ".join([NAMES[p.split()[0]], *p.split()[1:]]) for p in paths]
    ticks = range(len(paths))
    axes.set_xticks(ticks, labels, rotation=35, ha="right", fontsize=7.5)
    axes.set_yticks(ticks, labels if named else [""] * len(paths), fontsize=7.5)
    axes.grid(False)
    for i in ticks:
        for j in ticks:
            ink = "#000000" if cosines[i, j] > 0.55 else "#FFFFFF"
            axes.text(j, i, f"{cosines[i, j]:.2f}", ha="center", va="center", color=ink, fontsize=7)


def _words(result: Trajectories, image: int) -> str:
    s, n = result.settings, len(result.index)
    share = 100 * float(mean_known(result.explained.sum(1), 0))
    here = 100 * float(result.explained[image].sum())
    return (
        f"n = {n} images of {s['data']['name']}. {attack_words(s)}. Projection: the two principal "
        f"axes, about the clean image (+), of all iterates of all paths of the image shown (of "
        f"median final DW-box loss unless another was asked for), in L2 norm of [0, 1] pixels; "
        f"they hold {here:.0f} % of the squared lengths here, {share:.0f} % on average. "
        f"Fixed noise: the one DW-box knows; fresh: mean of {s['draws']} draws no attack used. "
        f"Cosines: mean over images; between steps: those of the same iteration, zero steps left "
        f"out. Projection and heights are our inference."
    )
