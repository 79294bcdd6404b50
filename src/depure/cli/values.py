"""Values as they are typed: numbers, fractions, pairs; each checked where it enters."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.ParamType):  # type: ignore[type-arg]
    """A positive number or fraction: 0.1 or 8/255."""

    name = "number"

    def __init__(self, least: float | None = None) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse, or fail with what was expected."""
        # Not by Fraction, which works out every digit of 1e99999999.
        above, stroke, below = str(value).partition("/")
        try:
            number = float(above) / (float(below) if stroke else 1.0)
            if not math.isfinite(number) or (self.least is not None and number < self.least):
                raise ValueError
            return number
        except (ValueError, ZeroDivisionError, OverflowError):
            self.fail(f"{value!r} is not a number or a fraction such as 8/255", param, ctx)


class Betas(click.ParamType):  # type: ignore[type-arg]
    """Two ends of a linear noise schedule, as text: 1e-6:0.02."""

    name = "betas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, once it is known to be right."""
        try:
            first, last = ends_of_betas(str(value))
        except ValueError:
            first, last = 0.0, 0.0
        if not 0.0 < first <= last < 1.0:
            self.fail(
                f"{value!r} is not FIRST:LAST with 0 < FIRST <= LAST < 1, such as 1e-6:0.02",
                param,
                ctx,
            )
        return str(value)


def ends_of_betas(text: str) -> tuple[float, float]:
    """First and last of `FIRST:LAST`.

    Raises:
        ValueError: it is no such pair.
    """
    first, last = text.split(":")
    return float(first), float(last)
