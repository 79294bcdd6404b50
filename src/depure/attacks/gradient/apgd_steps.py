"""The moving parts of APGD: where each image is, and how the next step is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from depure.attacks.asking.gradients import Expected
from depure.attacks.case import is_better
from depure.rows import per_image, where_rows
from depure.threat.balls import Norm

_MOMENTUM = 0.75  # weight of the new step (alpha in the paper); the rest repeats the last move


class APGDState:
    """Where each image of a run is, came from, was best, and what it would propose."""

    def __init__(self, ball: Norm, x: Tensor, point: Tensor) -> None:
        self.ball, self.x = ball, x
        self.point = self.previous = self.best = self.proposal = point
        self.grad = self.best_grad = torch.zeros_like(point)
        self.can_move = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.loss = self.proposal_loss = torch.full_like(point[:, 0, 0, 0], -torch.inf)
        self.accuracy = torch.full_like(self.loss, torch.inf)

    def note(self, seen: Expected) -> Expected:
        """Take in what was measured at the point, and hand it on."""
        self.grad, self.can_move = seen.grad, seen.finite
        lower = is_better(seen.accuracy, seen.loss, self.accuracy, self.proposal_loss)
        self.proposal = where_rows(lower, self.point, self.proposal)
        self.accuracy = where_rows(lower, seen.accuracy, self.accuracy)
        self.proposal_loss = where_rows(lower, seen.loss, self.proposal_loss)
        # A point to go back to needs a gradient to leave it by.
        higher = seen.finite & seen.loss.isfinite() & (seen.loss > self.loss)
        self.best = where_rows(higher, self.point, self.best)
        self.best_grad = where_rows(higher, seen.grad, self.best_grad)
        self.loss = where_rows(higher, seen.loss, self.loss)
        return seen

    def go_back(self, rows: Tensor) -> None:
        """Return to the best point and its gradient in some rows (B,) bool."""
        rows = rows & self.loss.isfinite()
        self.point = where_rows(rows, self.best, self.point)
        self.grad = where_rows(rows, self.best_grad, self.grad)
        self.can_move = self.can_move | rows

    def move(self, moved: Tensor) -> None:
        """Go on to the next iterate where the gradient is finite."""
        self.point, self.previous = where_rows(self.can_move, moved, self.point), self.point


class StepRule(ABC):
    """Chooses the next iterates, and looks back at its choices from time to time."""

    @abstractmethod
    def step(self) -> Tensor:
        """The next iterates."""

    @abstractmethod
    def check(self, loss: Tensor) -> None:
        """Update the step sizes from the new losses (B,); reset images that stopped improving."""


class Halving(StepRule):
    """L-inf and L2: steps with momentum, halved where progress fails (2003.01690)."""

    def __init__(self, state: APGDState, steps: int, rho: float) -> None:
        self.state, self.rho, self.age, self.alpha = state, rho, 0, 1.0
        self.size = torch.full_like(state.loss, 2.0 * state.ball.eps)
        self.window, self.shortest = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
        self.shorter = max(int(0.03 * steps), 1)
        # The published program compares the first new loss with 0 rather than the start's.
        self.rises = self.last = torch.zeros_like(state.loss)
        self.best, self.halved = state.loss, torch.ones_like(state.can_move)

    def step(self) -> Tensor:
        """Algorithm 1, lines 7 and 8 (the first step has no momentum)."""
        state, ball, x = self.state, self.state.ball, self.state.x
        full = ball.project(state.point + per_image(self.size, x) * ball.ascend(state.grad), x)
        alpha, self.alpha = self.alpha, _MOMENTUM
        last = state.point - state.previous
        return ball.project(state.point + alpha * (full - state.point) + (1.0 - alpha) * last, x)

    def check(self, loss: Tensor) -> None:
        """Halve after too few rises, or without a new best at a size kept at the last check."""
        self.rises, self.last, self.age = self.rises + (loss > self.last), loss, self.age + 1
        if self.age < self.window:
            return
        stuck = ~self.halved & (self.best >= self.state.loss)
        self.halved = stuck | (self.rises <= self.window * self.rho)
        self.size = torch.where(self.halved, self.size / 2.0, self.size)
        self.state.go_back(self.halved)
        self.best, self.age, self.rises = self.state.loss, 0, torch.zeros_like(loss)
        self.window = max(self.window - self.shorter, self.shortest)


class Sparse(StepRule):
    """L1: equal changes of the pixels with the largest gradients, as many as pay (2103.01208)."""

    def __init__(self, state: APGDState, steps: int, *, warm: bool) -> None:
        self.state, self.age, self.window = state, 0, max(int(0.04 * steps), 1)
        self.longest = state.ball.eps
        self.size = torch.full_like(state.loss, self.longest)
        self.pixels = state.x[0].numel()
        self.changed = torch.full_like(state.loss, self.pixels)
        self.density = torch.full_like(state.loss, 0.2)
        if warm:
            changed = self._count(state.point)
            self.density = torch.where(changed > 0, changed / self.pixels / 1.5, self.density)
            self.changed = torch.where(changed > 0, changed, self.changed)

    def _count(self, x_adv: Tensor) -> Tensor:
        return (x_adv != self.state.x).flatten(1).sum(1).to(x_adv.dtype)

    def step(self) -> Tensor:
        """A step of L1 norm `size` along the signs of the largest entries."""
        state, steepness = self.state, self.state.grad.flatten(1).abs()
        place = ((1.0 - self.density) * self.pixels).clamp(0, self.pixels - 1).long()
        least = steepness.sort(1).values.gather(1, place[:, None])
        signs = state.grad.sign() * (steepness >= least).view_as(state.grad)
        length = self.size / signs.flatten(1).abs().sum(1).clamp_min(1.0)
        return state.ball.project(state.point + per_image(length, signs) * signs, state.x)

    def check(self, loss: Tensor) -> None:
        """Start over from the best, at full size, where it is sparser; else shorten the step."""
        self.age += 1
        if self.age < self.window:
            return
        changed = self._count(self.state.best)
        sparser = (changed / self.changed) < 0.95
        self.density = changed / self.pixels / 1.5
        self.size = torch.where(sparser, self.longest, self.size / 1.5).clamp_min(self.longest / 10)
        self.state.go_back(sparser)
        self.changed, self.age = changed, 0
