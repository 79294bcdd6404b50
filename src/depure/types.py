"""Types that several floors share. Shapes: B images, C channels, H x W pixels, K classes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Time = int | float
"""A network time: an index for discrete schedules (-1 is the clean image), else a real number."""


class Waypoint(NamedTuple):
    """A state that a purification passes through, and what noising alone makes of the image."""

    rounds_left: int  # rounds that follow this one
    steps_left: int  # reverse steps that follow in this round; 0 is the end of the round
    time: float  # on the schedule
    state: Tensor  # (B, C, H, W), of the reverse process at this time
    noised: Tensor  # (B, C, H, W), the round's image under the round's forward noise at this time


class Trace(NamedTuple):
    """A purification followed to its end."""

    logits: Tensor  # (B, K), of the last state
    waypoints: tuple[Waypoint, ...]  # one after each reverse step
