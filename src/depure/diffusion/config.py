"""Settings that somebody saved as JSON, checked before anything is built from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from depure.records import came

_LARGEST = 2**20  # of any whole number, and of the entries of a list


def number(config: Mapping[str, Any], name: str, otherwise: float) -> float:
    """A finite number of the settings.

    Raises:
        ValueError: it is something else.
    """
    return _real(name, config.get(name, otherwise))


def whole(config: Mapping[str, Any], name: str, otherwise: int) -> int:
    """A whole number of the settings, from 1 to a million.

    Raises:
        ValueError: it is something else.
    """
    value = config.get(name, otherwise)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise ValueError(f"{name} must be a whole number from 1 to {_LARGEST:,}; got {came(value)}")
    return value


def numbers(config: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """A list of finite numbers of the settings, at most a million.

    Raises:
        ValueError: it is something else.
    """
    values = config.get(name)
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= _LARGEST:
        raise ValueError(f"{name} must be a list of numbers; got {came(values)}")
    return tuple(_real(name, value) for value in values)


def _real(name: str, value: object) -> float:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not abs(value) < 1e300 or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a finite number; got {came(value)}")
    return float(value)  # type: ignore[arg-type]
