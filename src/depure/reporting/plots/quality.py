"""FID and KID of sets of images, and a few images of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depure.analysis.quality import Quality
from depure.analysis.store import Array
from depure.reporting.figures import ATTACKED, CLEAN, JUDGED, _figure, style
from depure.reporting.plots.common import caption

_LOOKS: dict[str, dict[str, Any]] = {
    "held-out": {"color": JUDGED, "marker": "s", "markerfacecolor": "white"},
    "purified": {"color": CLEAN, "marker": "o"},
    "generated": {"color": "#009E73", "marker": "D"},
    "attacked": {"color": ATTACKED, "marker": "^", "markerfacecolor": "white"},
    "purified attacked": {"color": ATTACKED, "marker": "^"},
}


def quality_figure(result: Quality) -> Figure:
    """FID and KID of every set above a row of images of each."""
    n = len(result.sets)
    with style():
        figure = _figure(9.0, 1.5 + 0.34 * n + 0.95 * n)
        grid = figure.add_gridspec(2, 2, height_ratios=(0.34 * n + 0.6, 0.95 * n))
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        _points(left, result, result.fid, np.full(n, np.nan))
        left.set_title("FID on the features named below")
        left.set_xlabel("FID (squared feature units)")
        left.set_xlim(left=0)
        _points(right, result, result.kid, result.kid_error)
        right.set_title("KID on the features named below")
        right.set_xlabel("KID (2 standard errors)")
        right.axvline(0, color="#777777", lw=0.8)
        right.set_yticklabels([])
        _samples(figure.add_subplot(grid[1, :]), result)
        caption(figure, _words(result))
    return figure


def _points(axes: Axes, result: Quality, values: Array, errors: Array) -> None:
    for row, name in enumerate(result.sets):
        look = _LOOKS[name]
        width = None if np.isnan(errors[row]) else [2 * errors[row]]
        axes.errorbar([values[row]], [row], xerr=width, markersize=6, capsize=3, **look)
        axes.annotate(f"{values[row]:.3g}", (values[row], row), (0, 7), fontsize=7.5, ha="center",
                      textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(result.sets)), result.sets)
    axes.set_ylim(len(result.sets) - 0.5, -0.7)
    axes.margins(x=0.12)


def _samples(axes: Axes, result: Quality) -> None:
    """One picture of all, so that the rows stand close; pixels are shown as they are."""
    names = list(result.samples)
    tiles = [_strip(result.samples[name]) for name in names]
    picture = np.concatenate(tiles, 0)
    height = tiles[0].shape[0]
    colour: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1} if picture.shape[2] == 1 else {}
    axes.imshow(picture[..., 0] if colour else picture, interpolation="nearest", **colour)
    axes.set_yticks([(i + 0.5) * height - 1 for i in range(len(names))], names)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Some of the images")


def _strip(images: Array) -> Array:
    """(k, C, H, W) side by side with white edges, (H + e, k (W + e), C)."""
    edge = max(1, images.shape[3] // 8)
    widths = ((0, 0), (0, 0), (0, edge), (0, edge))
    padded = np.pad(images, widths, constant_values=1.0)
    return np.concatenate(list(padded.transpose(0, 2, 3, 1)), 1)


def _words(result: Quality) -> str:
    s = result.settings
    counts = ", ".join(f"{n} {name}" for name, n in zip(result.sets, result.counts, strict=True))
    few = ""
    if min(*result.counts.tolist(), result.reference) <= result.dimensions:
        few = " Fewer images than features: FID is strongly biased here."
    return (
        f"Features: {result.features} ({result.dimensions} numbers an image): {result.about}. "
        f"{counts}; against {result.reference} images of {s['reference']['name']}. FID is biased "
        f"upwards with few images: read it against the held-out real images.{few} KID: unbiased, "
        f"mean of {s['blocks']} pairs of disjoint blocks. Generated: grey images purified from the "
        f"end of the schedule in {s['steps']} steps, seed {s['seed']}."
    )
