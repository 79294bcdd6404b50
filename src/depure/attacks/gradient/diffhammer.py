"""DiffHammer: ascent on the draws of a random defence that can be fooled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depure.answers import mean_of
from depure.attacks.asking.gradients import Expected
from depure.attacks.base import Attack
from depure.attacks.case import Case
from depure.attacks.gradient.walk import Direction, Walk
from depure.attacks.settings import check_count, check_weight
from depure.rows import where_rows
from depure.threat.balls import Norm


@dataclass(frozen=True)
class DiffHammer(Walk):
    """Ascent on the draws that can be fooled, after DiffHammer (Wang et al., NeurIPS 2024).

    A mean over draws is pulled about by draws on which the defence cannot be fooled at all. So
    each draw is weighed by how likely it is fooled after the step (E step):
    `sigmoid(sharpness * (margin + gain))`, where the gain is what the step adds to its margin to
    first order; the direction of the step is the draws' weighted mean gradient (M step). Both
    alternate a few times, from equal weights. Directions of iterations are averaged with weight
    `(i + 1) ** -forget` for the newest, as published.

    As in its code: margin, weights, both constants, that average. There, gradients of the draws
    are taken by BPDA and the weighted one goes back through the chain of a single draw; here
    every draw has its exact gradient, which costs `eot` full gradients an iteration and is
    right for any defence. There, the loop never updates the direction that weights depend on; here
    it does. The proposal is the iterate of lowest mean accuracy (largest mean margin among
    equals), or the last, see `Case.fresh`. `steps + 1` times `eot` gradients, and 2 x 20
    queries (2 x `eot`, if more) against a random defence.

    Args:
        steps: iterations.
        step_size: norm of one step; None takes the ball's default.
        eot: draws weighed in every iteration (one, if all noise is known: then it is PGD).
        rounds: alternations of both steps; 0 is the plain mean.
        sharpness: of the weights.
        forget: 0 follows the newest direction alone.
        random_start: begin at a random point of the ball rather than at the image.
        start: an attack from whose proposals to begin.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 50
    step_size: float | None = None
    eot: int = 10
    rounds: int = 5
    sharpness: float = 5.0
    forget: float = 0.5
    random_start: bool = False
    start: Attack | None = None

    def __post_init__(self) -> None:
        self.check()
        check_count("rounds", self.rounds, least=0)
        check_weight("sharpness", self.sharpness)
        check_weight("forget", self.forget)

    def direction(self, case: Case, step: float) -> Direction:
        """The draws' weighted mean gradient, averaged with those of earlier iterates."""
        draws = case.draws(self.eot)
        past = torch.zeros_like(case.x)

        def follow(i: int, point: Tensor) -> tuple[Expected, Tensor]:
            nonlocal past
            grads, margins, seen = self._measured(case, draws, i, point)
            weights = self.weights(grads, margins.nan_to_num(), case.norm, step)
            newest = (i + 1.0) ** -self.forget if self.forget else 1.0
            new = newest * weighted(grads, weights) + (1.0 - newest) * past
            past = where_rows(seen.finite, new, past)
            return seen, past

        return follow

    def _measured(
        self, case: Case, draws: int, i: int, point: Tensor
    ) -> tuple[Tensor, Tensor, Expected]:
        """Gradients (B, N, C, H, W) and margins (B, N) of every draw, and what they make."""
        rows = case.repeated(draws, ("diffhammer", i))
        each = rows.gradient(point.repeat_interleave(draws, 0), "margin", 1)
        grads = each.grad.view(len(point), draws, *point.shape[1:])
        margins, finite = each.loss.view(-1, draws), each.finite.view(-1, draws)
        seen = Expected(
            grad=grads.mean(1),
            loss=mean_of(margins, margins.isfinite()),
            accuracy=each.accuracy.view(-1, draws).mean(1),
            finite=finite.any(1),
            followed=each.followed.view(-1, draws).mean(1),
            flat=each.flat.view(-1, draws).all(1),
        )
        return grads, margins, seen

    def weights(self, grads: Tensor, margins: Tensor, ball: Norm, step: float) -> Tensor:
        """Weights (B, N) of draws, given their gradients (B, N, C, H, W) and margins (B, N)."""
        weights = torch.ones_like(margins)
        for _ in range(self.rounds):
            direction = ball.ascend(weighted(grads, weights))
            gain = step * (grads * direction[:, None]).flatten(2).sum(2)
            weights = torch.sigmoid(self.sharpness * (margins + gain))
        return weights


def weighted(grads: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean (B, C, H, W) of gradients (B, N, C, H, W); the plain one if all weigh 0."""
    total = weights.sum(1, keepdim=True)
    share = torch.where(total > 0, weights / total.clamp_min(1e-30), 1.0 / weights.shape[1])
    return (grads * share[:, :, None, None, None]).sum(1)
