"""Figures of a report, as matplotlib Figures: colour-blind safe, readable in grey, no pyplot.

Clean images are blue, hollow and dashed, attacked ones vermilion, filled and solid, everywhere.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from depure.evaluation.statistics import Interval
from depure.files import replacing
from depure.reporting.load import Accuracies

CLEAN, ATTACKED, JUDGED = "#0072B2", "#D55E00", "#000000"  # Okabe and Ito
_INK, _FAINT = "#333333", "#D9D9D9"
_RC: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#777777",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "text.parse_math": False,  # a title may hold a "$"
    "legend.frameon": False,
    "savefig.facecolor": "white",
}
_MARKS: dict[str, dict[str, Any]] = {
    "clean": {"color": CLEAN, "marker": "o", "markerfacecolor": "white"},
    "attacked": {"color": ATTACKED, "marker": "o"},
}
_DASHES: dict[str, Any] = {"clean": (0, (4, 1.5)), "attacked": "-"}


@dataclass(frozen=True)
class Line:
    """One run in a figure that compares runs."""

    label: str
    clean: Accuracies
    robust: Accuracies
    known: bool = False  # all noise is known to the attacker, or there is none


@contextmanager
def style() -> Iterator[None]:
    """The house's settings, whatever the user's matplotlibrc says; undone on leaving."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def accuracy_figure(clean: Accuracies, robust: Accuracies) -> Figure:
    """Accuracy against the number of draws: worst of N, and majority of k (odd k), two panels."""
    with style():
        figure = _figure(9.0, 3.5)
        left, right = figure.subplots(1, 2, sharey=True)
        sides = {"clean": clean, "attacked": robust}
        for name, side in sides.items():
            _band(left, list(enumerate(side.any_of_n, 1)), name)
            _band(right, side.odd_votes(), name)
        left.set_title("Worst of N draws: right in all of them")
        right.set_title("Majority vote of k draws")
        _percent_axis(left, "accuracy (%)")
        _counting_axis(left, "N (draws)")
        _counting_axis(right, "k (draws; odd numbers, as ties count as wrong)")
        labels = ["clean images (null control)", "attacked images"]
        _legend(figure, left.get_lines(), labels)
    return figure


def trace_figure(
    loss: Sequence[float], accuracy: Sequence[float], judged: Interval, *, fresh: bool = True
) -> Figure:
    """Loss and accuracy during the attack, and the judge's accuracy after it, two panels.

    `fresh` is whether the judge uses draws that the attack never saw.
    """
    with style():
        figure = _figure(9.0, 3.2)
        left, right = figure.subplots(1, 2)
        during = "during the attack" + (", on its own draws" if fresh else "")
        after = "after it, the result" + (", on fresh draws" if fresh else "")
        at = range(len(loss))
        marker = "o" if len(loss) <= 30 else ""
        look: Any = {"color": ATTACKED, "marker": marker, "markersize": 3.5, "linewidth": 1.6}
        left.plot(at, loss, **look)
        right.plot(at, [100 * a for a in accuracy], label=during, **look)
        _judged(right, len(loss), judged, after)
        left.set_title("Loss that the attack raises")
        left.set_ylabel("mean loss")
        right.set_title("Accuracy while it runs")
        _percent_axis(right, "accuracy (%)")
        for axes in (left, right):
            _counting_axis(axes, "attack iteration")
            axes.set_xlim(-0.03 * len(loss) - 0.2, 1.03 * len(loss) + 0.2)
        handles, labels = right.get_legend_handles_labels()
        _legend(figure, handles, labels)
    return figure


def calls_figure(
    calls: Sequence[float], accuracy: Sequence[float], members: Sequence[str], judged: Interval
) -> Figure:
    """What an ensemble's best proposals left against the calls it had made, member by member."""
    with style():
        figure = _figure(9.0, 3.2)
        axes = figure.subplots()
        left = [100 * a for a in accuracy]
        axes.plot(calls, left, color=ATTACKED, marker="o", lw=1.6, markersize=4.5,
                  label="best proposal until then, on the draws that chose it")  # fmt: skip
        for i, (at, value, name) in enumerate(zip(calls[1:], left[1:], members, strict=True)):
            below = -14 if i % 2 == 0 else -25  # neighbours may lie close together
            axes.annotate(name, (at, value), (-6, below), textcoords="offset points",
                          ha="right", fontsize=8)  # fmt: skip
        _judged(axes, calls[-1], judged, "after it, the result, judged apart")
        axes.set_title("Accuracy against calls")
        _percent_axis(axes, "accuracy (%)")
        axes.set_xlabel("classifier calls an image, behind the purifier or bare")
        _legend(figure, *axes.get_legend_handles_labels())
    return figure


def forest_figure(lines: Sequence[Line]) -> Figure:
    """One row a run: clean (hollow) and attacked (filled) accuracy with intervals."""
    with style():
        figure = _figure(9.0, 0.42 * len(lines) + 1.1)
        axes = figure.subplots()
        for row, line in enumerate(lines):
            _row(axes, row - 0.13, line.clean.single, "clean")
            _row(axes, row + 0.13, line.robust.single, "attacked")
            _name(axes, row, line.label)
        axes.set_yticks([])
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlim(-1, 101)
        axes.set_xlabel("accuracy on one fresh draw (%)")
        axes.spines["left"].set_visible(False)
        axes.hlines([row - 0.5 for row in range(1, len(lines))], -1, 101, color=_FAINT, lw=0.6)
        _legend(figure, axes.get_lines()[:2], ["clean images (null control)", "attacked images"])
    return figure


