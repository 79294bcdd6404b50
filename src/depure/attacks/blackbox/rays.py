"""RayS: search for the nearest decision boundary along rays to the corners of the cube."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from depure.attacks.asking.queries import as_measurement
from depure.attacks.base import Iterated, Watch
from depure.attacks.case import Case
from depure.attacks.settings import check_count, check_share
from depure.threat.balls import Ball, Linf

_PROBE, _SEARCH, _CONFIRM = range(3)


@dataclass(frozen=True)
class RayS(Iterated):
    """RayS (Chen & Gu, 2006.12792, with the hierarchical search): decisions and L-inf only.

    It flips ever smaller blocks of a sign vector. If the flipped ray is wrong at the smallest
    radius known, bisection finds where it turns wrong. Blocks of one pixel are repeated to the
    end. Every iteration asks one question per image: each goes through probes and bisections at
    its own pace.

    Against a random defence every decision is the majority over `eot` fresh draws: wrong if more
    than half of them are, a tie is right. A new radius must be found wrong once more on draws of
    its own; failing this, the bisection goes on above it.

    Of the point where the ray turns wrong and the one where it leaves the ball, the less accurate
    on fresh draws is proposed, on a tie the latter. If nothing is random, an image rests once its
    radius is inside the ball.

    Args:
        steps: decisions per image (a 10,000 budget is published).
        eot: draws per decision (one, if all noise is known).
        tolerance: width at which the bisection ends, per pixel; published is 1e-3 in Euclidean
            length, 1.8e-5 for an image of 32x32x3.

    Example:
        >>> RayS(steps=1000, eot=1)
        RayS(steps=1000, eot=1, tolerance=2e-05)
    """

    steps: int = 10_000
    eot: int = 10
    tolerance: float = 2e-5

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("eot", self.eot)
        check_share("tolerance", self.tolerance)

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """L-inf alone: its rays lead to the corners of the cube."""
        return (Linf,)

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks for gradients: it asks for answers only."""
        return False

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W).

        The watch hears, as loss, minus the smallest radius found (-1 before any) and, as
        accuracy, whether it is beyond the ball; the last time, the accuracy of the proposal.

        Raises:
            ValueError: for a model with one class.
        """
        case, x, eps = case.fold("rays"), case.x, case.ball.eps
        rays = _Rays.of(x, self.tolerance, case.random)
        for i in range(self.steps):
            rows = (case.random | (rays.best > eps)).nonzero()[:, 0]
            if len(rows):
                key = ("query", i) if case.random else ()
                points = rays.point(x)[rows][:, None]
                answer = case.rows(rows).margins(points, self.eot, key)
                wrong = torch.zeros_like(rays.best, dtype=torch.bool)
                wrong[rows] = answer.accuracy[:, 0] < 0.5
                rays.advance(wrong)
            if i < self.steps - 1:
                beyond = (rays.best > eps).to(x)
                watch.iteration(as_measurement(x, -rays.best.clamp_max(1.0), beyond))
        x_adv, accuracy = self._choose(case, rays)
        watch.iteration(as_measurement(x, -rays.best.clamp_max(1.0), accuracy))
        return x_adv

    def _choose(self, case: Case, rays: _Rays) -> tuple[Tensor, Tensor]:
        x, eps = case.x, case.ball.eps
        radii = torch.full_like(rays.best, eps), rays.best.clamp_max(eps)
        points = torch.stack([_along(x, rays.signs, radius) for radius in radii], 1)
        accuracy, which = case.margins(points, self.eot, ("end",)).accuracy.min(1)
        everyone = torch.arange(len(x), device=x.device)
        return case.ball.project(points[everyone, which], x), accuracy


@dataclass(eq=False)
class _Rays:
    """Where each image stands; all (B,) but the signs (B, D)."""

    signs: Tensor
    best: Tensor  # smallest radius known to be wrong along the signs
    level: Tensor  # the image is cut into 2**level blocks
    block: Tensor
    phase: Tensor
    low: Tensor
    high: Tensor
    tolerance: float
    random: bool
    levels: int = field(init=False)

    def __post_init__(self) -> None:
        self.levels = (self.signs.shape[1] - 1).bit_length()

    @staticmethod
    def of(x: Tensor, tolerance: float, random: bool) -> _Rays:
        """All signs up, and no radius known."""
        zero = torch.zeros(len(x), dtype=torch.long, device=x.device)
        radius = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        signs = torch.ones_like(x).flatten(1)
        low, high = torch.zeros_like(radius), torch.ones_like(radius)
        return _Rays(signs, radius, zero, zero, zero, low, high, tolerance, random)

    def _trial(self) -> tuple[Tensor, Tensor]:
        """The signs with one block flipped (B, D), and whether the block is the last."""
        elements = self.signs.shape[1]
        size = -(-elements // 2**self.level)
        end = (self.block + 1) * size
        place = torch.arange(elements, device=self.signs.device)
        flip = (place >= (end - size)[:, None]) & (place < end[:, None])
        return torch.where(flip, -self.signs, self.signs), end >= elements

    def point(self, x: Tensor) -> Tensor:
        """The point (B, C, H, W) that each image asks about next."""
        middle = torch.where(self.phase == _SEARCH, (self.low + self.high) / 2.0, self.high)
        top = self.best.clamp_max(1.0)
        return _along(x, self._trial()[0], torch.where(self.phase == _PROBE, top, middle))

    def advance(self, wrong: Tensor) -> None:
        """Advance the search by one decision (B,) per image, on these points."""
        top = self.best.clamp_max(1.0)
        probe, search, confirm = (self.phase == p for p in (_PROBE, _SEARCH, _CONFIRM))
        middle = (self.low + self.high) / 2.0
        self.low = torch.where(search & ~wrong, middle, self.low)
        self.high = torch.where(search & wrong, middle, self.high)
        self.low = torch.where(confirm & ~wrong, self.high, torch.where(probe, 0.0, self.low))
        self.high = torch.where(probe | (confirm & ~wrong), top, self.high)
        closed = self.high - self.low <= self.tolerance
        found = search & closed & (self.high < self.best)
        unsure = found if self.random else torch.zeros_like(found)
        going = ((probe & wrong) | search | (confirm & ~wrong)) & ~closed
        self._accept((confirm & wrong) | (found & ~unsure), advance=~unsure & ~going)
        self.phase = torch.where(unsure, _CONFIRM, torch.where(going, _SEARCH, _PROBE))

    def _accept(self, accept: Tensor, advance: Tensor) -> None:
        """Turn to the flipped signs where accepted, and to the next block where it is time."""
        trial, last = self._trial()
        self.signs = torch.where(accept[:, None], trial, self.signs)
        self.best = torch.where(accept, self.high, self.best)
        level = torch.where(last, (self.level + 1).clamp_max(self.levels), self.level)
        self.level = torch.where(advance, level, self.level)
        self.block = torch.where(advance, torch.where(last, 0, self.block + 1), self.block)


def _along(x: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
    return (x + (radius[:, None] * signs).view_as(x)).clamp(0.0, 1.0)
