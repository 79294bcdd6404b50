"""Ascent on the parameters of an image change, shared by attacks beyond pixel balls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from depure.attacks.ascent import Adam, Best
from depure.attacks.asking.gradients import Average, Expected
from depure.attacks.base import Iterated, Watch
from depure.attacks.case import Case, Key
from depure.attacks.settings import check_count, check_loss, check_rate, check_weight
from depure.rows import where_rows

_CORNER = 1e-10  # rounds off the corner of a norm at 0, as published


class UnseenAttack(Iterated):
    """An attack beyond norms of the pixel change, which raises a named loss in expectation."""

    eot: int
    average: Average
    loss: str

    def measured(self, case: Case, points: Tensor, name: str, *numbers: int) -> Expected:
        """Loss, gradient and accuracy at some images (B, C, H, W), under noise of that name."""
        key: Key = (name, *numbers)
        return case.gradient(points, self.loss, self.eot, key, average=self.average)

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        check_count("steps", self.steps)
        check_count("eot", self.eot)
        check_loss(self.loss, self.average)


class Search(UnseenAttack):
    """Ascent on parameters of an image change, each image with an Adam of its own."""

    smooth: float
    lr: float | None

    @abstractmethod
    def change(self, case: Case) -> Change:
        """What it moves."""

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        change = self.change(case)
        params, adam = change.start, Adam.like(change.start)
        point = change.images(params)
        seen = self.measured(case, point, change.name, 0)
        best = Best(point, seen)
        for i in range(self.steps):
            watch.iteration(seen)
            grad = pull_back(change.make, params, seen.grad, self._penalty)
            moves = seen.finite & grad.flatten(1).isfinite().all(1)
            adam = adam.updated(grad, moves)
            params = where_rows(moves, change.project(params + change.lr * adam.step()), params)
            point = change.images(params)
            seen = self.measured(case, point, change.name, i + 1)
            best = best.or_better(point, seen)
        return case.fresh(best.x, point, self.eot)

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        super().check()
        check_rate("lr", self.lr)
        check_weight("smooth", self.smooth)

    def _penalty(self, params: Tensor) -> Tensor:
        return self.smooth * variation(params)


@dataclass(frozen=True, eq=False)
class Change:
    """A change of images by parameters (B, ...).

    Args:
        name: of its noise.
        make: parameters to images (B, C, H, W), differentiable, row by row.
        project: parameters into their bound.
        start: the first parameters.
        lr: learning rate.
    """

    name: str
    make: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    start: Tensor
    lr: float

    def images(self, params: Tensor) -> Tensor:
        """Images in [0, 1], from which interpolation may stray by rounding."""
        with torch.no_grad():
            return self.make(params).clamp(0.0, 1.0)


def variation(field: Tensor) -> Tensor:
    """Total variation (B,) of vectors (B, V, ...) on a grid: distances of all neighbours, twice."""
    total = field.new_zeros(len(field))
    for axis in range(2, field.ndim):
        steps = field.diff(dim=axis).square().sum(1)
        total = total + 2.0 * (steps + _CORNER).sqrt().flatten(1).sum(1)
    return total


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
