"""The nearest point of a hyperplane inside the box [0, 1], in L-inf, L2 and L1."""

from __future__ import annotations

import torch
from torch import Tensor

from depure.threat.balls import L1, L2, Ball, Linf


def onto_plane(ball: Ball, x: Tensor, w: Tensor, rise: Tensor) -> Tensor:
    """Smallest change d of each image with <w, d> = rise and x + d in [0, 1], in the ball's norm.

    Every pixel goes the way that serves the rise, at a pace that the norm decides, until it hits
    the box: the same pace for all pixels (L-inf), in proportion to |w| (L2), the largest |w|
    first (L1). One sort per image finds the exact answer (Croce & Hein, 1907.02044, whose three
    projections these are).

    Args:
        ball: an `Linf`, `L2` or `L1`; only its norm counts.
        x: images (B, C, H, W) in [0, 1].
        w: normals of the planes, (B, C, H, W); pixels where w is 0 stay, as do images where all
            are.
        rise: what <w, x> must gain, (B,), of either sign. Where the box is too small for it, the
            change goes to the corner that comes nearest.

    Raises:
        ValueError: for a ball of another norm.

    Example:
        >>> x, w = torch.full((1, 1, 1, 2), 0.5), torch.tensor([3.0, 1.0]).view(1, 1, 1, 2)
        >>> onto_plane(Linf(), x, w, torch.tensor([1.0])).flatten()
        tensor([0.2500, 0.2500])
    """
    flat = w.flatten(1)
    largest = flat.abs().amax(1)
    scale = torch.where(largest > 0, largest, 1.0)  # tiny gradients must not underflow below
    way = flat.sign() * torch.where(rise < 0, -1.0, 1.0)[:, None]
    room = torch.where(way > 0, 1.0 - x.flatten(1), x.flatten(1))
    amount = _amount(ball, flat.abs() / scale[:, None], room, rise.abs() / scale)
    return (way * amount).view_as(x)


def _amount(ball: Ball, weight: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """How far each pixel goes, (B, d): 0 <= amount <= room and <weight, amount> = rise >= 0."""
    if isinstance(ball, Linf):
        pace = _pace(weight, room, rise)
        return torch.minimum(pace[:, None], room)
    if isinstance(ball, L2):
        # Substituting amount = weight * u turns it into a common pace for all u.
        furthest = torch.where(weight > 0, room / weight, 0.0)
        pace = _pace(weight.square(), furthest, rise)
        return torch.minimum(pace[:, None] * weight, room)
    if isinstance(ball, L1):
        return _greedy(weight, room, rise)
    raise ValueError(
        f"planes are projected onto in L-inf, L2 and L1; got {type(ball).__name__}: take one of "
        f"Linf, L2 and L1, or another attack"
    )


def _pace(slope: Tensor, stop: Tensor, rise: Tensor) -> Tensor:
    """The least t (B,) with sum_i slope_i * min(t, stop_i) = rise, or where all have stopped."""
    moving = slope > 0
    stop, order = torch.where(moving, stop, 0.0).sort(1)
    slope = slope.gather(1, order)
    gained = slope * stop
    before = gained.cumsum(1) - gained  # by the pixels that stopped earlier
    left = slope.flip(1).cumsum(1).flip(1)  # slope of those still moving
    reached = before + stop * left
    last = (reached < rise[:, None]).sum(1, keepdim=True).clamp_max(stop.shape[1] - 1)
    before, left, stop = (v.gather(1, last)[:, 0] for v in (before, left, stop))
    tiny = torch.finfo(stop.dtype).tiny
    return torch.minimum((rise - before).clamp_min(0.0) / left.clamp_min(tiny), stop)


def _greedy(weight: Tensor, room: Tensor, rise: Tensor) -> Tensor:
    """Fill the pixels of largest weight first; equal weights in the order of the pixels."""
    weight, order = weight.sort(dim=1, descending=True, stable=True)
    most = weight * room.gather(1, order)
    before = most.cumsum(1) - most
    gained = torch.minimum((rise[:, None] - before).clamp_min(0.0), most)
    amount = torch.where(weight > 0, gained / weight, 0.0)
    return torch.zeros_like(amount).scatter(1, order, amount)
