"""What counts as an answer: the class that logits name, or none where they are not finite."""

from __future__ import annotations

from torch import Tensor

NOBODY = -1
"""In the place of a class: the logits held NaN or an infinity, and no class was named."""


def answered(logits: Tensor) -> Tensor:
    """Whether all logits (..., K) of an answer are finite, (...) bool."""
    return logits.isfinite().all(-1)


def predicted(logits: Tensor) -> Tensor:
    """The class of the largest of the logits (..., K), (...) int64; `NOBODY` if one is not finite.

    A bare `argmax` takes the first NaN for the largest and makes class 0 look robust.

    Example:
        >>> import torch
        >>> predicted(torch.tensor([[0.0, 2.0], [torch.nan, 1.0]])).tolist()
        [1, -1]
    """
    return logits.argmax(-1).masked_fill(~answered(logits), NOBODY)


def right(logits: Tensor, y: Tensor) -> Tensor:
    """Whether answers (..., K) name the labels (...), which nothing does that is not finite."""
    return predicted(logits) == y


def mean_of(values: Tensor, known: Tensor, dim: int = 1) -> Tensor:
    """Mean over a dimension of the values that are known; NaN where none is.

    Where all are known it is `values.mean(dim)`, to the bit.

    Args:
        values: (..., N, ...), floating.
        known: bool, of the shape of `values` up to and including `dim`.
        dim: the dimension of N, from 0.
    """
    wide = known.view(known.shape + (1,) * (values.ndim - known.ndim))
    count = known.sum(dim).to(values.dtype)
    scale = values.shape[dim] / count.view(count.shape + (1,) * (values.ndim - known.ndim))
    return values.masked_fill(~wide, 0.0).mean(dim) * scale
