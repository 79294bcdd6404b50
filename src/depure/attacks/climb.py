"""The moving parts of APGD: where each image is, and how the next step is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from depure.attacks.expected import Expected
from depure.threat import Ball

_MOMENTUM = 0.75  # share of the new step (alpha in the paper); the rest repeats the last move


def better(accuracy: Tensor, loss: Tensor, old_accuracy: Tensor, old_loss: Tensor) -> Tensor:
    """Lower accuracy, or the same and a higher loss, if that is finite."""
    higher = ~(old_loss >= loss)  # also where the old one is NaN
    return (accuracy < old_accuracy) | ((accuracy == old_accuracy) & higher & loss.isfinite())


def pick(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """New values in some rows (B,) bool, the old ones elsewhere."""
    return torch.where(wide(rows, new), new, old)


def wide(values: Tensor, like: Tensor) -> Tensor:
    """One number per image, shaped to multiply `like`."""
    return values.view(-1, *[1] * (like.ndim - 1))


class Climb:
    """Where each image of a run is, came from, was best, and what it would propose."""

    def __init__(self, ball: Ball, x: Tensor, here: Tensor) -> None:
        self.ball, self.x = ball, x
        self.here = self.before = self.best = self.found = here
        self.grad = self.best_grad = torch.zeros_like(here)
        self.can_move = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.loss = self.found_loss = torch.full_like(here[:, 0, 0, 0], -torch.inf)
        self.accuracy = torch.full_like(self.loss, torch.inf)

    def note(self, seen: Expected) -> Expected:
        """Take in what was measured here, and hand it on."""
        self.grad, self.can_move = seen.grad, seen.finite
        lower = better(seen.accuracy, seen.loss, self.accuracy, self.found_loss)
        self.found = pick(lower, self.here, self.found)
        self.accuracy = pick(lower, seen.accuracy, self.accuracy)
        self.found_loss = pick(lower, seen.loss, self.found_loss)
        # A point to go back to needs a gradient to leave it by.
        higher = seen.finite & seen.loss.isfinite() & (seen.loss > self.loss)
        self.best = pick(higher, self.here, self.best)
        self.best_grad = pick(higher, seen.grad, self.best_grad)
        self.loss = pick(higher, seen.loss, self.loss)
        return seen

    def go_back(self, rows: Tensor) -> None:
        """Return to the best point and its gradient in some rows (B,) bool."""
        rows = rows & self.loss.isfinite()
        self.here = pick(rows, self.best, self.here)
        self.grad = pick(rows, self.best_grad, self.grad)
        self.can_move = self.can_move | rows

    def move(self, there: Tensor) -> None:
        """Go on to the next iterate where the gradient is finite."""
        self.here, self.before = pick(self.can_move, there, self.here), self.here


class Control(ABC):
    """Chooses the next iterates, and looks back at its choices from time to time."""

    @abstractmethod
    def step(self) -> Tensor:
        """The next iterates."""

    @abstractmethod
    def check(self, loss: Tensor) -> None:
        """Hear the losses (B,) there; perhaps adapt, and send images back to their best."""


class Halving(Control):
    """L-inf and L2: steps with momentum, halved where progress fails (2003.01690)."""

    def __init__(self, climb: Climb, steps: int, rho: float) -> None:
        self.climb, self.rho, self.age, self.share = climb, rho, 0, 1.0
        self.size = torch.full_like(climb.loss, 2.0 * climb.ball.eps)
        self.window, self.shortest = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
        self.shorter = max(int(0.03 * steps), 1)
        # The published program compares the first new loss with 0 rather than the start's.
        self.rises = self.last = torch.zeros_like(climb.loss)
        self.best, self.halved = climb.loss, torch.ones_like(climb.can_move)

    def step(self) -> Tensor:
        """Algorithm 1, lines 7 and 8 (the first step has no momentum)."""
        climb, ball, x = self.climb, self.climb.ball, self.climb.x
        full = ball.project(climb.here + wide(self.size, x) * ball.ascend(climb.grad), x)
        share, self.share = self.share, _MOMENTUM
        last = climb.here - climb.before
        return ball.project(climb.here + share * (full - climb.here) + (1.0 - share) * last, x)

    def check(self, loss: Tensor) -> None:
        """Halve after too few rises, or without a new best at a size kept at the last check."""
        self.rises, self.last, self.age = self.rises + (loss > self.last), loss, self.age + 1
        if self.age < self.window:
            return
        stuck = ~self.halved & (self.best >= self.climb.loss)
        self.halved = stuck | (self.rises <= self.window * self.rho)
        self.size = torch.where(self.halved, self.size / 2.0, self.size)
        self.climb.go_back(self.halved)
        self.best, self.age, self.rises = self.climb.loss, 0, torch.zeros_like(loss)
        self.window = max(self.window - self.shorter, self.shortest)


class Sparse(Control):
    """L1: equal changes of the pixels with the largest gradients, as many as pay (2103.01208)."""

    def __init__(self, climb: Climb, steps: int, *, warm: bool) -> None:
        self.climb, self.age, self.window = climb, 0, max(int(0.04 * steps), 1)
        self.longest = climb.ball.eps
        self.size = torch.full_like(climb.loss, self.longest)
        self.pixels = climb.x[0].numel()
        self.changed = torch.full_like(climb.loss, self.pixels)
        self.share = torch.full_like(climb.loss, 0.2)
        if warm:
            changed = self._count(climb.here)
            self.share = torch.where(changed > 0, changed / self.pixels / 1.5, self.share)
            self.changed = torch.where(changed > 0, changed, self.changed)

    def _count(self, x_adv: Tensor) -> Tensor:
        return (x_adv != self.climb.x).flatten(1).sum(1).to(x_adv.dtype)

    def step(self) -> Tensor:
        """A step of L1 norm `size` along the signs of the largest entries."""
        climb, steepness = self.climb, self.climb.grad.flatten(1).abs()
        place = ((1.0 - self.share) * self.pixels).clamp(0, self.pixels - 1).long()
        least = steepness.sort(1).values.gather(1, place[:, None])
        signs = climb.grad.sign() * (steepness >= least).view_as(climb.grad)
        length = self.size / signs.flatten(1).abs().sum(1).clamp_min(1.0)
        return climb.ball.project(climb.here + wide(length, signs) * signs, climb.x)

    def check(self, loss: Tensor) -> None:
        """Start over from the best, at full size, where it is sparser; else shorten the step."""
        self.age += 1
        if self.age < self.window:
            return
        changed = self._count(self.climb.best)
        sparser = (changed / self.changed) < 0.95
        self.share = changed / self.pixels / 1.5
        self.size = torch.where(sparser, self.longest, self.size / 1.5).clamp_min(self.longest / 10)
        self.climb.go_back(sparser)
        self.changed, self.age = changed, 0
