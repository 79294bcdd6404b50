"""What an option takes: numbers in a range, whole numbers, lists of them."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from typing import Any, Never

import click

from depure.files import plain

_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,40}\.?|[0-9]{0,40}\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")

SEED = (-(2**63), 2**63 - 1)


def shown(value: object) -> str:
    """What was typed, in quotes, shortened, and printable whatever it holds."""
    text = str(value)
    return ascii(text[:57] + "...") if len(text) > 60 else repr(text)


def told(error: OSError) -> str:
    """An error of the system as a sentence, without its number."""
    if error.strerror is None:  # one of ours: a sentence already
        return str(error)
    named = [plain(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return f"{' and '.join(named) or 'a file'}: {error.strerror}"


class _Checked(click.ParamType, ABC):  # type: ignore[type-arg]
    """A type whose `parse` raises ValueError with the end of the sentence."""

    @abstractmethod
    def parse(self, text: str) -> Any:
        """The value that a text stands for."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(str(value).strip())
        except ValueError as error:
            self._refuse(value, error, param, ctx)

    def _refuse(
        self,
        value: object,
        error: ValueError,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Never:
        self.fail(f"{shown(value)} is {error}", param, ctx)


class Number(_Checked):
    """A finite number or fraction, 0.1 or 8/255, between two bounds.

    Args:
        low: the least it may be.
        high: the most it may be.
        above: whether it must be above `low`.
        below: whether it must be below `high`.
        hint: what to do about one that is out of range.
    """

    name = "number"

    def __init__(
        self,
        low: float = -math.inf,
        high: float = math.inf,
        *,
        above: bool = False,
        below: bool = False,
        hint: str = "",
    ) -> None:
        self.low, self.high, self.above, self.below, self.hint = low, high, above, below, hint

    def parse(self, text: str) -> float:
        """The number of a text, or a ValueError."""
        value = _number(text)
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        if not (low and high):
            raise ValueError(f"out of range: expected a number {self._range()}{self.hint}")
        return value

    def _range(self) -> str:
        ends = []
        if self.low > -math.inf:
            ends.append(f"{'above' if self.above else 'of at least'} {self.low:g}")
        if self.high < math.inf:
            ends.append(f"{'below' if self.below else 'of at most'} {self.high:g}")
        return " and ".join(ends)


def _number(text: str) -> float:
    top, slash, bottom = text.partition("/")
    pattern = _WHOLE if slash else _DECIMAL
    if not pattern.fullmatch(top) or (slash and not _WHOLE.fullmatch(bottom)):
        raise ValueError("not a number or a fraction such as 8/255")
    if slash and not int(bottom):
        raise ValueError("a fraction of 0: expected a number or a fraction such as 8/255")
    value = int(top) / int(bottom) if slash else float(top)
    if not math.isfinite(value):
        raise ValueError("too large: expected a finite number")
    return value


class Count(_Checked):
    """A whole number from `low` to `high`."""

    name = "integer"

    def __init__(self, low: int = 1, high: int = 10**6) -> None:
        self.low, self.high = low, high

    def parse(self, text: str) -> int:
        """The number of a text, or a ValueError."""
        if not _WHOLE.fullmatch(text) or not self.low <= int(text) <= self.high:
            raise ValueError(f"not a whole number from {self.low:,} to {self.high:,}")
        return int(text)


class Several(_Checked):
    """Values of one type, separated by commas, as a tuple.

    Args:
        each: the type of each.
        most: how many there may be.
        empty: whether there may be none.
    """

    name = "list"

    def __init__(self, each: Number | Count, most: int = 64, *, empty: bool = False) -> None:
        self.each, self.most, self.empty = each, most, empty

    def parse(self, text: str) -> tuple[Any, ...]:
        """The values of a text, or a ValueError."""
        words = [word.strip() for word in text.split(",") if word.strip()]
        if len(words) > self.most or (not words and not self.empty):
            raise ValueError(f"no list of 1 to {self.most} values separated by commas")
        found = []
        for word in words:
            try:
                found.append(self.each.parse(word))
            except ValueError as error:
                raise ValueError(f"no list of numbers such as 1,2: {shown(word)} is {error}") \
                    from None  # fmt: skip
        return tuple(found)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A text, or a tuple that was converted already."""
        return value if isinstance(value, tuple) else super().convert(value, param, ctx)


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
                f"{shown(value)} is not FIRST:LAST with 0 < FIRST <= LAST < 1, such as 1e-6:0.02",
                param,
                ctx,
            )
        return str(value)


def ends_of_betas(text: str) -> tuple[float, float]:
    """First and last of `FIRST:LAST`.

    Raises:
        ValueError: it is no such pair.
    """
    first, last = (Number().parse(part) for part in text.split(":"))
    return first, last
