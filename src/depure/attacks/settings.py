"""Checks of attacks' settings; each raises ValueError naming the setting."""

from __future__ import annotations

import math
from typing import get_args

from depure.attacks.asking.gradients import Average
from depure.attacks.asking.losses import LOSSES
from depure.records import came


def check_count(name: str, value: object, least: int = 1) -> None:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be at least {least}, a whole number; got {came(value)}")


def check_share(name: str, value: object) -> None:
    """Above 0 and at most 1."""
    if not isinstance(value, int | float) or not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1; got {came(value)}")


def check_inside(name: str, value: object, low: float = 0.0, high: float = 1.0) -> None:
    """Between two bounds, bounds excluded."""
    if not isinstance(value, int | float) or not low < value < high:
        raise ValueError(f"{name} must lie inside ({low:g}, {high:g}); got {came(value)}")


def check_rate(name: str, value: object) -> None:
    """Positive and finite, or None, which leaves it to the ball."""
    if value is None:
        return
    if not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {came(value)}")


def check_weight(name: str, value: object) -> None:
    """At least 0 and finite."""
    if not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite; got {came(value)}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of some words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {came(value)}")


def check_loss(loss: object, average: object = "gradients") -> None:
    """The name of a loss, and what is averaged over the draws."""
    check_choice("loss", loss, tuple(LOSSES))
    check_choice("average", average, get_args(Average))
