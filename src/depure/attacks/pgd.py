"""Projected gradient ascent with EoT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch
from torch import Tensor

from depure.answers import answered, mean_of
from depure.attacks.base import Attack, Watch, beginning, check_start
from depure.attacks.expected import Average, expected_grad, sampled_logits
from depure.attacks.losses import LOSSES, targeted
from depure.attacks.model import Model
from depure.noise import Noise
from depure.threat import Ball

Target = Literal["runner_up", "least_likely"]


@dataclass(frozen=True)
class PGD(Attack):
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
        chunk: rows per forward pass, by the size of the images if None; affects speed and
            memory only.
    """

    steps: int = 20
    step_size: float | None = None
    eot: int = 10
    average: Average = "gradients"
    loss: str = "ce"
    random_start: bool = False
    target: Target | None = None
    start: Attack | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "eot", "chunk"):
            value = getattr(self, name)
            if name == "chunk" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be at least 1, a whole number; got {value!r:.60}")
        step = 1.0 if self.step_size is None else self.step_size
        if not isinstance(step, Real) or not 0 < step < math.inf:
            raise ValueError(f"step_size must be positive and finite; got {step!r:.60}")
        choices = {"loss": tuple(LOSSES), "average": get_args(Average)}
        if self.target is not None:
            choices["target"] = get_args(Target)
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )

        check_start(self)

    @staticmethod
    def strong() -> PGD:
        """PGD200+EoT20 as ADDT runs it: the step size unchanged (Lee & Kim and ADBM take 0.007)."""
        return PGD(steps=200, eot=20)

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
        loss, aim = LOSSES[self.loss], y
        if self.target is not None:
            loss, aim = targeted(loss), self._targets(model, x, y, noise)
        step = ball.default_step if self.step_size is None else self.step_size
        x_adv = beginning(self, model, x, y, ball, noise)
        for i in range(self.steps):
            fresh = noise.fold("pgd", i)
            measured = expected_grad(
                model, x_adv, aim, loss, fresh, self.eot,
                average=self.average, chunk=self.chunk, labels=y,
            )  # fmt: skip
            if watch is not None:
                watch(i, measured)
            x_adv = ball.project(x_adv + step * ball.ascend(measured.grad), x)
        return x_adv

    def _targets(self, model: Model, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        noise = noise.fold("target")
        logits = sampled_logits(model, x, noise, self.eot, self.chunk)
        mean = mean_of(logits, answered(logits))
        if mean.shape[1] < 2:
            raise ValueError("a targeted attack needs at least 2 classes; the model has 1")
        worst = torch.inf if self.target == "least_likely" else -torch.inf
        mean.scatter_(1, y[:, None], worst)
        return mean.argmin(1) if self.target == "least_likely" else mean.argmax(1)
