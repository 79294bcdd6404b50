"""How many rows (images x draws) go through a network at once, for all who run one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Rows of one forward pass, and what memory a gradient of them needs.

    Args:
        rows: images x draws that go through the defence together.
        reserve: bytes that a row's gradient needs beside the graphs of steps that are kept; 0 if
            not known.
    """

    rows: int
    reserve: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.reserve < 0:
            raise ValueError(f"a chunk has at least 1 row and 0 bytes; got {self}")


_open: ContextVar[Chunk | None] = ContextVar("chunk", default=None)


@contextmanager
def chunked(chunk: Chunk) -> Iterator[None]:
    """Within the block, whoever runs a defence hands it at most `chunk.rows` rows at once."""
    token = _open.set(chunk)
    try:
        yield
    finally:
        _open.reset(token)


def current_chunk() -> Chunk | None:
    """The chunk of the `chunked` block around; None outside one."""
    return _open.get()


def rows_at_once(x: Tensor, chunk: int | None = None) -> int:
    """Rows of one forward pass.

    Those of the `chunked` block around, which decides; outside one `chunk`, or, if that is None,
    128 of up to 32x32x3 and fewer of larger images (B, C, H, W).
    """
    planned = _open.get()
    if planned is not None:
        return planned.rows
    return max(1, min(128, 128 * 3 * 32 * 32 // x[0].numel())) if chunk is None else chunk


def parts(total: int, rows: int) -> list[slice]:
    """Consecutive slices of `total` rows, as few as `rows` at once allow, and of equal length.

    >>> parts(10, 4)
    [slice(0, 4, None), slice(4, 7, None), slice(7, 10, None)]
    """
    count = -(-total // rows)
    base, more = divmod(total, count) if count else (0, 0)
    ends = [base * (i + 1) + min(i + 1, more) for i in range(count)]
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """One number per image (B,), shaped to multiply `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def where_rows(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """New values in some rows (B,) bool, the old ones in the others."""
    return torch.where(per_image(rows, new), new, old)


def means(blocks: Iterable[Tensor], draws: int) -> Tensor:
    """The mean over the draws of each image, (B, ...), of rows that come block by block.

    The draws of an image follow one another. Only rows of images that are not complete are kept,
    so that memory does not grow with the draws.
    """
    done: list[Tensor] = []
    rest: Tensor | None = None
    for block in blocks:
        rows = block if rest is None else torch.cat([rest, block])
        whole = len(rows) // draws * draws
        done.append(rows[:whole].view(-1, draws, *rows.shape[1:]).mean(1))
        rest = rows[whole:].clone() if whole < len(rows) else None
    return torch.cat(done)
