"""What attacks that climb share: the best iterate so far, and an Adam for each image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depure.attacks.asking.gradients import Expected
from depure.attacks.case import is_better
from depure.rows import per_image, where_rows

_BETAS = (0.9, 0.999)
_TINY = 1e-8  # Adam's epsilon


@dataclass(frozen=True, eq=False)
class Best:
    """The best images so far: of lowest mean accuracy, of highest mean loss among equals."""

    x: Tensor
    seen: Expected

    def or_better(self, x: Tensor, seen: Expected, allowed: Tensor | None = None) -> Best:
        """With the new images wherever they are better (and allowed, (B,) bool)."""
        wins = is_better(seen.accuracy, seen.loss, self.seen.accuracy, self.seen.loss)
        wins = wins if allowed is None else wins & allowed
        both = zip(seen, self.seen, strict=True)
        measured = Expected(*(where_rows(wins, new, old) for new, old in both))
        return Best(where_rows(wins, x, self.x), measured)


@dataclass(frozen=True, eq=False)
class Adam:
    """Adam (Kingma & Ba, 1412.6980, algorithm 1), up the gradient, one for each row."""

    first: Tensor
    second: Tensor
    count: Tensor  # (B,), gradients so far

    @staticmethod
    def like(params: Tensor) -> Adam:
        """At its beginning."""
        zero = torch.zeros_like(params)
        return Adam(zero, zero, torch.zeros_like(params.flatten(1)[:, 0]))

    def updated(self, grad: Tensor, rows: Tensor) -> Adam:
        """With a gradient taken in for some rows (B,) bool."""
        a, b = _BETAS
        first = where_rows(rows, a * self.first + (1.0 - a) * grad, self.first)
        second = where_rows(rows, b * self.second + (1.0 - b) * grad.square(), self.second)
        return replace(self, first=first, second=second, count=self.count + rows)

    def step(self) -> Tensor:
        """The step of learning rate 1; 0 before the first gradient."""
        count = per_image(self.count.clamp_min(1.0), self.first)
        mean = self.first / (1.0 - _BETAS[0] ** count)
        spread = self.second / (1.0 - _BETAS[1] ** count)
        return mean / (spread.sqrt() + _TINY)
