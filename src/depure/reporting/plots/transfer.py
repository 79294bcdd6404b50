"""The transfer matrix: accuracy under one setting of images attacked with another in mind."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from depure.analysis.store import Array
from depure.analysis.transfer import TransferMatrix
from depure.reporting.figures import _figure, _wrapped, style
from depure.reporting.plots.common import MAP, caption


def transfer_figure(result: TransferMatrix) -> Figure:
    """Accuracies in percent with intervals; a row is an attack, a column a judge.

    The first row is the null control, without attack. Framed: each setting's own evaluation.
    """
    size = len(result.labels)
    with style():
        figure = _figure(3.2 + 1.15 * size, 2.4 + 0.62 * size)
        axes = figure.subplots()
        values = np.concatenate([result.clean_accuracy()[None], result.robust_accuracy()])
        shown = axes.imshow(100 * values[..., 0], cmap=MAP, vmin=0, vmax=100, aspect="auto")
        for place in np.ndindex(*values.shape[:2]):
            _write(axes, place, 100 * values[place])
        _names(axes, result.labels)
        for i in range(size):
            axes.add_patch(Rectangle((i - 0.48, i + 0.52), 0.96, 0.96, fill=False, ec="#000000",
                                     lw=3.4, zorder=2))  # fmt: skip
            axes.add_patch(Rectangle((i - 0.48, i + 0.52), 0.96, 0.96, fill=False, ec="#FFFFFF",
                                     lw=1.4, zorder=2))  # fmt: skip
        axes.axhline(0.5, color="#FFFFFF", lw=5, zorder=0.5)
        figure.colorbar(shown, ax=axes, shrink=0.8, label="accuracy (%)")
        caption(figure, _words(result), max(70, 40 + 15 * size))
    return figure


def _write(axes: Axes, place: tuple[int, ...], values: Array) -> None:
    value, low, high = values
    ink = "#000000" if value > 55 else "#FFFFFF"
    look: Any = {"ha": "center", "color": ink}
    axes.text(place[1], place[0], f"{value:.0f}", va="bottom", fontsize=9.5, weight="bold", **look)
    axes.text(place[1], place[0] + 0.08, f"{low:.0f} to {high:.0f}", va="top", fontsize=7, **look)


def _names(axes: Axes, labels: tuple[str, ...]) -> None:
    short = [_wrapped(label, 18) for label in labels]
    axes.set_xticks(range(len(labels)), short, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels) + 1), ["no attack", *short])
    axes.set_xlabel("judged under")
    axes.set_ylabel("made against")
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _words(result: TransferMatrix) -> str:
    s = result.settings
    attack = s["attack"]
    chosen = {k: v for k, v in attack.items() if k != "name" and v not in (None, False)}
    named = ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.items()
    )
    counts = sorted(set(result.draws.tolist()))
    return (
        f"Accuracy and 95 % interval, clustered by image; n = {len(result.index)} images of "
        f"{s['data']['name']}, {' or '.join(map(str, counts))} judge's draws. {attack['name']} "
        f"({named}), {s['ball']['name']} {s['ball']['eps']:.4g}. Framed: made against and judged "
        f"under the same setting, its own evaluation. The form of this matrix is our inference."
    )
