"""Ascent on the parameters of an image change, shared by attacks beyond pixel balls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from depure.attacks.base import Attack, Watch
from depure.attacks.climb import better, pick
from depure.attacks.expected import JUDGE_DRAWS, Average, Expected, expected_grad
from depure.attacks.losses import LOSSES
from depure.attacks.model import Model
from depure.attacks.queries import ask, check_counts, is_random
from depure.noise import Noise

_BETAS = (0.9, 0.999)
_TINY = 1e-8  # Adam's
_CORNER = 1e-10  # rounds off the corner of a norm at 0, as published


def variation(field: Tensor) -> Tensor:
    """Total variation (B,) of vectors (B, V, ...) on a grid: distances of all neighbours, twice."""
    total = field.new_zeros(len(field))
    for axis in range(2, field.ndim):
        steps = field.diff(dim=axis).square().sum(1)
        total = total + 2.0 * (steps + _CORNER).sqrt().flatten(1).sum(1)
    return total


def measured(attack: Attack, model: Model, x: Tensor, y: Tensor, noise: Noise) -> Expected:
    """What an attack with the settings loss, eot, average and chunk measures at some images."""
    settings = (getattr(attack, name) for name in ("loss", "eot", "average", "chunk"))
    loss, eot, average, chunk = settings
    return expected_grad(model, x, y, LOSSES[loss], noise, eot, average=average, chunk=chunk)


def settled(
    attack: Attack, model: Model, best: Tensor, last: Tensor, y: Tensor, noise: Noise
) -> Tensor:
    """The best iterate or the last one, whichever does better on fresh draws common to both.

    The best of many was chosen on the few draws that it met, and may owe more to luck than the
    last, which has had the most steps. They are compared as others are: mean accuracy, then mean
    margin, on 20 draws or `eot`, if that is more. If nothing is random, the best is the best.
    """
    if not is_random(model, noise):
        return best
    draws, chunk = max(JUDGE_DRAWS, getattr(attack, "eot", 1)), getattr(attack, "chunk", None)
    return improved(model, best, last, y, noise.fold("settle"), draws, chunk)


def improved(
    model: Model, old: Tensor, new: Tensor, y: Tensor, noise: Noise, draws: int, chunk: int | None
) -> Tensor:
    """The new images where they beat the old ones on draws common to both.

    That is a lower mean accuracy, or an equal one and a larger mean margin.
    """
    answer = ask(model, torch.stack([old, new], 1), y, noise, draws, chunk)
    (before, after), (low, high) = answer.accuracy.unbind(1), answer.margin.unbind(1)
    return pick(better(after, high, before, low), new, old)


@dataclass(frozen=True, eq=False)
class Search:
    """Ascent on parameters of an image change, each image with an Adam of its own.

    Args:
        make: parameters (B, ...) to images (B, C, H, W), differentiable, row by row.
        project: parameters into their bound.
        penalty: parameters to what is taken off the loss, (B,).
        measure: iteration and images to their loss and gradient.
        settle: the best and the last images to those proposed, see `settled`.
        lr: learning rate, a number or one for each parameter.
    """

    make: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor]
    measure: Callable[[int, Tensor], Expected]
    settle: Callable[[Tensor, Tensor], Tensor]
    lr: float | Tensor

    def images(self, params: Tensor) -> Tensor:
        """Images in [0, 1], from which interpolation may stray by rounding."""
        with torch.no_grad():
            return self.make(params).clamp(0.0, 1.0)

    def run(self, params: Tensor, steps: int, watch: Watch | None) -> Tensor:
        """The images (B, C, H, W) proposed after `steps` steps from these parameters."""
        adam, here = Adam.like(params), self.images(params)
        seen = self.measure(0, here)
        best = Best(here, seen)
        for i in range(steps):
            if watch is not None:
                watch(i, seen)
            grad = pull_back(self.make, params, seen.grad, self.penalty)
            moves = seen.finite & grad.flatten(1).isfinite().all(1)
            adam = adam.heard(grad, moves)
            params = pick(moves, self.project(params + self.lr * adam.step()), params)
            here = self.images(params)
            seen = self.measure(i + 1, here)
            best = best.improved(here, seen)
        return self.settle(best.x, here)


def pull_back(
    make: Callable[[Tensor], Tensor],
    params: Tensor,
    grad: Tensor,
    penalty: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Gradient of loss(make(params)) - penalty(params) by params, given the loss's by the image.

    The chain rule: a vector-Jacobian product of `make` with the image gradient (B, C, H, W).
    """
    with torch.enable_grad():
        leaf = params.detach().requires_grad_()
        value = (make(leaf) * grad).sum()
        if penalty is not None:
            value = value - penalty(leaf).sum()
        (pulled,) = torch.autograd.grad(value, leaf)
    return pulled


@dataclass(frozen=True, eq=False)
class Best:
    """The best images so far: of lowest mean accuracy, of highest mean loss among equals."""

    x: Tensor
    seen: Expected

    def improved(self, x: Tensor, seen: Expected, allowed: Tensor | None = None) -> Best:
        """With the new images wherever they are better (and allowed, (B,) bool)."""
        wins = better(seen.accuracy, seen.loss, self.seen.accuracy, self.seen.loss)
        wins = wins if allowed is None else wins & allowed
        both = zip(seen, self.seen, strict=True)
        return Best(pick(wins, x, self.x), Expected(*(pick(wins, n, o) for n, o in both)))


@dataclass(frozen=True, eq=False)
class Adam:
    """Adam (Kingma & Ba, 1412.6980, algorithm 1), up the gradient, one for each row."""

    first: Tensor
    second: Tensor
    heard_of: Tensor  # (B,), gradients so far

    @staticmethod
    def like(params: Tensor) -> Adam:
        """At its beginning."""
        zero = torch.zeros_like(params)
        return Adam(zero, zero, torch.zeros_like(params.flatten(1)[:, 0]))

    def heard(self, grad: Tensor, rows: Tensor) -> Adam:
        """With a gradient taken in for some rows (B,) bool."""
        a, b = _BETAS
        first = pick(rows, a * self.first + (1.0 - a) * grad, self.first)
        second = pick(rows, b * self.second + (1.0 - b) * grad.square(), self.second)
        return replace(self, first=first, second=second, heard_of=self.heard_of + rows)

    def step(self) -> Tensor:
        """The step of learning rate 1; 0 before the first gradient."""
        count = self.heard_of.clamp_min(1.0).view(-1, *[1] * (self.first.ndim - 1))
        mean = self.first / (1.0 - _BETAS[0] ** count)
        spread = self.second / (1.0 - _BETAS[1] ** count)
        return mean / (spread.sqrt() + _TINY)


def check_search(attack: Attack) -> None:
    """Raise ValueError unless steps, eot, lr, smooth, loss and average are in range, where set."""
    check_counts(attack, "steps", "eot")
    for name, open_ in (("lr", True), ("smooth", False)):
        value = getattr(attack, name, 1.0)
        if value is None and name == "lr":  # the ball's own
            continue
        if not (0.0 <= value < math.inf) or (open_ and value == 0.0):
            least = "positive" if open_ else "at least 0"
            raise ValueError(f"{name} must be {least} and finite; got {value}")
    for name, allowed in (("loss", tuple(LOSSES)), ("average", get_args(Average))):
        value = getattr(attack, name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
