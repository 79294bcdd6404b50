"""What the instruments' figures share: looks of attacks, captions, legends."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from depure.reporting.figures import ATTACKED, CLEAN

MAP = "viridis"  # even in lightness: reads in grey
NAMES = {
    "dw-box": "DW-box",
    "white-box-eot": "white-box EoT",
    "white-box": "white-box, one draw",
    "random": "random",
    "given": "given",
}
LOOKS: dict[str, dict[str, Any]] = {
    "dw-box": {"color": ATTACKED, "marker": "o", "linestyle": "-"},
    "white-box-eot": {
        "color": "#000000", "marker": "s", "markerfacecolor": "white", "linestyle": (0, (4, 1.5)),
    },
    "white-box": {"color": CLEAN, "marker": "^", "linestyle": (0, (1.2, 1.2))},
}  # fmt: skip
UNITS = {"ce": "cross-entropy (nats)", "margin": "margin (logits)", "dlr": "DLR loss"}


def unit(settings: dict[str, Any]) -> str:
    """The axis label of the attack's loss."""
    return UNITS[settings["attack"]["loss"]]


def attack_words(settings: dict[str, Any]) -> str:
    """The attack and the ball in a few words."""
    a, b = settings["attack"], settings["ball"]
    return (
        f"PGD of {a['steps']} steps of {a['step_size']:g}, EoT {a['eot']}, {b['name']} "
        f"{b['eps']:.4g}, seed {settings['seed']}"
    )


def caption(figure: Figure, text: str, width: int = 155) -> None:
    """A note under the panels, in the room that the layout makes for it."""
    lines = textwrap.fill(" ".join(text.split()), width)
    figure.supxlabel(lines, x=0.012, ha="left", fontsize=7.5, color="#555555")


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str], n: int) -> None:
    """Above the panels, in n columns."""
    figure.legend(handles, labels, loc="outside upper left", ncols=n)
