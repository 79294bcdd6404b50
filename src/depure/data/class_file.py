"""A classifier's class names, read from a file."""

from __future__ import annotations

import json
import re
from os import PathLike
from pathlib import Path
from typing import Any

from depure.files import parse_json, plain
from depure.records import came

_LARGEST = 16 * 2**20  # bytes
_WNID = re.compile(r"(n[0-9]{8})\s+(\S.*)")
_FORMS = (
    "expected one name a line, or JSON: a list of names, an object of index and name, or ImageNet's"
)


def read_classes(path: str | PathLike[str]) -> tuple[tuple[str, ...], ...]:
    """The classes of a classifier in the order of its outputs, each with all its names.

    The file has one name a line (a wnid may stand before it), or is JSON: a list of names, an
    object of index and name, of name and index, or ImageNet's `{"0": ["n01440764", "tench"]}`.
    It may begin with a byte-order mark and end lines in any way.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no UTF-8 text, no such list, or skips or repeats an index.

    Example:
        >>> Path("classes.txt").write_text("cat\\ndog\\n")  # doctest: +SKIP
        >>> read_classes("classes.txt")  # doctest: +SKIP
        (('cat',), ('dog',))
    """
    file = Path(path)
    shown = plain(str(path))
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise FileNotFoundError(f"{shown} {what}: pass a file of class names")
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"{shown} has more than {_LARGEST:,} bytes: {_FORMS}")
    try:
        return _parse(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown} is no UTF-8 text: save it as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{shown} holds no list of classes ({error}): {_FORMS}") from error


def _parse(text: str) -> tuple[tuple[str, ...], ...]:
    body = text.strip()
    if not body:
        raise ValueError("it is empty")
    if body[0] == "{":
        entries = _in_order(parse_json(_unique_keys(body).encode()))
    elif body[0] == "[":
        entries = list(parse_json(f'{{"list": {body}}}'.encode())["list"])
    else:
        entries = _lines(text)
    return tuple(_names(place, entry) for place, entry in enumerate(entries))


def _lines(text: str) -> list[Any]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} is empty, and a name's line is its index")
    both = [_WNID.fullmatch(line) for line in lines]
    return [list(b.groups()) if b else line for b, line in zip(both, lines, strict=True)]


def _unique_keys(body: str) -> str:
    """The same text; ValueError if an object in it has a key twice, which JSON would drop."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:40]!r} stands there twice")
            seen.add(key)

    try:
        json.loads(body, object_pairs_hook=check)
    except RecursionError as error:
        raise ValueError("its entries are nested too deeply") from error
    return body


def _in_order(found: dict[str, Any]) -> list[Any]:
    """The values of an object whose keys, or values, are the indices from 0 on."""
    if not found:
        raise ValueError("it is empty")
    if all(type(value) is int for value in found.values()):
        pairs = {value: key for key, value in found.items()}
    elif all(re.fullmatch("[0-9]{1,9}", key) for key in found):
        pairs = {int(key): value for key, value in found.items()}
    else:
        raise ValueError("neither its keys nor its values are the classes' indices")
    missing = [index for index in range(len(found)) if index not in pairs]
    if missing:
        raise ValueError(f"it has {len(found)} entries, and none of index {missing[0]}")
    return [pairs[index] for index in range(len(found))]


def _names(place: int, entry: Any) -> tuple[str, ...]:
    several = entry if isinstance(entry, list) else [entry]
    if not several or not all(isinstance(n, str) and n.strip() for n in several):
        raise ValueError(f"class {place} is {came(entry)} instead of a name")
    odd = next((n for n in several if not n.strip().isprintable()), None)
    if odd is not None:
        raise ValueError(f"the name of class {place}, {came(odd)}, cannot be printed")
    return tuple(name.strip() for name in several)
