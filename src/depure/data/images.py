"""A labelled set of images whose data-set indices survive every subset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor

from depure.records import came


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images in `[0, 1]` with their labels and their data-set indices.

    Args:
        x: float32 `(N, C, H, W)` in `[0, 1]`.
        y: int64 `(N,)`, each in `0 .. len(classes) - 1`.
        index: int64 `(N,)`, the place of each image in the whole data set. It keys the random
            noise, so it travels with the image through every subset.
        classes: the class names, in label order.
        name: what a report calls the set.
        assumed: what was assumed in numbering the classes, for a warning; empty if nothing.

    Raises:
        TypeError: a tensor has the wrong dtype, or is no tensor.
        ValueError: shapes disagree, or values are out of range or not finite.

    Example:
        >>> labels = torch.tensor([0, 1])
        >>> Images(torch.zeros(2, 1, 8, 8), labels, torch.arange(2), ("a", "b"), "two")
        Images('two': 2 images of 1x8x8, 2 classes)
    """

    x: Tensor
    y: Tensor
    index: Tensor
    classes: tuple[str, ...]
    name: str
    assumed: str = ""

    def __post_init__(self) -> None:
        _check_dtype("x", self.x, torch.float32, "pass x.float()")
        _check_dtype("y", self.y, torch.int64, "pass y.long()")
        _check_dtype("index", self.index, torch.int64, "pass index.long()")
        check_pixels(self.x, ndim=4)
        for name, values in (("y", self.y), ("index", self.index)):
            if values.shape != (len(self.x),):
                raise ValueError(
                    f"{name} must have shape ({len(self.x)},), one entry for each image; "
                    f"got {tuple(values.shape)}"
                )
        _check_values(self.y, self.index, len(self.classes))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.x)

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.x.shape[1:])
        return f"Images({self.name!r}: {len(self)} images of {shape}, {len(self.classes)} classes)"

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Images:
        """The chosen rows, in the order given, with their own data-set indices.

        Args:
            rows: a slice, a list of row numbers, or a tensor of row numbers or booleans.

        Raises:
            TypeError: `rows` is a single number.
        """
        if isinstance(rows, int):
            raise TypeError(f"one row is no set of images: use images[{rows}:{rows + 1}]")
        picked = rows if isinstance(rows, (slice, Tensor)) else torch.tensor(rows, dtype=torch.long)
        x, y, index = (values[picked] for values in (self.x, self.y, self.index))
        return replace(self, x=x, y=y, index=index)

    def sample(self, n: int, seed: int = 0) -> Images:
        """A random subset with the classes as balanced as possible, in data-set order.

        The same seed gives the same images whatever the order of the rows, and a larger `n`
        only adds images to a smaller one.

        Raises:
            ValueError: `n` is below 1 or above `len(self)`.
        """
        order = self.index.argsort(stable=True)
        return self[order[stratified(self.y[order], n, seed)]]


def stratified(y: Tensor, n: int, seed: int = 0) -> Tensor:
    """Positions, ascending, of `n` entries of `y` with the classes as balanced as possible.

    Args:
        y: int64 `(N,)` labels.
        n: how many to pick, `1 .. N`.
        seed: fixes the choice. For one seed, a smaller pick is part of every larger one.

    Raises:
        ValueError: `n` is out of range.
    """
    if not isinstance(n, Integral) or not 1 <= n <= len(y):
        raise ValueError(f"cannot pick {came(n)} of {len(y)} images: ask for 1 to {len(y)}")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(y), generator=generator)
    # One image of every class, then a second one of every class, and so on: the classes differ
    # by one image at most until a class has no more. Within a round the order is the shuffle's.
    rounds = occurrence(y[shuffled])
    return shuffled[rounds.argsort(stable=True)[:n]].sort().values


def occurrence(y: Tensor) -> Tensor:
    """How many earlier entries carry the same label: int64 `(N,)`, 0 for the first of each."""
    counts = torch.zeros_like(y)
    for label in torch.unique(y):
        of_class = y == label
        counts[of_class] = torch.arange(int(of_class.sum()))
    return counts


def check_outputs(images: Images, outputs: int) -> None:
    """Refuse images whose class numbers were assumed, where the classifier has other classes.

    Raises:
        ValueError: there are not as many class names as outputs.
    """
    if images.assumed and len(images.classes) != outputs:
        raise ValueError(
            f"the images have {len(images.classes)} classes and the classifier {outputs} outputs, "
            f"and {images.assumed}: read them with classes={outputs}, or with its class names"
        )


def check_pixels(x: Tensor, ndim: int) -> None:
    """Refuse images that are not `ndim`-dimensional, finite and within `[0, 1]`.

    Raises:
        ValueError: says what came, what was expected, and the cure.
    """
    if x.ndim != ndim or 0 in x.shape[ndim - 3 :]:
        layout = "(C, H, W)" if ndim == 3 else "(N, C, H, W)"
        raise ValueError(
            f"images must have shape {layout}, none of C, H, W 0; got {tuple(x.shape)}"
        )
    if x.numel() == 0:
        return
    low, high = (float(v) for v in x.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("images must be finite; got NaN or infinity: check how they were read")
    if low < 0.0 or high > 1.0:
        bound = f"min {low}" if low < 0.0 else f"max {high}"
        raise ValueError(f"images must lie in [0, 1]; got {bound}: {_cure(low, high)}")


def _cure(low: float, high: float) -> str:
    if low >= -1e-3 and high <= 1 + 1e-3:  # rounding, left by a resize or a round trip
        return "pass x.clamp(0, 1)"
    if low >= -1.0 and high <= 1.0:
        return "pass (x + 1) / 2"
    if low >= 0.0 and high <= 255.0:
        return "pass x / 255"
    return "undo the normalisation, for the classifier normalises by itself"


def _check_dtype(name: str, values: Tensor, dtype: torch.dtype, cure: str) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(values).__name__}")
    if values.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}; got {values.dtype}: {cure}")


def _check_values(y: Tensor, index: Tensor, classes: int) -> None:
    if not len(y):
        return
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels must lie in 0 .. {classes - 1}, one for each class name; got {low} .. {high}"
        )
    if int(index.min()) < 0:
        raise ValueError(
            f"data-set indices must not be negative; got {int(index.min())}: "
            "pass torch.arange(len(x)) for a whole set"
        )
