"""Attacks adapted to stochastic purifiers: stand-ins, vulnerable draws, momentum."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from depure.answers import mean_of
from depure.attacks.base import (
    Attack,
    Heard,
    Watch,
    beginning,
    calls_of_watch,
    check_start,
    elsewhere,
)
from depure.attacks.climb import pick, wide
from depure.attacks.expected import Expected, distinct_draws, expected_grad
from depure.attacks.losses import LOSSES
from depure.attacks.model import Model
from depure.attacks.queries import check_counts
from depure.attacks.search import Best, check_search, improved, settled
from depure.noise import Noise
from depure.threat import Ball

Direction = Callable[[int, Tensor], tuple[Expected, Tensor]]
"""Iteration and iterate to what is measured there and the gradient to follow."""


@dataclass(frozen=True)
class StandIn(Attack):
    """An attack on another model in place of the defence, confirmed on the defence itself.

    With the defence under BPDA for a source (in `Defended`, the purifier wrapped in `BPDA`, or
    with `backprop=Straight()`) and an attack with EoT, it is BPDA+EOT (Athalye et al.,
    1802.00420; Hill et al., 2005.13525): DiffPure's settings are 50 steps of 2/255, EoT 15,
    mean logits, and 150 draws to confirm. With a shorter chain for a source it is the surrogate
    attack of Lee & Kim (2303.09051). For the bare classifier there is `Transfer`.

    A proposal is kept only if it is better than the image itself on `judge_draws` draws common to
    both that the attack never saw: lower mean accuracy, or equal and a larger mean margin. This is
    the averaged final check; what it keeps is judged again by the evaluation.

    Args:
        attack: any; what its watch hears is measured on the source.
        source: the model that is attacked; it draws noise at the same stages, or at none.
        judge_draws: draws of the defence that confirm (one, if all noise is known).
        chunk: rows per forward pass when confirming, by the size of the images if None; affects
            speed and memory only.

    Raises:
        ValueError: a setting is out of range; at the call, the source has other stages.
    """

    attack: Attack
    source: Model = field(repr=False)
    judge_draws: int = 150
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise ValueError(f"attack must be an attack; got {self.attack!r}")
        check_counts(self, "judge_draws")

    @property
    def heard(self) -> Heard:
        """The attack on the source."""
        return elsewhere(self.attack)

    @property
    def needs_gradient(self) -> bool:
        """No: it asks the source for gradients, and the defence for answers."""
        return False

    @property
    def iterations(self) -> int:
        """Those of the attack."""
        return calls_of_watch(self.attack)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W); x itself where none was confirmed."""
        strange = [s for s in self.source.stages if s not in model.stages]
        if strange:
            raise ValueError(
                f"the source draws noise at {self.source.stages}, the defence at {model.stages}: "
                f"{strange[0]!r} would be known to nobody; make the source from the same purifier"
            )
        missing = any(stage not in self.source.stages for stage in noise.held)
        plain = Noise(noise.keys) if missing else noise  # a stage held must be there
        found = self.attack(self.source, x, y, ball, plain.fold("stand-in"), watch)
        fresh = noise.fold("stand-in judge")
        return improved(model, x, found, y, fresh, self.judge_draws, self.chunk)


class _Walk(Attack):
    """Projected ascent that starts where another attack ends, and proposes its best iterate."""

    steps: int
    step_size: float | None
    random_start: bool
    start: Attack | None

    @property
    def iterations(self) -> int:
        """How often `watch` is called; the attack that it starts from does not call it."""
        return self.steps

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
        here = beginning(self, model, x, y, ball, noise)
        step = ball.default_step if self.step_size is None else self.step_size
        direction, best = self._direction(model, x, y, ball, noise, step), None
        for i in range(self.steps):
            seen, grad = direction(i, here)
            best = Best(here, seen) if best is None else best.improved(here, seen)
            if watch is not None:
                watch(i, seen)
            moves = seen.finite & grad.flatten(1).isfinite().all(1)
            there = ball.project(here + step * ball.ascend(grad), x)
            here = pick(moves, there, here)
        last = direction(self.steps, here)[0]
        best = Best(here, last) if best is None else best.improved(here, last)
        return settled(self, model, best.x, here, y, noise)

    @abstractmethod
    def _direction(
        self, model: Model, x: Tensor, y: Tensor, ball: Ball, noise: Noise, step: float
    ) -> Direction:
        """What to follow; it may remember earlier iterates."""

    def _check(self) -> None:
        check_search(self)
        if self.step_size is not None and not 0.0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive and finite; got {self.step_size}")
        check_start(self)


