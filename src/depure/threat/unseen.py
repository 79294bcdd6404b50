"""Threats other than norms of the pixel change, which defences are not tuned on."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from depure.networks.features.distance import FeatureDistance
from depure.rows import per_image, where_rows
from depure.threat.balls import Ball, check_eps

_TINY = 1e-10
_PROJECTIONS = 10  # Newton's steps before bisection
_OVERSHOOT = 0.1  # share by which Newton's steps aim inside
_HALVINGS = 20
_REACH = "the whole image reaches from -1 to 1"


class UnseenThreat(Ball):
    """A threat that bounds no norm of the pixel change; only attacks made for it work in it.

    `size` gives the largest pixel change, for the record; it is not what `eps` bounds.
    """

    def size(self, delta: Tensor) -> Tensor:
        """Largest absolute pixel change, (B,); not bounded by eps."""
        return delta.flatten(1).abs().amax(1)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Refused, unless the threat says otherwise.

        Raises:
            ValueError: there is no projection into this threat.
        """
        raise ValueError(
            f"nobody knows how to project into {self!r}: attack it with {self.attacked_by}"
        )


@dataclass(frozen=True)
class Flow(UnseenThreat):
    """Every pixel is fetched from at most eps away (Xiao et al., 1801.02612).

    Distances are measured along each axis, with the image reaching from -1 to 1: eps = 0.05 is
    0.8 pixels of an image of 32 x 32, the bound of Laidlaw et al. (2006.12655) and DiffPure.
    Values between pixels are interpolated linearly; pixels outside the image take its border's
    value.

    A flow cannot be told from the image that it leads to, so `contains` checks what follows
    from the bound: a pixel lies between the least and the largest of the pixels within reach.
    That shows up any attack that paints; whether the image really is *one* flow's is the word of
    `StAdv`, which bounds its flow itself.
    """

    eps: float = 0.05
    attacked_by = "StAdv"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_eps(self.eps, 2.0, _REACH))

    def reach(self, x: Tensor) -> tuple[float, float]:
        """How many pixels eps is, down and across, for images (B, C, H, W)."""
        return self.eps * x.shape[2] / 2.0, self.eps * x.shape[3] / 2.0

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each pixel of each image (B,) lies between those within reach of it."""
        down, across = (math.ceil(r * (1.0 - 1e-6)) for r in self.reach(x))
        window, edge = (2 * down + 1, 2 * across + 1), (down, across)
        high: Tensor = functional.max_pool2d(x, window, 1, edge)
        low: Tensor = -functional.max_pool2d(-x, window, 1, edge)
        inside = (x_adv >= low - 1e-5) & (x_adv <= high + 1e-5)
        inside &= (x_adv >= 0.0) & (x_adv <= 1.0)
        return inside.flatten(1).all(1)


@dataclass(frozen=True)
class Perceptual(UnseenThreat):
    """Images that look alike to a network: a `FeatureDistance` of at most eps.

    Laidlaw et al. (2006.12655) and DiffBreak attack with eps = 0.5 in the distance of AlexNet's
    features; with other networks 0.5 means another thing.

    Args:
        distance: what is bounded; the record has its `repr`, a fingerprint included.
        eps: the bound.

    Raises:
        ValueError: eps is not positive and finite.
    """

    distance: InitVar[FeatureDistance]
    eps: float = 0.5
    features: str = field(init=False, default="")
    attacked_by = "PPGD, LPA or LowFrequency"

    def __post_init__(self, distance: FeatureDistance) -> None:
        object.__setattr__(self, "_distance", distance)  # not a field: the record is plain data
        object.__setattr__(self, "features", repr(distance))
        object.__setattr__(self, "eps", check_eps(self.eps))

    @property
    def metric(self) -> FeatureDistance:
        """The distance that eps bounds."""
        distance: FeatureDistance = vars(self)["_distance"]
        return distance

    @torch.no_grad()
    def distance_of(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distances (B,) of images from theirs."""
        distances: Tensor = self.metric(x_adv, x)
        return distances

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each image (B,) is within eps and in [0, 1], up to float32 rounding."""
        low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
        near = self.distance_of(x_adv, x) <= self.eps * (1.0 + 1e-4) + 1e-6
        return near & (low >= 0.0) & (high <= 1.0)

    @torch.no_grad()
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Images within eps near x_adv: Newton's steps down the distance, then bisection.

        Not the nearest (nobody knows it), but never outside: what Newton's steps do not bring
        in is moved on the straight line to x, and x itself is inside.
        """
        near = x_adv = x_adv.clamp(0.0, 1.0)
        reference, rows = self.metric.features(x), torch.arange(len(x), device=x.device)
        for _ in range(_PROJECTIONS):
            gap, slope = self.metric.slope(near[rows], reference[rows])
            outside = gap > self.eps
            rows, gap, slope = rows[outside], gap[outside], slope[outside]
            if not len(rows):
                return near
            near = near.index_copy(0, rows, self._stepped(near[rows], gap, slope))
        rows = rows[self.metric.distance(near[rows], reference[rows]) > self.eps]
        if not len(rows):
            return near
        line = self._on_the_line(x_adv[rows], x[rows], reference[rows])
        return near.index_copy(0, rows, line)

    def _stepped(self, x_adv: Tensor, gap: Tensor, slope: Tensor) -> Tensor:
        """One step of Newton's method down to a little less than eps."""
        excess = gap - (1.0 - _OVERSHOOT) * self.eps
        length = excess / slope.flatten(1).square().sum(1).clamp_min(_TINY**2)
        there = (x_adv - per_image(length, x_adv) * slope).clamp(0.0, 1.0)
        return torch.where(there.isfinite(), there, x_adv)

    def _on_the_line(self, x_adv: Tensor, x: Tensor, reference: Tensor) -> Tensor:
        low, high = torch.zeros_like(x[:, 0, 0, 0]), torch.ones_like(x[:, 0, 0, 0])
        best = x
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            there = (x + per_image(middle, x) * (x_adv - x)).clamp(0.0, 1.0)
            inside = self.metric.distance(there, reference) <= self.eps
            best = where_rows(inside, there, best)
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return best
