"""PGD with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from depure.attacks.asking.gradients import Expected
from depure.attacks.base import Attack
from depure.attacks.case import Case
from depure.attacks.gradient.walk import Direction, Walk
from depure.attacks.settings import check_loss
from depure.rows import per_image, where_rows


@dataclass(frozen=True)
class MIPGD(Walk):
    """PGD with momentum (MI-FGSM; Dong et al., 1710.06081), which damps the gradients' noise.

    The direction is a sum of past gradients, each over its L1 norm, the earlier ones discounted
    by `decay`. The published 1 never forgets, and is weaker than plain PGD where gradients turn.
    The proposal is the iterate of lowest mean accuracy (of highest mean loss among equals), or the
    last, see `Case.fresh`: 2 x 20 queries (2 x `eot`, if more) against a random defence.

    Args:
        steps: iterations; `steps + 1` times `eot` gradients.
        step_size: norm of one step; None takes the ball's default.
        eot: gradients of draws in every iteration (one, if all noise is known).
        decay: how much of the momentum stays: 0 is plain PGD, 1 as published.
        loss: "ce", "margin" or "dlr".
        random_start: begin at a random point of the ball rather than at the image.
        start: an attack from whose proposals to begin, say a `Transfer`.

    Raises:
        ValueError: a setting is out of range.
    """

    steps: int = 50
    step_size: float | None = None
    eot: int = 10
    decay: float = 0.5
    loss: str = "ce"
    random_start: bool = False
    start: Attack | None = None

    def __post_init__(self) -> None:
        self.check()
        check_loss(self.loss)
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1]; got {self.decay}")

    def direction(self, case: Case, step: float) -> Direction:
        """The discounted sum of gradients of norm 1."""
        momentum = torch.zeros_like(case.x)

        def follow(i: int, point: Tensor) -> tuple[Expected, Tensor]:
            nonlocal momentum
            seen = case.gradient(point, self.loss, self.eot, ("mipgd", i))
            norm = seen.grad.flatten(1).abs().sum(1)
            scaled = seen.grad / per_image(torch.where(norm > 0, norm, 1.0), point)
            momentum = where_rows(seen.finite, self.decay * momentum + scaled, momentum)
            return seen, momentum

        return follow
