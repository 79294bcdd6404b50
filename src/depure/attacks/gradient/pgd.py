"""Projected gradient ascent with EoT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from depure.answers import answered, mean_of
from depure.attacks.asking.gradients import Average
from depure.attacks.asking.losses import LOSSES, targeted
from depure.attacks.base import Attack, Iterated, Watch, check_start, start_point
from depure.attacks.case import Case
from depure.attacks.settings import check_choice, check_count, check_loss, check_rate

Target = Literal["runner_up", "least_likely"]


@dataclass(frozen=True)
class PGD(Iterated):
    """PGD (Madry et al., 1706.06083) on EoT gradients; ADDT's settings by default.

    `PGD()` is ADDT's PGD-20 with EoT 10; `PGD(steps=200, eot=20)` is PGD200+EoT20, see
    `PGD.strong`. The last iterate is the proposal, as published.

    Args:
        steps: iterations.
        step_size: norm of one step; None takes the ball's default (2/255 at 8/255, 0.1 at 0.5).
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr".
        random_start: begin at a random point of the ball rather than at the image.
        target: None, or the class to reach: the "runner_up" or "least_likely" wrong class by
            the mean logits on the clean image.
        start: an attack from whose proposals to begin, such as `Transfer` or `ScoreStart`.
    """

    steps: int = 20
    step_size: float | None = None
    eot: int = 10
    average: Average = "gradients"
    loss: str = "ce"
    random_start: bool = False
    target: Target | None = None
    start: Attack | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("eot", self.eot)
        check_rate("step_size", self.step_size)
        check_loss(self.loss, self.average)
        if self.target is not None:
            check_choice("target", self.target, get_args(Target))
        check_start(self.start, self.random_start)

    @staticmethod
    def strong() -> PGD:
        """PGD200+EoT20 as ADDT runs it: the step size unchanged (Lee & Kim and ADBM take 0.007)."""
        return PGD(steps=200, eot=20)

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        ball, loss, aim = case.norm, LOSSES[self.loss], None
        if self.target is not None:
            loss, aim = targeted(loss), self._targets(case)
        step = ball.default_step if self.step_size is None else self.step_size
        x_adv = start_point(case, self.start, self.random_start)
        for i in range(self.steps):
            measured = case.gradient(
                x_adv, loss, self.eot, ("pgd", i), average=self.average, aim=aim
            )
            watch.iteration(measured)
            x_adv = ball.project(x_adv + step * ball.ascend(measured.grad), case.x)
        return x_adv

    def _targets(self, case: Case) -> Tensor:
        logits = case.logits(case.x, self.eot, ("target",))
        mean = mean_of(logits, answered(logits))
        if mean.shape[1] < 2:
            raise ValueError("a targeted attack needs at least 2 classes; the model has 1")
        worst = torch.inf if self.target == "least_likely" else -torch.inf
        mean.scatter_(1, case.y[:, None], worst)
        return mean.argmin(1) if self.target == "least_likely" else mean.argmax(1)
