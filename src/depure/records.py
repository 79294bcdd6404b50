"""Settings as plain data, for records that are read back and shown."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any


def came(value: object) -> str:
    """What came, for the message of an error: its `repr`, cut, or its type if that says an address.

    Example:
        >>> came("a" * 3), came(object())
        ("'aaa'", 'object')
    """
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text[:60]


def whole_number(name: str, value: Any) -> int:
    """An int for any whole number, NumPy's and torch's too, so that it can be recorded.

    Raises:
        ValueError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} must be a whole number; got {came(value)}") from error


def record_of(thing: object) -> Any:
    """A frozen dataclass as its name and its fields, numbers and words as they are.

    What a dataclass leaves out of its `repr` cannot change a result and is left out here. Anything
    else is recorded as its `repr`.

    Example:
        >>> from depure import DDIM
        >>> record_of(DDIM(0.5))
        {'name': 'DDIM', 'eta': 0.5, 'clip_x0': False}
    """
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        kept = {
            f.name: record_of(getattr(thing, f.name)) for f in dataclasses.fields(thing) if f.repr
        }
        return {"name": type(thing).__name__, **kept}
    if isinstance(thing, tuple | list):
        return [record_of(item) for item in thing]
    return thing if thing is None or isinstance(thing, bool | int | float | str) else repr(thing)