def tries_figure(lines: Sequence[Line]) -> Figure:
    """Worst-of-N curves, one small panel a run, the other runs' attacked curves in grey."""
    columns = min(len(lines), 4)
    rows = -(-len(lines) // columns)
    with style():
        figure = _figure(9.0, 2.05 * rows + 0.55)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        longest = max(len(line.robust.any_of_n) for line in lines)
        for axes, line in zip(panels.flat, lines, strict=False):
            for other in lines:
                if other is not line:
                    values = [100 * e.value for e in other.robust.any_of_n]
                    axes.plot(range(1, len(values) + 1), values, color=_FAINT, lw=1.0, zorder=1)
            for name, side in (("clean", line.clean), ("attacked", line.robust)):
                _band(axes, list(enumerate(side.any_of_n, 1)), name, small=True)
            axes.set_title(_wrapped(line.label, 30), fontsize=8, fontweight="normal")
            if len(line.robust.any_of_n) == 1 and longest > 1:
                note = "one draw: all coincide" if line.known else "one draw"
                axes.text(0.97, 0.92, note, transform=axes.transAxes,
                          ha="right", va="top", fontsize=7.5)  # fmt: skip
            _percent_axis(axes, "")
            _counting_axis(axes, "")
        _outer_labels(panels, len(lines))
        longest_panel = max(
            panels.flat[: len(lines)], key=lambda a: len(a.get_lines()[-1].get_xdata())
        )
        _legend(figure, longest_panel.get_lines()[-2:], ["clean images", "attacked images"])
    return figure


def svg(figure: Figure, name: str, described: str) -> str:
    """Inline SVG with text in the page's font; ids carry `name`, so figures can share a page."""
    buffer = io.StringIO()
    with style():
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name})
        with warnings.catch_warnings():  # matplotlib need not have the glyphs; the browser has
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<[^>]*>", lambda tag: _ids(tag[0], name), text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text)
    return text.replace(' role="img">', f' role="img" aria-label="{described}">', 1)


def _ids(tag: str, name: str) -> str:
    """The tag with `name` before every id and every reference to one."""
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write name.svg (outlined text, looks the same everywhere) and name.png."""
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    with style():
        matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": name})
        with replacing(paths[0]) as file:
            figure.savefig(file, format="svg", metadata=_NO_METADATA)
        with replacing(paths[1]) as file:
            figure.savefig(file, format="png", dpi=200)
    return paths


_NO_METADATA: dict[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _band(
    axes: Axes, points: Sequence[tuple[int, Interval]], name: str, *, small: bool = False
) -> None:
    """A curve with its interval: a shaded band, or a whisker for a single point."""
    look = _MARKS[name]
    at = [n for n, _ in points]
    low, value, high = ([100 * getattr(e, k) for _, e in points] for k in ("low", "value", "high"))
    if len(at) == 1:
        axes.vlines(at, low, high, color=look["color"], lw=1.6, alpha=0.6)
    else:
        axes.fill_between(at, low, high, color=look["color"], alpha=0.16, lw=0)
    if small and len(at) > 1:
        look = {**look, "marker": ""}
    size, width = (3.5, 1.5) if small else (4.0, 1.6)
    axes.plot(at, value, linestyle=_DASHES[name], linewidth=width, markersize=size, **look)


def _row(axes: Axes, at: float, e: Interval, name: str) -> None:
    look = _MARKS[name]
    axes.plot([100 * e.value], [at], linestyle="none", markersize=6.5, zorder=3, **look)
    axes.hlines(at, 100 * e.low, 100 * e.high, color=look["color"], lw=1.8)


def _name(axes: Axes, at: float, label: str) -> None:
    """Left of the axes, one text a line: so each ends at the axes in whatever font it is shown."""
    parts = _wrapped(label, 44).split("\n")
    for part, up in zip(parts, (0,) if len(parts) == 1 else (5.5, -5.5), strict=True):
        axes.annotate(
            part, (0, at), (-8, up), ("axes fraction", "data"), "offset points",
            ha="right", va="center", annotation_clip=False,
        )  # fmt: skip


def _judged(axes: Axes, at: float, e: Interval, label: str) -> None:
    error = [[100 * (e.value - e.low)], [100 * (e.high - e.value)]]
    axes.errorbar(
        [at], [100 * e.value], error, fmt="D", color=JUDGED, markersize=5, capsize=3, label=label
    )


def _percent_axis(axes: Axes, label: str) -> None:
    axes.set_ylim(-2, 102)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel(label)


def _counting_axis(axes: Axes, label: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    axes.set_xlabel(label)


def _outer_labels(panels: Any, used: int) -> None:
    """Drop unused panels and label the outer ones."""
    columns = panels.shape[1]
    for i, axes in enumerate(panels.flat):
        if i >= used:
            axes.remove()
            continue
        if i % columns == 0:
            axes.set_ylabel("accuracy (%)")
        if i + columns >= used:
            axes.set_xlabel("N (draws)")
            axes.tick_params(labelbottom=True)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the panels, where it covers no data."""
    figure.legend(handles, labels, loc="outside upper left", ncols=2)


def _wrapped(text: str, width: int) -> str:
    lines = textwrap.wrap(text, width)
    if len(lines) > 2:
        lines = [lines[0], textwrap.shorten(" ".join(lines[1:]), width, placeholder="\u2026")]
    return "\n".join(lines)
