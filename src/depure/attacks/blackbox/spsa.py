"""SPSA: gradient ascent on gradients estimated from pairs of queries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from depure.attacks.ascent import Adam
from depure.attacks.asking.gradients import Expected
from depure.attacks.asking.queries import as_measurement, random_signs
from depure.attacks.base import Iterated, Watch
from depure.attacks.case import Case
from depure.attacks.settings import check_choice, check_count, check_rate, check_share
from depure.rows import rows_at_once, where_rows
from depure.threat.balls import L2, Ball, Linf, Norm

Rule = Literal["adam", "ascend"]

_ADAM_RATE, _PUBLISHED = 0.01, 8 / 255  # the published rate, and the eps that it goes with
_LOOKS = 10  # draws for the trace at each iterate of a random defence: little beside the samples


@dataclass(frozen=True)
class SPSA(Iterated):
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

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("samples", self.samples), ("eot", self.eot)):
            check_count(name, value)
        check_share("delta", self.delta)
        check_rate("lr", self.lr)
        if self.rule is not None:
            check_choice("rule", self.rule, get_args(Rule))

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """Those that it was published for."""
        return (Linf, L2)

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks for gradients: it asks for answers only."""
        return False

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite estimate stays in place.

        The watch hears the mean margin as loss, and the estimated gradient.

        Raises:
            ValueError: for a model with one class.
        """
        x, (rule, lr) = case.x, self._rule(case.norm)
        adam, x_adv = Adam.like(x), x
        for i in range(self.steps):
            here = case.fold("spsa", i)
            measured = self._look(here, x_adv)
            rows = (case.random | (measured.accuracy > 0)).nonzero()[:, 0]
            if len(rows):
                grad = self._gradient(here.rows(rows), x_adv[rows])
                finite = grad.flatten(1).isfinite().all(1)
                measured.finite[rows] = finite
                whole = torch.zeros_like(x).index_copy(0, rows[finite], grad[finite])
                measured = measured._replace(grad=whole)
                moves = torch.zeros_like(measured.finite).index_fill(0, rows[finite], True)
                adam = adam.updated(whole, moves)
                step = adam.step() if rule == "adam" else case.norm.ascend(whole)
                x_adv = where_rows(moves, case.ball.project(x_adv + lr * step, x), x_adv)
            watch.iteration(measured)
        return x_adv

    def _look(self, case: Case, x_adv: Tensor) -> Expected:
        """Where the iterates stand, for the trace."""
        looks = _LOOKS if case.random else 1
        seen = case.margins(x_adv[:, None], looks, ("look",))
        return as_measurement(case.x, seen.margin[:, 0], seen.accuracy[:, 0])

    def _rule(self, ball: Norm) -> tuple[Rule, float]:
        rule = self.rule or ("adam" if isinstance(ball, Linf) else "ascend")
        if self.lr is not None:
            return rule, self.lr
        if rule == "ascend":
            return rule, ball.default_step
        # A rate is per pixel, as eps is in L-inf alone.
        return rule, _ADAM_RATE * (ball.eps / _PUBLISHED if isinstance(ball, Linf) else 1.0)

    def _gradient(self, case: Case, x: Tensor) -> Tensor:
        """The estimate (B, C, H, W) at some points: the mean over all sign vectors."""
        every = case.noise.draws(self.samples)
        first = torch.arange(len(x))[:, None] * self.samples
        total = torch.zeros_like(x)
        # Blocks by the size of the images alone, so that sums do not depend on the batch.
        size = max(1, rows_at_once(x) // 2)
        for a in range(0, self.samples, size):
            block = torch.arange(a, min(a + size, self.samples))
            y = case.y.repeat_interleave(len(block))
            rows = replace(case, y=y, noise=every[(first + block).flatten()])
            total += self._slopes(rows, x, len(block))
        return total / self.samples

    def _slopes(self, case: Case, x: Tensor, n: int) -> Tensor:
        """Sum of n single estimates for each image; the case holds n keys for each."""
        centre = x.repeat_interleave(n, 0)
        shift = self.delta * random_signs(case.noise, "spsa", centre)
        up, down = (centre + shift).clamp(0.0, 1.0), (centre - shift).clamp(0.0, 1.0)
        margins = case.margins(torch.stack([up, down], 1), self.eot).margin
        rise = (margins[:, 0] - margins[:, 1]).view(-1, 1, 1, 1)
        return (rise / (up - down)).view(len(x), n, *x.shape[1:]).sum(1)
