"""Whose class is whose: the names of class folders matched to the classes of a classifier."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from numbers import Integral

import torch

from depure.data.images import Images
from depure.records import came

Classes = int | Sequence[str | Sequence[str]]

_INDEX = re.compile(r"[0-9]+")
_WNID = re.compile(r"n[0-9]{8}")
_MOST = 100_000  # classes of which only indices are known
_CURE = (
    "give the classifier's class names in order (--classes FILE; in Python classes=), or name the "
    "folders by class index"
)


@dataclass(frozen=True)
class Numbering:
    """The label of each name, the classes they count among, and what was assumed for it."""

    labels: tuple[int, ...]
    classes: tuple[str, ...]
    assumed: str = ""


def match_classes(images: Images, classes: Classes) -> Images:
    """The same images with the labels that a classifier gives their classes.

    Args:
        images: labelled by class names or indices of their own.
        classes: the classifier's class names in order (where a class has several, a list of them),
            or how many classes it tells apart. By the number alone, names that are whole numbers
            are indices; ImageNet's wnids are matched to 1000 classes, CIFAR's names to 10 or 100.
            Of other names as many as there are classes are taken in sorted order, which
            `Images.assumed` then says. Images that were numbered for certain stay as they are.

    Raises:
        ValueError: a name is none of the classifier's classes, or fits two of them; two names fit
            one class; or the number of classes is another.

    Example:
        >>> labels = torch.tensor([0, 1])
        >>> found = Images(torch.zeros(2, 1, 8, 8), labels, torch.arange(2), ("cat", "dog"), "pets")
        >>> match_classes(found, ["bird", "dog", "cat"]).y
        tensor([2, 1])
    """
    sure = not images.assumed and not all(map(_INDEX.fullmatch, images.classes))
    if sure and not isinstance(classes, Sequence):
        return images
    found = number_classes(images.classes, classes)
    y = torch.tensor(found.labels, dtype=torch.int64)[images.y]
    return Images(images.x, y, images.index, found.classes, images.name, found.assumed)


def number_classes(names: Sequence[str], classes: Classes | None) -> Numbering:
    """The label of each name of a class folder, see `match_classes`; None: nothing is known.

    Raises:
        ValueError: as `match_classes`.
    """
    if isinstance(classes, Sequence):
        return _by_name(names, _checked(classes))
    if classes is not None:
        return _among(names, classes)
    if all(map(_INDEX.fullmatch, names)):
        return _by_index(names, None)
    return Numbering(tuple(range(len(names))), tuple(names), _sorted_order(names))


def _among(names: Sequence[str], count: int) -> Numbering:
    """By the number of the classifier's classes alone."""
    if not isinstance(count, Integral) or isinstance(count, bool):
        raise TypeError(
            f"classes must be the classifier's class names in order, or how many it tells apart; "
            f"got {type(count).__name__}"
        )
    if count < 1:
        raise ValueError(f"classes must be at least 1, or the class names; got {count}")
    indices = [name for name in names if _INDEX.fullmatch(name)]
    if len(indices) == len(names):
        return _by_index(names, count)
    if indices:
        other = [name for name in names if name not in indices]
        raise ValueError(
            f"some class folders are named by index ({_some(indices)}) and some not "
            f"({_some(other)}): {_CURE}"
        )
    wnids = any(map(_WNID.fullmatch, names))
    if wnids and count == 1001:
        raise ValueError(
            f"the class folders are ImageNet's ({_some(names)}), the classifier tells 1001 classes "
            f"apart, which may begin or end with one for the background: {_CURE}"
        )
    if wnids and count == 1000:  # by name even if some are strange, which is then said
        return _by_name(names, [(name,) for name in _known("imagenet")])
    for known in map(_known, ("cifar10", "cifar100", "digits")):
        if len(known) == count and set(map(_folded, names)) <= set(map(_folded, known)):
            return _by_name(names, [(name,) for name in known])
    if len(names) != count:
        raise ValueError(
            f"there are {len(names)} class folders with images ({_some(names)}), but the "
            f"classifier tells {count} classes apart: {_CURE}"
        )
    return Numbering(tuple(range(count)), tuple(names), _sorted_order(names))


