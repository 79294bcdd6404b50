"""Projected ascent along a direction of the attack's own, with the best iterate for a proposal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from depure.attacks.ascent import Best
from depure.attacks.asking.gradients import Expected
from depure.attacks.base import Attack, Iterated, Watch, check_start, start_point
from depure.attacks.case import Case
from depure.attacks.settings import check_count, check_rate
from depure.rows import where_rows

Direction = Callable[[int, Tensor], tuple[Expected, Tensor]]
"""Iteration and iterate to what is measured there and the gradient to follow."""


class Walk(Iterated):
    """Projected ascent that starts where another attack ends, and proposes its best iterate."""

    step_size: float | None
    eot: int
    random_start: bool
    start: Attack | None

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        ball, point = case.norm, start_point(case, self.start, self.random_start)
        step = ball.default_step if self.step_size is None else self.step_size
        direction, best = self.direction(case, step), None
        for i in range(self.steps):
            seen, grad = direction(i, point)
            best = Best(point, seen) if best is None else best.or_better(point, seen)
            watch.iteration(seen)
            moves = seen.finite & grad.flatten(1).isfinite().all(1)
            moved = ball.project(point + step * ball.ascend(grad), case.x)
            point = where_rows(moves, moved, point)
        last = direction(self.steps, point)[0]
        best = Best(point, last) if best is None else best.or_better(point, last)
        return case.fresh(best.x, point, self.eot)

    @abstractmethod
    def direction(self, case: Case, step: float) -> Direction:
        """What to follow; it may remember earlier iterates."""

    def check(self) -> None:
        """Raise ValueError for a setting out of range."""
        check_count("steps", self.steps)
        check_count("eot", self.eot)
        check_rate("step_size", self.step_size)
        check_start(self.start, self.random_start)
