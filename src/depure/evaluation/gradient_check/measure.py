"""A gradient beside difference quotients, point by point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depure.evaluation.gradient_check.arithmetic import (
    ROUNDING,
    Arithmetic,
    NoGradient,
    NotFinite,
    finest,
)
from depure.noise import Noise
from depure.threat import Ball, Linf, Norm

_STEPS = {torch.float64: (1e-5, 1e-6, 1e-7)}
_COARSE = (1e-2, 3e-3, 1e-3)
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 0.05}
_SHARE = 0.75  # of the points must agree: a kink may lie at the others


@dataclass(frozen=True, eq=False)
class Points:
    """Where to look, one row per point, all float64."""

    x: Tensor  # (R, C, H, W)
    noise: Noise
    cotangent: Tensor  # (R, K): the sum of logits that is differentiated


@dataclass(frozen=True, eq=False)
class Seen:
    """What was measured; `faults` says in words what disagrees."""

    fine: Arithmetic
    plain: Arithmetic
    own: Tensor  # gradient in the fine arithmetic (R, C, H, W)
    single: Tensor  # in the attack's
    error: float  # of the worse direction, the point at which 75 % are better
    tolerance: float
    faults: tuple[str, ...]


def points_of(
    x: Tensor, noise: Noise, ball: Ball, chunk: int, classes: int, *, short: bool = False
) -> Points:
    """3 to 12 points near the images, inside the ball and on its edge; 3 if it is to be short."""
    count = 3 if short else max(3, min(12, chunk // 4))
    rows = [r % len(x) for r in range(count)]
    keys = Noise.of(0, range(count)).fold("gradient check")
    base = x.double()[rows]
    moved = ball.start(base, keys) if isinstance(ball, Norm) else base
    edge = ball.project(base + 2 * (moved - base), base)
    kind = torch.arange(count, device=x.device).div(len(x), rounding_mode="floor") % 3
    if len(x) >= count:
        kind = torch.arange(count, device=x.device) % 3
    kind = kind.view(-1, 1, 1, 1)
    at = torch.where(kind == 0, base, torch.where(kind == 1, moved, edge))
    size = min(0.01, ball.eps / 2) if isinstance(ball, Linf) else 0.01
    at = at + size * (2 * keys.uniform("jitter", 0, at) - 1)
    at = 1 - (1 - at.abs()).abs()  # reflected at 0 and 1: saturated areas have no ties
    return Points(at, noise[rows], keys.normal("cotangent", 0, at.new_zeros(count, classes)))


def measure(
    plain: Arithmetic, points: Points, chunk: int, tolerance: float | None, *, exact: bool
) -> Seen:
    """Compare the gradient with differences, and the attack's dtype and rows with it.

    Raises:
        NotFinite: the logits are not finite at any point.
        NoGradient: there is none, it is not finite, or it is zero at every point.
    """
    points = _finite(plain, points)
    single = _as_attacked(plain, points, chunk)
    fine = finest(plain, points.x[:2], points.noise[:2])
    own, _ = fine.gradient(points.x, points.noise, points.cotangent)
    for grad in (single, own):
        if not grad.isfinite().all():
            raise NoGradient("the gradient is not finite")
    if not single.any() and not own.any():
        raise NoGradient(f"the gradient is zero at all {len(own)} points")
    allowed = _TOLERANCE.get(fine.dtype, 0.2) if tolerance is None else tolerance
    faults, errors, jumped = [], [], 0
    for name in ("along the gradient", "along a random direction"):
        error, good, jumps = _errors(fine, points, own, name, allowed)
        errors.append(float(error.quantile(_SHARE)))
        if good.double().mean() < _SHARE and exact:
            faults.append(
                f"{name}, finite differences and the gradient disagree at "
                f"{int((~good).sum())} of {len(good)} points, by {errors[-1]:.1e}"
            )
        jumped += jumps
    if jumped >= 2 and exact:
        faults.append(f"the logits jump between points 1e-6 apart, in {jumped} places")
    faults += _apart(plain, fine, single, own, chunk) if exact else []
    return Seen(fine, plain, own, single, max(errors), allowed, tuple(faults))


def _finite(plain: Arithmetic, points: Points) -> Points:
    """The points at which the logits are finite: there is no slope at the others."""
    finite = plain.logits(points.x, points.noise).isfinite().all(1)
    if not finite.any():
        raise NotFinite(f"the logits are not finite at any of the {len(finite)} points looked at")
    rows = finite.nonzero()[:, 0]
    return Points(points.x[rows], points.noise[rows.tolist()], points.cotangent[rows])


def _as_attacked(plain: Arithmetic, points: Points, chunk: int) -> Tensor:
    """The gradient in the attack's dtype with `chunk` rows in one pass, (R, C, H, W)."""
    rows = torch.arange(max(chunk, len(points.x)), device=points.x.device) % len(points.x)
    keep = len(points.x)
    grad, _ = plain.gradient(points.x[rows], points.noise[rows], points.cotangent[rows])
    return grad[:keep]


def _errors(
    fine: Arithmetic, points: Points, own: Tensor, name: str, allowed: float
) -> tuple[Tensor, Tensor, int]:
    """Smallest relative error (R,), whether it is small enough (R,), and how many are jumps."""
    keys = Noise.of(0, range(len(own))).fold(name)
    v = own.sign() if name == "along the gradient" else keys.normal("v", 0, own).sign()
    steps = _STEPS.get(fine.dtype, _COARSE)
    inside = (points.x - steps[0] >= 0) & (points.x + steps[0] <= 1)
    v = torch.where(inside, v, 0.0)
    slope, norm = (own * v).flatten(1).sum(1), own.flatten(1).norm(dim=1)
    quotients, floors = [], []
    for h in steps:
        ahead, behind = (
            fine.logits(points.x + s * h * v, points.noise) * points.cotangent for s in (1, -1)
        )
        quotients.append((ahead - behind).sum(1) / (2 * h))
        floors.append(3 * ROUNDING[fine.dtype] * ahead.abs().sum(1) / h)
    found = torch.stack(quotients)
    scale = torch.maximum(torch.maximum(slope.abs(), norm), found.abs().median(0).values)
    rounding = torch.stack(floors)
    error = (found - slope).abs()
    unseen = rounding > 0.3 * scale  # a slope that rounding hides proves nothing
    good = ((error - rounding <= allowed * scale) & ~unseen).any(0)
    jumps = 0
    if fine.dtype == torch.float64:
        jumps = int((found.abs() > 100 * scale + 100 * rounding)[1:].sum())
    relative = torch.where(scale > 0, error.amin(0) / scale.clamp_min(1e-300), 0.0)
    return relative.nan_to_num(torch.inf), good, jumps


def _apart(
    plain: Arithmetic, fine: Arithmetic, single: Tensor, own: Tensor, chunk: int
) -> list[str]:
    """What is wrong with the gradient in the attack's dtype and rows, beside the fine one."""
    a, b = single.flatten(1), own.flatten(1)
    error = (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-300)
    allowed = 0.02 if plain.dtype in (torch.float32, torch.float64) else 0.3
    off = int((error > allowed).sum())
    if off <= (1 - _SHARE) * len(error):
        return []
    cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=1).median())
    kind = str(plain.dtype).removeprefix("torch.")
    return [
        f"with {chunk} rows in {kind} the gradient differs from that in {fine.name} at {off} of "
        f"{len(error)} points (median cosine {cosine:.3f})"
    ]
