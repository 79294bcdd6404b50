"""Gradients: their noise, their agreement, their norm along the chain, and what EoT draws buy."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, StrMethodFormatter

from depure.analysis.gradients import Gradients
from depure.analysis.store import Array
from depure.analysis.transfer import mean_of
from depure.reporting.figures import _counting_axis, _figure, _percent_axis, style
from depure.reporting.plots.common import caption, legend_above
from depure.reporting.plots.stochasticity import attack_words, curve, look

_GREY: Any = {"color": "#777777", "linewidth": 1.0, "linestyle": (0, (1.2, 1.6))}


def gradients_figure(result: Gradients) -> Figure:
    """Six panels, all models in each."""
    with style():
        figure = _figure(10.5, 6.6)
        panels = figure.subplots(2, 3)
        _noise(panels[0, 0], result)
        _cosines(panels[0, 1], result)
        _agreement(panels[0, 2], result)
        _norms(panels[1, 0], result)
        _accuracy(panels[1, 1], result)
        _gain(panels[1, 2], result)
        handles = [
            Line2D([], [], linewidth=1.5, markersize=5, **look(i))
            for i in range(len(result.models))
        ]
        legend_above(figure, handles, list(result.models), 4)
        caption(figure, _words(result), 150)
    return figure


def _noise(axes: Axes, result: Gradients) -> None:
    draws = result.draws
    for i, one in enumerate(result.models.values()):
        estimate = one.estimate("snr")
        curve(axes, draws * 1.03**i, np.maximum(estimate, 1e-3), i)
        axes.plot(draws, estimate[0, 0] * np.sqrt(draws / draws[0]), zorder=1, **_GREY)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(StrMethodFormatter("{x:g}"))
    _draws_axis(axes, draws, "draws averaged")
    axes.set_ylabel("signal-to-noise ratio")
    axes.set_title("Noise of the EoT gradient\n(dotted: the square-root law)")


def _cosines(axes: Axes, result: Gradients) -> None:
    for i, one in enumerate(result.models.values()):
        curve(axes, result.draws * 1.03**i, one.estimate("cosine"), i)
        axes.axhline(mean_of(one.ceiling).value, **_GREY)
    _draws_axis(axes, result.draws, "draws averaged")
    axes.set_ylim(min(-0.02, axes.get_ylim()[0]), 1.02)
    axes.set_ylabel("cosine")
    axes.set_title(
        f"With the mean of {result.settings['reference']} others\n(dotted: largest to be expected)"
    )


def _agreement(axes: Axes, result: Gradients) -> None:
    axes.set_title("Approximate against exact\n(same noise; dotted: signs by chance)")
    names = list(dict.fromkeys(a for one in result.models.values() for a in one.approximations))
    if not names:
        _say(axes, "no exact gradient, or nothing\nto compare it with")
        return
    for i, one in enumerate(result.models.values()):
        at = np.array([names.index(a) for a in one.approximations]) + 0.12 * i
        for name, hollow in (("agreement", False), ("signs", True)):
            estimate = one.estimate(name)
            curve(
                axes, at + (0.06 if hollow else 0.0), estimate, i, hollow=hollow, linestyle="none"
            )
    for line in axes.get_lines():
        line.set_linestyle("none")
    short = [n.replace(", ", ",\n") for n in names]
    axes.set_xticks(range(len(names)), short)
    axes.set_xlim(-0.5, len(names) - 0.3)
    axes.set_ylim(min(-0.05, axes.get_ylim()[0]), 1.05)
    axes.axhline(0.5, **_GREY)
    axes.set_ylabel("cosine (filled),\nshare of equal signs (hollow)")


def _norms(axes: Axes, result: Gradients) -> None:
    axes.set_title("Norm along the chain")
    chains = [(i, one) for i, one in enumerate(result.models.values()) if one.norms.shape[1]]
    if not chains:
        _say(axes, "no chain: the purifier\nis not a DiffPure")
        return
    for i, one in chains:
        log = one.estimate("norms")
        curve(axes, np.arange(len(log)) + 0.04 * i, 10**log, i)
    axes.set_yscale("log")
    _counting_axis(axes, "reverse steps done (0: noised image; last: purified)")
    axes.set_ylabel("|d loss / d x_t| (per unit of [-1, 1])")


def _accuracy(axes: Axes, result: Gradients) -> None:
    for i, one in enumerate(result.models.values()):
        curve(axes, result.eots * 1.03**i, 100 * one.estimate("accuracy"), i)
    _draws_axis(axes, result.eots, "EoT draws of the attack, equal steps")
    _percent_axis(axes, "accuracy under attack (%)")
    axes.set_title("What EoT draws buy the attack")


def _gain(axes: Axes, result: Gradients) -> None:
    axes.set_title("Still to gain by more draws, paired")
    if len(result.eots) < 2:
        _say(axes, "one number of EoT draws:\nnothing to compare")
        return
    for i, one in enumerate(result.models.values()):
        gain = np.array([(e.value, e.low, e.high) for e in one.gain()[:-1]]).reshape(-1, 3)
        curve(axes, result.eots[:-1] * 1.03**i, 100 * gain, i)
    axes.axhline(0.0, **_GREY)
    _draws_axis(axes, result.eots[:-1], "EoT draws of the attack")
    axes.set_ylabel(f"accuracy less that at EoT {result.eots[-1]} (points)")


def _draws_axis(axes: Axes, draws: Array, label: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(draws, [str(d) for d in draws])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(label)


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center")
    axes.set_xticks([])
    axes.set_yticks([])


def _words(result: Gradients) -> str:
    s = result.settings
    knows = s["threat"]["knows"]
    known = f" {' and '.join(knows)} noise known." if knows else ""
    enough = "; ".join(f"{k}: {v.needed(result.eots)}" for k, v in result.models.items())
    return (
        f"Means over n = {len(result.index)} images of {s['data']['name']} with 95 % intervals "
        f"clustered by image (norms: geometric). Gradients of {s['attack']['loss']} at the clean "
        f"images; noise between at least {s['groups']} groups of draws; agreement and norms over "
        f"{s['samples']} draws.{known} Attacks: {attack_words({**s, 'attack': _but_eot(s)})}, "
        f"{s['judge']} judge's draws. Fewest EoT draws that no larger number beats reliably on "
        f"these images: {enough}. The definitions are our inference."
    )


def _but_eot(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings["attack"].items() if k != "eot"}
