"""Perceptual attacks: PPGD and LPA, bounded by a distance between a network's features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from depure.attacks.base import Attack, Heard, Watch
from depure.attacks.climb import pick, wide
from depure.attacks.expected import Average
from depure.attacks.features import FeatureDistance, Perceptual
from depure.attacks.model import Model
from depure.attacks.queries import check_ball, check_counts
from depure.attacks.search import Best, check_search, measured, settled
from depure.noise import Noise
from depure.threat import Ball

_TINY = 1e-10
_START = 0.01  # spread of the random start, as published: at the image the distance has no slope
_PROBE = 0.1  # length of the step by which LPA measures how fast the distance grows, as published


@dataclass(frozen=True)
class PPGD(Attack):
    """Perceptual PGD (Laidlaw et al., 2006.12655, algorithm 1) with EoT.

    Each step raises the loss most among those that change the features by `step`, to first
    order: it is (J'J)^-1 g, scaled, for the gradient g (EoT's) and the features' Jacobian J, by a
    few steps of conjugate gradients, and then a projection into the bound. Three things differ:
    products with J are exact rather than finite differences; J'J is damped by a thousandth of its
    size along g, since it is singular wherever a network is blind; the proposal is the iterate of
    lowest mean accuracy (of highest mean loss among equals) or the last, see `settled`.

    Args:
        steps: iterations; `steps + 1` gradients of the model, and 2 x 20 queries to settle, if the
            defence is random.
        step: length of a step in the distance; None takes 2 eps / steps, as published.
        conjugate: conjugate gradient steps in each, two passes of the comparing network each.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr"; published is the margin.
        random_start: begin at normal noise of spread 0.01, as published.
        chunk: rows per forward pass of the model, by the size of the images if None; affects
            speed and memory only.

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
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_search(self)
        check_counts(self, "conjugate")
        _check_step(self.step)

    @property
    def iterations(self) -> int:
        """How often `watch` is called."""
        return self.steps

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        ball = _perceptual(self, ball)
        step = 2.0 * ball.eps / self.steps if self.step is None else self.step
        here = _started(x, noise.fold("ppgd start"), self.random_start)
        here = ball.project(here, x)
        seen = measured(self, model, here, y, noise.fold("ppgd", 0))
        best = Best(here, seen)
        for i in range(self.steps):
            if watch is not None:
                watch(i, seen)
            move = steepest(ball.between, here, seen.grad, step, self.conjugate)
            moves = seen.finite & move.flatten(1).isfinite().all(1)
            here = pick(moves, ball.project(pick(moves, here + move, here), x), here)
            seen = measured(self, model, here, y, noise.fold("ppgd", i + 1))
            best = best.improved(here, seen)
        return settled(self, model, best.x, here, y, noise)


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
    g = grad / wide(torch.where(largest > 0, largest, 1.0), grad)
    jacobian = _Jacobian(distance, x)
    curved = jacobian.squared(g)
    damping = 1e-3 * _dot(g, curved) / _dot(g, g).clamp_min(_TINY)
    solution, rest, way = torch.zeros_like(g), g, g
    left = _dot(rest, rest)
    for _ in range(conjugate):
        pushed = jacobian.squared(way) + wide(damping, way) * way
        bend = _dot(way, pushed)
        going = (bend > 0.0) & (left > 0.0)
        share = torch.where(going, left / torch.where(going, bend, 1.0), 0.0)
        solution, rest = solution + wide(share, g) * way, rest - wide(share, g) * pushed
        before, left = left, _dot(rest, rest)
        way = rest + wide(torch.where(going, left / torch.where(going, before, 1.0), 0.0), g) * way
    change = jacobian.push(solution).norm(dim=1)
    scale = torch.where(change > 0.0, length / torch.where(change > 0.0, change, 1.0), 0.0)
    return wide(scale, g) * solution


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
class LPA(Attack):
    """Lagrangian perceptual attack (Laidlaw et al., 2006.12655, algorithm 2) with EoT.

    It climbs loss - lambda max(distance - eps, 0) by steps of the distance that shrink tenfold
    over a round; after a round, lambda grows tenfold for images outside the bound. Published
    rounds end at the first success, which one draw may be by luck: here all steps are taken, and
    among the iterates within the bound, the projected last one and the image itself, the one of
    lowest mean accuracy is proposed (of highest mean loss among equals), or the last, see
    `settled`.

    Args:
        steps: iterations of a round; there are `steps * rounds` in all, one gradient each.
        rounds: values of lambda, from 0.01.
        step: length of the first step in the distance; None takes eps, as published.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr"; published is the margin.
        random_start: begin at normal noise of spread 0.01, as published.
        chunk: rows per forward pass of the model, by the size of the images if None; affects
            speed and memory only.

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
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_search(self)
        check_counts(self, "rounds")
        _check_step(self.step)

    @property
    def heard(self) -> Heard:
        """Iterates in the bound or not."""
        return "search"

    @property
    def iterations(self) -> int:
        """How often `watch` is called."""
        return self.steps * self.rounds

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        ball = _perceptual(self, ball)
        full = ball.eps if self.step is None else self.step
        weight = torch.full_like(x[:, 0, 0, 0], 0.01)
        best = Best(x, measured(self, model, x, y, noise.fold("lpa image")))
        here = _started(x, noise.fold("lpa start"), self.random_start)
        with torch.no_grad():
            known = ball.between.features(x)
        for i in range(self.iterations):
            seen = measured(self, model, here, y, noise.fold("lpa", i))
            if watch is not None:
                watch(i, seen)
            apart, slope = ball.between.slope(here, known)
            outside = apart > ball.eps
            best = best.improved(here, seen, ~outside)
            grad = seen.grad - wide(weight * outside, x) * slope
            length = full * 0.1 ** (i % self.steps / self.steps)
            here = pick(seen.finite, _walk(ball, here, grad, length), here)
            if (i + 1) % self.steps == 0:
                far = ball.apart(here, x) > ball.eps
                weight = torch.where(far, 10.0 * weight, weight)
        last = ball.project(here, x)
        best = best.improved(last, measured(self, model, last, y, noise.fold("lpa last")))
        return settled(self, model, best.x, last, y, noise)


def _walk(ball: Perceptual, here: Tensor, grad: Tensor, length: float) -> Tensor:
    """A step up the gradient that is about so long in the distance, cut to [0, 1]."""
    norm = grad.flatten(1).norm(dim=1)
    way = grad / wide(torch.where(norm > 0, norm, 1.0), grad)
    speed = ball.apart(here + _PROBE * way, here) / _PROBE
    return (here + wide(length / (speed + 1e-8), way) * way).clamp(0.0, 1.0)


def _started(x: Tensor, noise: Noise, random: bool) -> Tensor:
    return (x + _START * noise.normal("start", 0, x)).clamp(0.0, 1.0) if random else x


def _perceptual(attack: Attack, ball: Ball) -> Perceptual:
    check_ball(attack, ball, (Perceptual,))
    return ball  # type: ignore[return-value]


def _check_step(step: float | None) -> None:
    if step is not None and not 0.0 < step < math.inf:
        raise ValueError(f"step must be positive and finite; got {step}")