def _sorted_order(names: Sequence[str]) -> str:
    return (
        f"the class folders ({_some(names)}) are numbered in sorted order, and whether the "
        f"classifier numbers its classes so is not known: to be sure, {_CURE}"
    )


def _by_index(names: Sequence[str], count: int | None) -> Numbering:
    labels = tuple(int(name) for name in names)
    top = max(labels, default=0)
    if top >= (count or _MOST):
        most = f"{count} classes" if count else f"{_MOST:,} classes at most"
        raise ValueError(
            f"the class folder {names[labels.index(top)]} is no class index: {most} are numbered "
            f"from 0 to {(count or _MOST) - 1}; {_CURE}"
        )
    classes = tuple(str(n) for n in range(count or top + 1))
    _check_apart(names, labels, classes)
    return Numbering(labels, classes)


def _by_name(names: Sequence[str], classes: Sequence[tuple[str, ...]]) -> Numbering:
    exact, alike = defaultdict(set), defaultdict(set)
    for label, synonyms in enumerate(classes):
        for name in synonyms:
            exact[name].add(label)
            alike[_folded(name)].add(label)
    fits = [exact.get(name) or alike.get(_folded(name), set()) for name in names]
    strange = [name for name, labels in zip(names, fits, strict=True) if not labels]
    shown = tuple(synonyms[-1] for synonyms in classes)
    if len(strange) == len(names) and all(map(_INDEX.fullmatch, names)):
        return Numbering(_by_index(names, len(classes)).labels, shown)
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(names)} class folders are none of the classifier's "
            f"{len(classes)} classes ({_some(shown)}): {_some(strange, 10)}; rename or remove "
            f"them, or give other class names (--classes FILE; in Python classes=)"
        )
    for name, labels in zip(names, fits, strict=True):
        if len(labels) > 1:
            raise ValueError(
                f"the class folder {name!r} fits classes {_some(sorted(map(str, labels), key=int))}"
                f" alike: give every class a name of its own"
            )
    numbers = tuple(min(found) for found in fits)
    _check_apart(names, numbers, shown)
    return Numbering(numbers, shown)


def _check_apart(names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> None:
    first: dict[int, str] = {}
    for name, label in zip(names, labels, strict=True):
        if label in first:
            raise ValueError(
                f"the class folders {first[label]!r} and {name!r} are both class {label} "
                f"({classes[label]}): put their images into one folder, or rename one"
            )
        first[label] = name


def _checked(classes: Sequence[str | Sequence[str]]) -> list[tuple[str, ...]]:
    """The names of each class; the first one, which no two classes may share, is its own."""
    if isinstance(classes, str | bytes):
        raise TypeError(
            f"classes must be a list of names; got the text {came(classes)}: pass "
            f"read_classes(FILE) for a file"
        )
    found: list[tuple[str, ...]] = []
    for place, entry in enumerate(classes):
        several = (entry,) if isinstance(entry, str) else tuple(entry)
        if not several or not all(isinstance(n, str) and n.strip() for n in several):
            raise ValueError(f"class {place} has no name: got {came(entry)}, expected a text")
        found.append(tuple(name.strip() for name in several))
    own: dict[str, int] = {}
    for place, several in enumerate(found):
        if several[0] in own:
            raise ValueError(
                f"classes {own[several[0]]} and {place} are both named {several[0]!r}: give every "
                f"class a name of its own"
            )
        own[several[0]] = place
    if not found:
        raise ValueError("no class is named: give the classifier's class names in order")
    return found


@cache
def _known(name: str) -> tuple[str, ...]:
    """Class names of a data set in its order: ILSVRC-2012's wnids, CIFAR's names, digits' words."""
    text = (files("depure.data") / "names" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple(text.split())


def _folded(name: str) -> str:
    """A name without what people write in several ways: case, and the signs between words."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
