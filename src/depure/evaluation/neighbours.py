"""Whether a defence's answer for an image depends on the images that it is given beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from depure.answers import answered
from depure.defences.defended import Defended
from depure.noise import Noise

_ROWS = 16  # most rows of the largest pass


def neighbours_matter(model: Defended, x: Tensor, noise: Noise, most: int = _ROWS) -> float | None:
    """How much a row's logits move when others stand beside it; None if no more than by rounding.

    Two rows are asked alone, in a pair, and in passes of 4 and of 16 rows (or `most`, if less),
    under the same noise. The others are images of the batch and of its draws, mirrored or
    inverted. The move is relative to the largest distance of a logit from its row's mean; the
    cube root of the coarsest dtype's resolution is taken for rounding, 0.5 % in float32.

    Args:
        model: the defence, in eval mode.
        x: images (B, C, H, W), B at least 1.
        noise: one row per image.
        most: rows of a pass, at least 2.
    """
    draws = -(-_ROWS // len(x))
    kinds = (lambda z: z, lambda z: 1.0 - z, lambda z: z.flip(-1))
    points = torch.stack([kinds[j % 3](x) for j in range(draws)], 1).flatten(0, 1)
    rows = noise.draws(draws)
    sizes = sorted({min(size, most, len(points)) for size in (2, 4, _ROWS)})
    with torch.no_grad():
        alone = torch.cat([model(points[i : i + 1], rows[[i]]) for i in range(2)])
        beside = [model(points[:size], rows[list(range(size))])[:2] for size in sizes]
    known = answered(alone)
    if any(not torch.equal(answered(logits), known) for logits in beside):
        return float("inf")
    if not known.any():
        return None
    scale = (alone - alone.mean(1, keepdim=True))[known].abs().max()
    moved = max(float((logits - alone)[known].abs().max()) for logits in beside)
    relative = moved / max(float(scale), torch.finfo(alone.dtype).tiny)
    kinds_of_number = [p.dtype for p in model.parameters() if p.is_floating_point()]
    coarsest = max(torch.finfo(kind).eps for kind in (*kinds_of_number, alone.dtype))
    return relative if relative > coarsest ** (1 / 3) else None


def check_neighbours(model: Defended, x: Tensor, noise: Noise, rows: int) -> None:
    """Raise ValueError if answers depend on the neighbours and there are any.

    Args:
        model: the defence.
        x: some images (B, C, H, W).
        noise: one row per image.
        rows: that the run hands to the defence at once.
    """
    if rows < 2:
        return
    moved = neighbours_matter(model, x, noise, rows)
    if moved is not None:
        raise ValueError(
            f"the defence's logits for an image move by {moved:.1g} of their size with the images "
            f"beside it (statistics of the batch, adaptation at test time): accuracies would "
            f"depend on chunk and shard_size; make it answer each image by itself, or judge one "
            f"at a time with chunk=1 (--chunk 1)"
        )