@dataclass(frozen=True)
class DiffHammer(_Walk):
    """Ascent on the draws that can be fooled, after DiffHammer (Wang et al., NeurIPS 2024).

    A mean over draws is pulled about by draws on which the defence cannot be fooled at all. So
    each draw is weighed by how likely it is fooled after the step (E step):
    ``sigmoid(sharpness * (margin + gain))``, where the gain is what the step adds to its margin to
    first order; the direction of the step is the draws' weighted mean gradient (M step). Both
    alternate a few times, from equal weights. Directions of iterations are averaged with weight
    ``(i + 1) ** -forget`` for the newest, as published.

    As in its code: margin, weights, both constants, that average. There, gradients of the draws
    are taken by BPDA and the weighted one goes back through the chain of a single draw; here
    every draw has its exact gradient, which costs `eot` full gradients an iteration and is
    right for any defence. There, the loop never updates the direction that weights depend on; here
    it does. The proposal is the iterate of lowest mean accuracy (largest mean margin among
    equals), or the last, see `settled`. `steps + 1` times `eot` gradients, and 2 x 20
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
        chunk: rows per forward pass, by the size of the images if None; affects speed and
            memory only.

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
    chunk: int | None = None

    def __post_init__(self) -> None:
        self._check()
        if not isinstance(self.rounds, int) or self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, a whole number; got {self.rounds}")
        for name in ("sharpness", "forget"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")

    def _direction(
        self, model: Model, x: Tensor, y: Tensor, ball: Ball, noise: Noise, step: float
    ) -> Direction:
        draws = distinct_draws(model.stages, noise, self.eot)
        past = torch.zeros_like(x)

        def follow(i: int, here: Tensor) -> tuple[Expected, Tensor]:
            nonlocal past
            rows = noise.fold("diffhammer", i).draws(draws)
            each = expected_grad(
                model, here.repeat_interleave(draws, 0), y.repeat_interleave(draws),
                LOSSES["margin"], rows, 1, chunk=self.chunk,
            )  # fmt: skip
            grads = each.grad.view(len(x), draws, *x.shape[1:])
            loss, answer = each.loss.view(-1, draws), each.finite.view(-1, draws)
            seen = Expected(
                grads.mean(1), mean_of(loss, loss.isfinite()),
                each.accuracy.view(-1, draws).mean(1), answer.any(1),
                each.followed.view(-1, draws).mean(1), each.flat.view(-1, draws).all(1),
            )  # fmt: skip
            weights = self.weights(grads, loss.nan_to_num(), ball, step)
            share = (i + 1.0) ** -self.forget if self.forget else 1.0
            new = share * weighted(grads, weights) + (1.0 - share) * past
            past = pick(seen.finite, new, past)
            return seen, past

        return follow

    def weights(self, grads: Tensor, margins: Tensor, ball: Ball, step: float) -> Tensor:
        """Weights (B, N) of draws, given their gradients (B, N, C, H, W) and margins (B, N)."""
        weights = torch.ones_like(margins)
        for _ in range(self.rounds):
            way = ball.ascend(weighted(grads, weights))
            gain = step * (grads * way[:, None]).flatten(2).sum(2)
            weights = torch.sigmoid(self.sharpness * (margins + gain))
        return weights


def weighted(grads: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean (B, C, H, W) of gradients (B, N, C, H, W); the plain one if all weigh 0."""
    total = weights.sum(1, keepdim=True)
    share = torch.where(total > 0, weights / total.clamp_min(1e-30), 1.0 / weights.shape[1])
    return (grads * share[:, :, None, None, None]).sum(1)


@dataclass(frozen=True)
class MIPGD(_Walk):
    """PGD with momentum (MI-FGSM; Dong et al., 1710.06081), which damps the gradients' noise.

    The direction is a sum of past gradients, each over its L1 norm, the earlier ones discounted
    by `decay`. The published 1 never forgets, and is weaker than plain PGD where gradients turn.
    The proposal is the iterate of lowest mean accuracy (of highest mean loss among equals), or the
    last, see `settled`: 2 x 20 queries (2 x `eot`, if more) against a random defence.

    Args:
        steps: iterations; `steps + 1` times `eot` gradients.
        step_size: norm of one step; None takes the ball's default.
        eot: gradients of draws in every iteration (one, if all noise is known).
        decay: how much of the memory stays: 0 is plain PGD, 1 as published.
        loss: "ce", "margin" or "dlr".
        random_start: begin at a random point of the ball rather than at the image.
        start: an attack from whose proposals to begin, say a `Transfer`.
        chunk: rows per forward pass, by the size of the images if None; affects speed and
            memory only.

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
    chunk: int | None = None

    def __post_init__(self) -> None:
        self._check()
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay must lie in [0, 1]; got {self.decay}")

    def _direction(
        self, model: Model, x: Tensor, y: Tensor, ball: Ball, noise: Noise, step: float
    ) -> Direction:
        memory = torch.zeros_like(x)

        def follow(i: int, here: Tensor) -> tuple[Expected, Tensor]:
            nonlocal memory
            fresh = noise.fold("mipgd", i)
            seen = expected_grad(
                model, here, y, LOSSES[self.loss], fresh, self.eot, chunk=self.chunk
            )
            norm = seen.grad.flatten(1).abs().sum(1)
            scaled = seen.grad / wide(torch.where(norm > 0, norm, 1.0), x)
            memory = pick(seen.finite, self.decay * memory + scaled, memory)
            return seen, memory

        return follow
