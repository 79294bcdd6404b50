"""Images under attack, and all that an attack may ask of the defence about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depure.attacks.asking.gradients import (
    JUDGE_DRAWS,
    Average,
    Expected,
    distinct_draws,
    expected_grad,
    sampled_logits,
)
from depure.attacks.asking.losses import LOSSES, Loss
from depure.attacks.asking.model import Model
from depure.attacks.asking.queries import QueryResult, query_margins
from depure.noise import Noise
from depure.rows import where_rows
from depure.threat.balls import Ball, Norm, as_norm

Key = tuple[str | int, ...]
"""A name and whole numbers that set the noise of one question apart from that of others; the
empty key is the noise of the case itself."""


@dataclass(frozen=True, eq=False)
class Case:
    """The arguments of an attack's call, and the questions that it may ask.

    Questions go through the defence in chunks, whose size is decided outside (`depure.rows`) and
    changes nothing but rounding; an open journal records the answers.
    """

    model: Model
    x: Tensor  # (B, C, H, W) in [0, 1]
    y: Tensor  # (B,)
    ball: Ball
    noise: Noise  # one row per image

    @property
    def norm(self) -> Norm:
        """The ball, for attacks that work in norms of the pixel change."""
        return as_norm(self.ball)

    @property
    def random(self) -> bool:
        """Whether two questions about the same image may be answered differently."""
        return self.draws(2) > 1

    def draws(self, count: int) -> int:
        """So many draws, or 1 where all would coincide."""
        return distinct_draws(self.model.stages, self.noise, count)

    def rows(self, rows: Tensor) -> Case:
        """Some images alone, by a mask (B,) or by their places."""
        return replace(self, x=self.x[rows], y=self.y[rows], noise=self.noise[rows])

    def fold(self, *key: str | int) -> Case:
        """The same case under noise of its own."""
        return replace(self, noise=self._noise(key))

    def repeated(self, draws: int, key: Key = ()) -> Case:
        """Each image so many times in a row, each time under a draw of its own."""
        rows = self._noise(key).draws(draws)
        x, y = (t.repeat_interleave(draws, 0) for t in (self.x, self.y))
        return replace(self, x=x, y=y, noise=rows)

    def on(self, model: Model, noise: Noise | None = None) -> Case:
        """The same images on another model, under other noise if given."""
        return replace(self, model=model, noise=self.noise if noise is None else noise)

    def gradient(
        self,
        points: Tensor,
        loss: str | Loss,
        eot: int,
        key: Key = (),
        *,
        average: Average = "gradients",
        aim: Tensor | None = None,
    ) -> Expected:
        """Loss, its gradient and accuracy at one point per image, averaged over `eot` draws.

        Args:
            points: (B, C, H, W) in [0, 1].
            loss: a loss or the name of one.
            eot: draws averaged (one, if all would coincide).
            key: of the noise.
            average: average the draws' "gradients" or their "logits".
            aim: (B,), handed to the loss in place of the labels.
        """
        return expected_grad(
            self.model,
            points,
            self.y if aim is None else aim,
            LOSSES[loss] if isinstance(loss, str) else loss,
            self._noise(key),
            eot,
            average=average,
            labels=self.y,
        )

    def margins(self, points: Tensor, eot: int, key: Key = ()) -> QueryResult:
        """Margin and accuracy of N candidates per image, (B, N, C, H, W), on common draws."""
        return query_margins(self.model, points, self.y, self._noise(key), eot)

    def logits(self, points: Tensor, eot: int, key: Key = ()) -> Tensor:
        """Logits (B, draws, K) of one point per image, without gradients."""
        return sampled_logits(self.model, points, self._noise(key), eot)

    def keep_better(self, old: Tensor, new: Tensor, draws: int, key: Key = ()) -> Tensor:
        """The new images where they beat the old ones on draws common to both.

        That is a lower mean accuracy, or an equal one and a larger mean margin.
        """
        answer = self.margins(torch.stack([old, new], 1), draws, key)
        (before, after), (low, high) = answer.accuracy.unbind(1), answer.margin.unbind(1)
        return where_rows(is_better(after, high, before, low), new, old)

    def fresh(self, best: Tensor, last: Tensor, eot: int) -> Tensor:
        """The best iterate or the last one, whichever does better on fresh draws common to both.

        The best of many iterates was chosen on the few draws that it met: taking the minimum of
        several noisy means biases it downwards, while the last has had the most steps. They are
        compared by mean accuracy, then mean margin, on 20 draws or `eot`, if that is more. If
        nothing is random, the best is the best.
        """
        if not self.random:
            return best
        return self.keep_better(best, last, max(JUDGE_DRAWS, eot), ("settle",))

    def _noise(self, key: Key) -> Noise:
        if not key:
            return self.noise
        name, *numbers = key
        return self.noise.fold(str(name), *(int(number) for number in numbers))


def is_better(accuracy: Tensor, loss: Tensor, old_accuracy: Tensor, old_loss: Tensor) -> Tensor:
    """Whether (B,) bool the accuracy is lower, or the same with a higher loss, if finite."""
    higher = ~(old_loss >= loss)  # also where the old one is NaN
    return (accuracy < old_accuracy) | ((accuracy == old_accuracy) & higher & loss.isfinite())
