"""APGD: projected ascent that finds its own step sizes, for L-inf, L2 and L1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from depure.answers import answered, mean_of, right
from depure.attacks.base import Attack, Heard, Watch, beginning
from depure.attacks.climb import Climb, Control, Halving, Sparse, better, pick, wide
from depure.attacks.expected import (
    JUDGE_DRAWS,
    Average,
    Expected,
    distinct_draws,
    expected_grad,
    sampled_logits,
)  # fmt: skip
from depure.attacks.losses import LOSSES, dlr_targeted, pair
from depure.attacks.model import Model
from depure.noise import Noise
from depure.threat import L1, Ball, Linf


@dataclass(frozen=True)
class APGD(Attack):
    """APGD (Croce & Hein, 2003.01690, algorithm 1), on L1 as in 2103.01208, with EoT.

    The step size, the best point and the sparsity are each image's own and follow the published
    program (fra31/auto-attack, autopgd_base.py) iterate by iterate. Three things differ:

    - Gradient, loss and accuracy are means over `eot` draws, new ones at every iteration; of the
      published program's, only the gradient is, the others are the last draw's. With `eot=1` a
      mean is one draw: take 20 on a stochastic defence.
    - A run proposes its iterate of lowest mean accuracy, and of highest mean loss among equals;
      the published one its last misclassified iterate. On a deterministic defence both propose a
      misclassified iterate exactly if there was one. On a stochastic one the loss alone would be
      content with a few draws that are very wrong, while accuracy alone is coarse. The least of
      many means is a lucky one, so the image itself and the proposals of all runs are then
      compared, by the same rule, on draws that none of them saw (`max(eot, 20)`, forward only).
    - On L1 the published program also counts pixels as changed that its projection has put back up
      to float32 rounding, and so takes denser steps than it means to.

    On a deterministic defence, or one whose draws are all known, an image that is misclassified
    for certain sits out the remaining runs.

    Args:
        steps: iterations of a run; there is a run for each restart and each target, and
            `iterations` in all. A run costs `steps + 1` gradients.
        restarts: runs from different random starts (for each target).
        loss: "ce", "margin" or "dlr".
        targets: 0, or how many wrong classes to aim at one after another, the likeliest on the
            clean image first, with the targeted DLR loss (`loss="dlr"`); see `APGD.targeted`.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        rho: share of iterations between two checks that must raise the loss, or the step halves.
        random_start: begin on the edge of the ball rather than at the image.
        start: an attack from whose proposals the first run begins (for each target), whatever
            `random_start` says, such as `Transfer` or `ScoreStart`.
        shrinking: L1 only, as AutoAttack has it there: 3/10 of the steps in a ball of 3 eps, 3/10
            in one of 2 eps, the rest in the ball itself, each from the best point of the last.
        chunk: rows per forward pass, by the size of the images if None; affects speed and
            memory only.

    Raises:
        ValueError: a setting is out of range; at the call, if `shrinking` meets another ball than
            L1 or if there are fewer wrong classes than `targets`.

    Example:
        >>> APGD(loss="dlr", eot=20)  # doctest: +ELLIPSIS
        APGD(steps=100, restarts=1, loss='dlr', targets=0, eot=20, ...)
    """

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    targets: int = 0
    eot: int = 1
    average: Average = "gradients"
    rho: float = 0.75
    random_start: bool = True
    start: Attack | None = None
    shrinking: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets", "eot", "chunk"):
            value, least = getattr(self, name), 0 if name == "targets" else 1
            if name == "chunk" and value is None:
                continue
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be at least {least}, a whole number; got {value}")
        if not 0.0 < self.rho < 1.0:
            raise ValueError(f"rho must lie between 0 and 1; got {self.rho}")
        for name, allowed in (("loss", tuple(LOSSES)), ("average", get_args(Average))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                )
        if self.shrinking and self.steps < 5:
            raise ValueError(f"shrinking needs at least 5 steps; got {self.steps}")
        if self.targets and self.loss != "dlr":
            raise ValueError(
                f"targets are reached with the targeted DLR loss; got loss={self.loss!r}: "
                f"pass loss='dlr', or targets=0"
            )
        if self.start is not None and not isinstance(self.start, Attack):
            raise ValueError(f"start must be an attack or None; got {self.start!r}")

    @staticmethod
    def targeted(targets: int = 9) -> APGD:
        """APGD-T of AutoAttack: the targeted DLR loss at the 9 likeliest wrong classes in turn."""
        return APGD(loss="dlr", targets=targets)

    @property
    def heard(self) -> Heard:
        """The aims one after another, if there are several."""
        return "aims" if self.targets > 1 else "proposal"

    @property
    def iterations(self) -> int:
        """Iterations of all runs, which is how often `watch` is called."""
        return self.steps * self.restarts * max(1, self.targets)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place.

        `watch` hears of every step's start; an image that sits out repeats what was last seen.
        """
        if self.shrinking and not isinstance(ball, L1):
            raise ValueError(f"shrinking is for the L1 ball; got {ball}: pass shrinking=False")
        begun = x if self.start is None else beginning(self, model, x, y, ball, noise)
        task = _Task(self, model, x, y, ball, noise, begun)
        certain = distinct_draws(model.stages, noise, 2) == 1
        aims, chosen, trace = task.aims(), task.judged(x), _Trace(watch)
        for run in range(self.restarts * len(aims)):
            rows = torch.arange(len(x), device=x.device)
            if run and certain:  # the first run is for all: its trace shows every image
                rows = (chosen.accuracy > 0).nonzero()[:, 0]
            if len(rows) == 0:
                trace.repeat(self.steps)
                continue
            part = task.of(rows)
            found = part.climb(run, aims[run // self.restarts][rows], partial(trace.see, rows))
            chosen = chosen.improved(rows, part.judged(found))
        return chosen.x

    def legs(self, ball: Ball) -> Iterator[tuple[Ball, int]]:
        """The balls of a run, one after another, and the steps in each."""
        if not (self.shrinking and isinstance(ball, L1)):
            yield ball, self.steps
            return
        early = math.ceil(0.3 * self.steps)
        for factor, steps in ((3.0, early), (2.0, early), (1.0, self.steps - 2 * early)):
            yield replace(ball, eps=factor * ball.eps), steps


class _Proposals(NamedTuple):
    """One image each, with accuracy and loss on draws that are common to all proposals."""

    x: Tensor  # (B, C, H, W)
    accuracy: Tensor  # (B,)
    loss: Tensor  # (B,)

    def improved(self, rows: Tensor, new: _Proposals) -> _Proposals:
        """With the new proposals for some rows wherever they are better."""
        lower = better(new.accuracy, new.loss, self.accuracy[rows], self.loss[rows])
        return _Proposals(*(
            old.index_copy(0, rows, pick(lower, fresh, old[rows]))
            for old, fresh in zip(self, new, strict=True)
        ))  # fmt: skip


class _Trace:
    """Tells `watch` of all images, though some may sit out."""

    def __init__(self, watch: Watch | None) -> None:
        self.watch, self.count = watch, 0
        self.last: Expected | None = None

    def see(self, rows: Tensor, seen: Expected) -> None:
        """Note what was measured of some rows."""
        if self.last is not None:
            both = zip(self.last, seen, strict=True)
            seen = Expected(*(old.index_copy(0, rows, new) for old, new in both))
        self.last = seen
        if self.watch is not None:
            self.watch(self.count, seen)
        self.count += 1

    def repeat(self, times: int) -> None:
        """Nothing was measured so many times."""
        for _ in range(times):
            if self.watch is not None and self.last is not None:
                self.watch(self.count, self.last)
            self.count += 1


@dataclass(frozen=True)
class _Task:
    """An attack on some images."""

    attack: APGD
    model: Model
    x: Tensor
    y: Tensor
    ball: Ball
    noise: Noise
    begun: Tensor  # where `attack.start` leads

    def of(self, rows: Tensor) -> _Task:
        x, y, begun = self.x[rows], self.y[rows], self.begun[rows]
        return replace(self, x=x, y=y, begun=begun, noise=self.noise[rows])

    def logits(self, x: Tensor, noise: Noise, draws: int) -> Tensor:
        """Logits (B, draws, K); one draw if all would be the same."""
        return sampled_logits(self.model, x, noise, draws, self.attack.chunk)

    def judged(self, x: Tensor) -> _Proposals:
        """Accuracy and untargeted loss of proposals, on the same draws whoever proposes."""
        logits = self.logits(x, self.noise.fold("apgd judge"), max(self.attack.eot, JUDGE_DRAWS))
        labels = self.y[:, None].expand(logits.shape[:2]).flatten()
        loss = LOSSES[self.attack.loss](logits.flatten(0, 1), labels).view(logits.shape[:2])
        accuracy = right(logits, self.y[:, None]).to(x.dtype)
        return _Proposals(x, accuracy.mean(1), mean_of(loss, answered(logits)))

    def aims(self) -> list[Tensor]:
        """What each series of runs hands to its loss: the labels, or pairs of label and target."""
        wanted = self.attack.targets
        if wanted == 0:
            return [self.y]
        logits = self.logits(self.x, self.noise.fold("apgd target"), self.attack.eot)
        logits = mean_of(logits, answered(logits))
        classes = logits.shape[1]
        if wanted > classes - 1:
            raise ValueError(
                f"the model has {classes} classes, {classes - 1} of them wrong; "
                f"got targets={wanted}: pass at most targets={classes - 1}"
            )
        ranked = logits.scatter(1, self.y[:, None], -torch.inf).argsort(1, descending=True)
        return [pair(self.y, ranked[:, i], classes) for i in range(wanted)]

    def measured(self, here: Tensor, aim: Tensor, run: int, number: int) -> Expected:
        attack = self.attack
        return expected_grad(
            self.model, here, aim, dlr_targeted if attack.targets else LOSSES[attack.loss],
            self.noise.fold("apgd", run, number), attack.eot,
            average=attack.average, chunk=attack.chunk, labels=self.y,
        )  # fmt: skip

    def climb(self, run: int, aim: Tensor, see: Callable[[Expected], None]) -> Tensor:
        """One run from its start: its proposals."""
        here, numbers = self.started(run), itertools.count()
        for ball, steps in self.attack.legs(self.ball):
            climb = Climb(ball, self.x, ball.project(here, self.x))
            seen = climb.note(self.measured(climb.here, aim, run, next(numbers)))
            control = _control(self.attack, climb, steps)
            for _ in range(steps):
                see(seen)
                climb.move(control.step())
                seen = climb.note(self.measured(climb.here, aim, run, next(numbers)))
                control.check(seen.loss)
            here = climb.best
        return climb.found

    def started(self, run: int) -> Tensor:
        """Random points on the edge of the ball, cut to the box; for L1 a projected normal."""
        if self.attack.start is not None and run % self.attack.restarts == 0:
            return self.begun
        if not self.attack.random_start:
            return self.x
        noise, x = self.noise.fold("apgd start", run), self.x
        if isinstance(self.ball, Linf):
            z = 2.0 * noise.uniform("start", 0, x) - 1.0
        else:
            z = noise.normal("start", 0, x)
        if not isinstance(self.ball, L1):
            z = self.ball.eps * z / wide(self.ball.size(z), x)
        return next(self.attack.legs(self.ball))[0].project(x + z, x)


def _control(attack: APGD, climb: Climb, steps: int) -> Control:
    if isinstance(climb.ball, L1):
        return Sparse(climb, steps, warm=attack.shrinking)
    return Halving(climb, steps, attack.rho)
