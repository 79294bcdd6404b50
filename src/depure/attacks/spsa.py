"""SPSA: gradient ascent on gradients estimated from pairs of queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from depure.attacks.base import Attack, Watch
from depure.attacks.climb import pick
from depure.attacks.model import Model
from depure.attacks.queries import (
    ask,
    check_ball,
    check_counts,
    check_share,
    is_random,
    signs,
    told,
)
from depure.attacks.search import Adam
from depure.noise import Noise
from depure.rows import rows_at_once
from depure.threat import L2, Ball, Linf

Rule = Literal["adam", "ascend"]

_ADAM_RATE, _PUBLISHED = 0.01, 8 / 255  # the published rate, and the eps that it goes with
_LOOKS = 10  # draws for the trace at each iterate of a random defence: little beside the samples


@dataclass(frozen=True)
class SPSA(Attack):
    """SPSA (Spall 1992; Uesato et al., 1802.05666, algorithm 1) on the logit margin.

    The gradient is the mean over random sign vectors v of (f(x + delta v) - f(x - delta v)) /
    (2 delta v). Queries are cut to [0, 1], and at such pixels the cut distance divides: the
    estimate stays unbiased to first order there. Against a random defence every v meets fresh
    draws, which are the same for its two points; the mean over v is then EoT as well, so `eot`
    may stay 1. The last iterate is the proposal; if nothing is random, an image rests at its
    first wrong iterate. It costs 2 x samples x eot x steps queries, and at each iterate 1 more,
    or 10 against a random defence, to see where it stands.

    Args:
        steps: iterations.
        samples: sign vectors per iteration, two queries each. 128 is CleverHans's and AdverTorch's
            default; the paper's strongest runs take thousands.
        delta: distance of the queries from the iterate, per pixel.
        lr: learning rate of Adam (None: the published 0.01 at 8/255, in proportion to eps in
            L-inf), or the norm of a steepest step (None: the ball's default, 2/255 at 8/255).
        rule: "adam" (betas 0.9 and 0.999), "ascend" (the ball's steepest step: the gradient's
            signs in L-inf), or None for Adam in L-inf, as published, and "ascend" in L2, where
            Adam's even steps would end short of the best direction.
        eot: draws averaged for every sign vector (one, if all noise is known).
        chunk: rows per forward pass, by the size of the images if None; affects speed and
            memory only.

    Example:
        >>> SPSA(steps=20, samples=512).delta
        0.01
    """

    steps: int = 100
    samples: int = 128
    delta: float = 0.01
    lr: float | None = None
    rule: Rule | None = None
    eot: int = 1
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "steps", "samples", "eot")
        check_share("delta", self.delta)
        if self.lr is not None and not 0.0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite; got {self.lr}")
        if self.rule not in (None, *get_args(Rule)):
            raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}; got {self.rule!r}")

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks for gradients: it asks for answers only."""
        return False

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite estimate stays in place.

        The watch hears the mean margin as loss, and the estimated gradient.

        Raises:
            ValueError: for a ball other than Linf and L2, or a model with one class.
        """
        check_ball(self, ball, (Linf, L2))
        rule, lr = self._rule(ball)
        adam, x_adv, random = Adam.like(x), x, is_random(model, noise)
        for i in range(self.steps):
            fresh = noise.fold("spsa", i)
            looks = _LOOKS if random else 1
            here = ask(model, x_adv[:, None], y, fresh.fold("look"), looks, self.chunk)
            measured = told(x, here.margin[:, 0], here.accuracy[:, 0])
            rows = (random | (measured.accuracy > 0)).nonzero()[:, 0]
            if len(rows):
                grad = self._gradient(model, x_adv[rows], y[rows], fresh[rows])
                finite = grad.flatten(1).isfinite().all(1)
                measured.finite[rows] = finite
                whole = torch.zeros_like(x).index_copy(0, rows[finite], grad[finite])
                measured = measured._replace(grad=whole)
                moves = torch.zeros_like(measured.finite).index_fill(0, rows[finite], True)
                adam = adam.heard(whole, moves)
                step = adam.step() if rule == "adam" else ball.ascend(whole)
                x_adv = pick(moves, ball.project(x_adv + lr * step, x), x_adv)
            if watch is not None:
                watch(i, measured)
        return x_adv

    def _rule(self, ball: Ball) -> tuple[Rule, float]:
        rule = self.rule or ("adam" if isinstance(ball, Linf) else "ascend")
        if self.lr is not None:
            return rule, self.lr
        if rule == "ascend":
            return rule, ball.default_step
        # A rate is per pixel, as eps is in L-inf alone.
        return rule, _ADAM_RATE * (ball.eps / _PUBLISHED if isinstance(ball, Linf) else 1.0)

    def _gradient(self, model: Model, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """The estimate (B, C, H, W): the mean over all sign vectors, some at a time."""
        every = noise.draws(self.samples)
        first = torch.arange(len(x))[:, None] * self.samples
        total = torch.zeros_like(x)
        # Blocks by the size of the images alone, so that sums do not depend on the batch.
        size = max(1, rows_at_once(x) // 2)
        for a in range(0, self.samples, size):
            block = torch.arange(a, min(a + size, self.samples))
            rows = every[(first + block).flatten()]
            total += self._slopes(model, x, y, rows, len(block))
        return total / self.samples

    def _slopes(self, model: Model, x: Tensor, y: Tensor, rows: Noise, n: int) -> Tensor:
        """Sum of n single estimates for each image; rows hold n keys for each."""
        centre = x.repeat_interleave(n, 0)
        shift = self.delta * signs(rows, "spsa", centre)
        up, down = (centre + shift).clamp(0.0, 1.0), (centre - shift).clamp(0.0, 1.0)
        pair = torch.stack([up, down], 1)
        answer = ask(model, pair, y.repeat_interleave(n), rows, self.eot, self.chunk).margin
        rise = (answer[:, 0] - answer[:, 1]).view(-1, 1, 1, 1)
        return (rise / (up - down)).view(len(x), n, *x.shape[1:]).sum(1)
