"""A gradient beside difference quotients, point by point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from depure.evaluation.gradient_check.arithmetic import (
    ROUNDING,
    Arithmetic,
    NoGradient,
    NotFinite,
    finest,
    first_that_runs,
    or_plain,
)
from depure.noise import Noise
from depure.threat import Ball, Linf, Norm

_STEPS = {torch.float64: (1e-6, 1e-7, 1e-5)}  # the best first, for who has few
_COARSE = (3e-3, 1e-2, 1e-3)
_DIRECTIONS = ("along the gradient", "along a random direction")
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 0.05}
SHORT_CHAIN = 20  # network calls
_SHARE = 0.75  # of the points must agree: a kink may lie at the others


@dataclass(frozen=True)
class Effort:
    """How much is looked at, in rows through the defence."""

    points: int
    directions: int
    steps: int
    probed: int  # points at which float64 is tried first
    own: bool = True  # whether float64 gradients are taken; else those of the attack serve
    stepwise: bool = True  # whether plain autograd through all steps is compared

    @staticmethod
    def of(chunk: int, calls: int, *, short: bool, exact: bool) -> Effort:
        """All there is for short chains; within 4 gradients of `chunk` rows for longer ones.

        A forward pass is counted as if it cost what a gradient does. One row has told how many
        classes there are and `chunk` rows are the attack's gradient, so 3 chunk - 1 are left. One
        row alone with an approximate gradient has one more, for the exact gradient beside it.
        """
        if calls <= SHORT_CHAIN:
            return Effort(3 if short else max(3, min(12, chunk // 4)), 2, 3, 2)
        if chunk == 1:
            return Effort(1, 1, 1, 0, own=False, stepwise=not exact)
        probed = 0 if chunk < 4 else 1
        left, gradients = 3 * chunk - 1 - 8 * probed, 1 if exact else 2
        most = 3 if short else 12
        for directions, steps in ((2, 3), (2, 2), (2, 1)):
            points = min(most, left // (gradients + 2 * directions * steps))
            if points >= 3:
                return Effort(points, directions, steps, probed, stepwise=not exact)
        for directions, steps in ((2, 2), (2, 1), (1, 1)):
            points = min(most, left // (gradients + 2 * directions * steps))
            if points >= 1:
                return Effort(points, directions, steps, probed, stepwise=not exact)
        return Effort(1, 1, 1, probed, own=False, stepwise=not exact)

    def rows(self, chunk: int) -> int:
        """Rows through the defence, about."""
        quotients = 2 * self.directions * self.steps
        return max(chunk, self.points) + self.points * (2 + quotients) + 4 * self.probed


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
    points: Points  # those with finite logits


def points_of(x: Tensor, noise: Noise, ball: Ball, count: int, classes: int) -> Points:
    """`count` points near the images, inside the ball and on its edge."""
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
    plain: Arithmetic, points: Points, chunk: int, tolerance: float | None, effort: Effort,
    *, exact: bool,
) -> Seen:  # fmt: skip
    """Compare the gradient with differences, and the attack's dtype and rows with it.

    Raises:
        NotFinite: the logits are not finite at any point.
        NoGradient: there is none, it is not finite, or it is zero at every point.
    """
    points, attacked = _as_attacked(plain, points, chunk)
    single = attacked[: len(points.x)]
    if effort.probed:
        fine = finest(plain, points.x[: effort.probed], points.noise[: effort.probed])
    else:
        fine = first_that_runs(plain)
    own = single
    if effort.own:
        fine, (own, _) = or_plain(
            fine, plain, lambda a: a.gradient(points.x, points.noise, points.cotangent)
        )
    for grad in (attacked, own):
        if not grad.isfinite().all():
            raise NoGradient("the gradient is not finite")
    if not single.any() and not own.any():
        raise NoGradient(f"the gradient is zero at all {len(own)} points")
    allowed = 0.0
    faults, errors, jumped = [], [], 0
    for name in _DIRECTIONS[: effort.directions]:
        compared = partial(
            _errors, points=points, own=own, name=name, tolerance=tolerance, effort=effort
        )
        fine, (error, good, jumps, allowed) = or_plain(fine, plain, compared)
        errors.append(float(error.quantile(_SHARE)))
        if good.double().mean() < _SHARE and exact:
            faults.append(
                f"{name}, finite differences and the gradient disagree at "
                f"{int((~good).sum())} of {len(good)} points, by {errors[-1]:.1e}"
            )
        jumped += jumps
    if jumped >= 2 and exact:
        faults.append(f"the logits jump between points 1e-6 apart, in {jumped} places")
    faults += _apart(plain, fine, attacked, own, chunk) if exact else []
    return Seen(fine, plain, own, single, max(errors), allowed, tuple(faults), points)


def _as_attacked(plain: Arithmetic, points: Points, chunk: int) -> tuple[Points, Tensor]:
    """The points with finite logits, and the gradients there as the attack takes them.

    These are in its dtype and with `chunk` rows in one pass, in which the points come in turn.
    """
    keep = len(points.x)
    rows = torch.arange(max(chunk, keep), device=points.x.device) % keep
    grad, logits = plain.gradient(
        points.x[rows], points.noise[rows.tolist()], points.cotangent[rows]
    )
    finite = logits[:keep].isfinite().all(1)
    if not finite.any():
        raise NotFinite(f"the logits are not finite at any of the {keep} points looked at")
    kept = finite.nonzero()[:, 0]
    here = kept.tolist()
    found = Points(points.x[kept], points.noise[here], points.cotangent[kept])
    return found, grad if len(kept) == keep else grad[kept]


def _errors(
    fine: Arithmetic, points: Points, own: Tensor, name: str, tolerance: float | None,
    effort: Effort,
) -> tuple[Tensor, Tensor, int, float]:  # fmt: skip
    """Smallest relative error (R,), whether it is small enough (R,), how many jump, tolerance."""
    allowed = tolerance_of(fine, own=effort.own) if tolerance is None else tolerance
    keys = Noise.of(0, range(len(own))).fold(name)
    v = own.sign() if name == "along the gradient" else keys.normal("v", 0, own).sign()
    steps = _STEPS.get(fine.dtype, _COARSE)[: effort.steps]
    far = max(steps)
    inside = (points.x - far >= 0) & (points.x + far <= 1)
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
        near = [i for i, h in enumerate(steps) if h <= 1e-6]
        jumps = int((found.abs() > 100 * scale + 100 * rounding)[near].sum())
    relative = torch.where(scale > 0, error.amin(0) / scale.clamp_min(1e-300), 0.0)
    return relative.nan_to_num(torch.inf), good, jumps, allowed


def tolerance_of(fine: Arithmetic, *, own: bool) -> float:
    """Largest relative error; wider if a gradient of another dtype is compared."""
    return _TOLERANCE.get(fine.dtype, 0.2) if own else max(0.02, _TOLERANCE.get(fine.dtype, 0.2))


def _apart(
    plain: Arithmetic, fine: Arithmetic, attacked: Tensor, own: Tensor, chunk: int
) -> list[str]:
    """What is wrong with the gradient in the attack's dtype and rows, beside the fine one."""
    turns = torch.arange(len(attacked), device=own.device) % len(own)
    a, b = attacked.flatten(1), own[turns].flatten(1)
    error = (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-300)
    allowed = 0.02 if plain.dtype in (torch.float32, torch.float64) else 0.3
    off = int((error > allowed).sum())
    if off <= (1 - _SHARE) * len(error):
        return []
    cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=1).median())
    kind = str(plain.dtype).removeprefix("torch.")
    return [
        f"with {chunk} rows in {kind} the gradient differs from that in {fine.name} at {off} of "
        f"{len(error)} rows (median cosine {cosine:.3f})"
    ]
