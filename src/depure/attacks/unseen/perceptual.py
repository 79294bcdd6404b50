"""Perceptual attacks: PPGD and LPA, bounded by a distance between a network's features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depure.attacks.ascent import Best
from depure.attacks.asking.gradients import Average
from depure.attacks.base import TraceOf, Watch
from depure.attacks.case import Case
from depure.attacks.settings import check_count, check_rate
from depure.attacks.unseen.search import UnseenAttack
from depure.networks.features.distance import FeatureDistance
from depure.rows import per_image, where_rows
from depure.threat.balls import Ball
from depure.threat.unseen import Perceptual

_TINY = 1e-10
_START = 0.01  # spread of the random start, as published: at the image the distance has no slope
_PROBE = 0.1  # length of the step by which LPA measures how fast the distance grows, as published


class _PerceptualAttack(UnseenAttack):
    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """`Perceptual` alone."""
        return (Perceptual,)


@dataclass(frozen=True)
class PPGD(_PerceptualAttack):
    """Perceptual PGD (Laidlaw et al., 2006.12655, algorithm 1) with EoT.

    Each step raises the loss most among those that change the features by `step`, to first
    order: it is (J'J)^-1 g, scaled, for the gradient g (EoT's) and the features' Jacobian J, by a
    few steps of conjugate gradients, and then a projection into the bound. Three things differ:
    products with J are exact rather than finite differences; J'J is damped by a thousandth of its
    size along g, since it is singular wherever a network is blind; the proposal is the iterate of
    lowest mean accuracy (of highest mean loss among equals) or the last, see `Case.fresh`.

    Args:
        steps: iterations; `steps + 1` gradients of the model, and 2 x 20 queries to settle, if the
            defence is random.
        step: length of a step in the distance; None takes 2 eps / steps, as published.
        conjugate: conjugate gradient steps in each, two passes of the comparing network each.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr"; published is the margin.
        random_start: begin at normal noise of spread 0.01, as published.

    Raises:
        ValueError: a setting is out of range; at the call, for any ball but `Perceptual`.
    """

    steps: int = 40
    step: float | None = None
    conjugate: int = 5
    eot: int = 20
    average: Average = "gradients"
    loss: str = "margin"
    random_start: bool = True

    def __post_init__(self) -> None:
        self.check()
        check_count("conjugate", self.conjugate)
        check_rate("step", self.step)

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        ball, metric = case.ball, _metric(case)
        step = 2.0 * ball.eps / self.steps if self.step is None else self.step
        point = ball.project(_start(case, "ppgd start", self.random_start), case.x)
        seen = self.measured(case, point, "ppgd", 0)
        best = Best(point, seen)
        for i in range(self.steps):
            watch.iteration(seen)
            move = steepest(metric, point, seen.grad, step, self.conjugate)
            moves = seen.finite & move.flatten(1).isfinite().all(1)
            moved = ball.project(where_rows(moves, point + move, point), case.x)
            point = where_rows(moves, moved, point)
            seen = self.measured(case, point, "ppgd", i + 1)
            best = best.or_better(point, seen)
        return case.fresh(best.x, point, self.eot)


def steepest(
    distance: FeatureDistance, x: Tensor, grad: Tensor, length: float, conjugate: int
) -> Tensor:
    """The step (B, C, H, W) that raises a linear loss most for a change of features of `length`.

    Zero where the gradient is; see `PPGD`.
    """
    return torch.cat([
        _steepest(distance, x[part], grad[part], length, conjugate) for part in distance.parts(x)
    ])  # fmt: skip


def _steepest(
    distance: FeatureDistance, x: Tensor, grad: Tensor, length: float, conjugate: int
) -> Tensor:
    largest = grad.flatten(1).abs().amax(1)
    g = grad / per_image(torch.where(largest > 0, largest, 1.0), grad)
    jacobian = _Jacobian(distance, x)
    curved = jacobian.squared(g)
    damping = 1e-3 * _dot(g, curved) / _dot(g, g).clamp_min(_TINY)
    solution, rest, way = torch.zeros_like(g), g, g
    left = _dot(rest, rest)
    for _ in range(conjugate):
        pushed = jacobian.squared(way) + per_image(damping, way) * way
        bend = _dot(way, pushed)
        going = (bend > 0.0) & (left > 0.0)
        share = torch.where(going, left / torch.where(going, bend, 1.0), 0.0)
        solution, rest = solution + per_image(share, g) * way, rest - per_image(share, g) * pushed
        before, left = left, _dot(rest, rest)
        way = (
            rest
            + per_image(torch.where(going, left / torch.where(going, before, 1.0), 0.0), g) * way
        )
    change = jacobian.push(solution).norm(dim=1)
    scale = torch.where(change > 0.0, length / torch.where(change > 0.0, change, 1.0), 0.0)
    return per_image(scale, g) * solution


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


class _Jacobian:
    """The Jacobian J of the features at some images, by products with vectors."""

    def __init__(self, distance: FeatureDistance, x: Tensor) -> None:
        with torch.enable_grad():
            self.leaf = x.detach().requires_grad_()
            self.out = distance.features(self.leaf)
            # J'u is linear in u, so its derivative by u along v is J v.
            self.u = torch.zeros_like(self.out).requires_grad_()
            (self.pulled,) = torch.autograd.grad(self.out, self.leaf, self.u, create_graph=True)

    def push(self, v: Tensor) -> Tensor:
        """J v, (B, D)."""
        return torch.autograd.grad(self.pulled, self.u, v, retain_graph=True)[0]

    def squared(self, v: Tensor) -> Tensor:
        """J'J v, of the images' shape."""
        return torch.autograd.grad(self.out, self.leaf, self.push(v), retain_graph=True)[0]


@dataclass(frozen=True)
class LPA(_PerceptualAttack):
    """Lagrangian perceptual attack (Laidlaw et al., 2006.12655, algorithm 2) with EoT.

    It climbs loss - lambda max(distance - eps, 0) by steps of the distance that shrink tenfold
    over a round; after a round, lambda grows tenfold for images outside the bound. Published
    rounds end at the first success, which one draw may be by luck: here all steps are taken, and
    among the iterates within the bound, the projected last one and the image itself, the one of
    lowest mean accuracy is proposed (of highest mean loss among equals), or the last, see
    `Case.fresh`.

    Args:
        steps: iterations of a round; there are `steps * rounds` in all, one gradient each.
        rounds: values of lambda, from 0.01.
        step: length of the first step in the distance; None takes eps, as published.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr"; published is the margin.
        random_start: begin at normal noise of spread 0.01, as published.

    Raises:
        ValueError: a setting is out of range; at the call, for any ball but `Perceptual`.
    """

    steps: int = 20
    rounds: int = 5
    step: float | None = None
    eot: int = 20
    average: Average = "gradients"
    loss: str = "margin"
    random_start: bool = True

    def __post_init__(self) -> None:
        self.check()
        check_count("rounds", self.rounds)
        check_rate("step", self.step)

    @property
    def trace_of(self) -> TraceOf:
        """Iterates in the bound or not."""
        return "other model"

    def trace_length(self, case: Case) -> int:
        """Iterations of all rounds."""
        return self.steps * self.rounds

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        x, ball, metric = case.x, case.ball, _metric(case)
        full = ball.eps if self.step is None else self.step
        weight = torch.full_like(x[:, 0, 0, 0], 0.01)
        best = Best(x, self.measured(case, x, "lpa image"))
        point = _start(case, "lpa start", self.random_start)
        with torch.no_grad():
            reference = metric.features(x)
        for i in range(self.steps * self.rounds):
            seen = self.measured(case, point, "lpa", i)
            watch.iteration(seen)
            distance, slope = metric.slope(point, reference)
            outside = distance > ball.eps
            best = best.or_better(point, seen, ~outside)
            grad = seen.grad - per_image(weight * outside, x) * slope
            length = full * 0.1 ** (i % self.steps / self.steps)
            point = where_rows(seen.finite, _stepped(metric, point, grad, length), point)
            if (i + 1) % self.steps == 0:
                with torch.no_grad():
                    far = metric(point, x) > ball.eps
                weight = torch.where(far, 10.0 * weight, weight)
        last = ball.project(point, x)
        best = best.or_better(last, self.measured(case, last, "lpa last"))
        return case.fresh(best.x, last, self.eot)


@torch.no_grad()
def _stepped(metric: FeatureDistance, point: Tensor, grad: Tensor, length: float) -> Tensor:
    """A step up the gradient that is about so long in the distance, cut to [0, 1]."""
    norm = grad.flatten(1).norm(dim=1)
    direction = grad / per_image(torch.where(norm > 0, norm, 1.0), grad)
    speed = metric(point + _PROBE * direction, point) / _PROBE
    return (point + per_image(length / (speed + 1e-8), direction) * direction).clamp(0.0, 1.0)


def _start(case: Case, name: str, random: bool) -> Tensor:
    """The image, or normal noise about it."""
    if not random:
        return case.x
    z = case.noise.fold(name).normal("start", 0, case.x)
    return (case.x + _START * z).clamp(0.0, 1.0)


def _metric(case: Case) -> FeatureDistance:
    assert isinstance(case.ball, Perceptual)  # its `balls` says so
    return case.ball.metric
