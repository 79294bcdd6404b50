"""APGD: projected ascent that finds its own step sizes, for L-inf, L2 and L1."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from depure.answers import answered, mean_of, right
from depure.attacks.asking.gradients import JUDGE_DRAWS, Average, Expected
from depure.attacks.asking.losses import LOSSES, dlr_targeted, pair
from depure.attacks.base import Attack, TraceOf, Watch, check_start, start_point
from depure.attacks.case import Case, is_better
from depure.attacks.gradient.apgd_steps import APGDState, Halving, Sparse, StepRule
from depure.attacks.settings import check_count, check_inside, check_loss
from depure.rows import per_image, where_rows
from depure.threat.balls import L1, Ball, Linf, Norm


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
      content with a few draws that are very wrong, while accuracy alone is coarse. Taking the
      minimum of several noisy means biases it downwards, so the image itself and the proposals
      of all runs are then compared, by the same rule, on draws that none of them saw
      (`max(eot, 20)`, forward only).
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

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("restarts", self.restarts), ("eot", self.eot)):
            check_count(name, value)
        check_count("targets", self.targets, least=0)
        check_inside("rho", self.rho)
        check_loss(self.loss, self.average)
        if self.shrinking and self.steps < 5:
            raise ValueError(f"shrinking needs at least 5 steps; got {self.steps}")
        if self.targets and self.loss != "dlr":
            raise ValueError(
                f"targets are reached with the targeted DLR loss; got loss={self.loss!r}: "
                f"pass loss='dlr', or targets=0"
            )
        check_start(self.start, random_start=False)

    @staticmethod
    def targeted(targets: int = 9) -> APGD:
        """APGD-T of AutoAttack: the targeted DLR loss at the 9 likeliest wrong classes in turn."""
        return APGD(loss="dlr", targets=targets)

    @property
    def trace_of(self) -> TraceOf:
        """The targets one after another, if there are several."""
        return "several targets" if self.targets > 1 else "defence"

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """L1 alone if `shrinking`."""
        return (L1,) if self.shrinking else (Norm,)

    @property
    def iterations(self) -> int:
        """Iterations of all runs."""
        return self.steps * self.restarts * max(1, self.targets)

    def trace_length(self, case: Case) -> int:
        """`iterations`."""
        return self.iterations

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place.

        The watch hears every step's start; an image that sits out repeats what was last seen.
        """
        first = case.x if self.start is None else start_point(case, self.start, False)
        task = _Runs(self, case, first)
        aims, chosen, trace = task.aims(), task.judged(case.x), _Trace(watch)
        for run in range(self.restarts * len(aims)):
            rows = torch.arange(len(case.x), device=case.x.device)
            if run and not case.random:  # the first run is for all: its trace shows every image
                rows = (chosen.accuracy > 0).nonzero()[:, 0]
            if len(rows) == 0:
                trace.repeat(self.steps)
                continue
            part = task.rows(rows)
            proposals = part.climb(run, aims[run // self.restarts][rows], partial(trace.see, rows))
            chosen = chosen.or_better(rows, part.judged(proposals))
        return chosen.x

    def legs(self, ball: Norm) -> Iterator[tuple[Norm, int]]:
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

    def or_better(self, rows: Tensor, new: _Proposals) -> _Proposals:
        """With the new proposals for some rows wherever they are better."""
        lower = is_better(new.accuracy, new.loss, self.accuracy[rows], self.loss[rows])
        kept = [
            old.index_copy(0, rows, where_rows(lower, fresh, old[rows]))
            for old, fresh in zip(self, new, strict=True)
        ]
        return _Proposals(*kept)


class _Trace:
    """Reports all images to the watch, though some may sit out."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.last: Expected | None = None

    def see(self, rows: Tensor, seen: Expected) -> None:
        """Note what was measured of some rows."""
        if self.last is not None:
            both = zip(self.last, seen, strict=True)
            seen = Expected(*(old.index_copy(0, rows, new) for old, new in both))
        self.last = seen
        self.watch.iteration(seen)

    def repeat(self, times: int) -> None:
        """Nothing was measured so many times."""
        for _ in range(times if self.last is not None else 0):
            assert self.last is not None
            self.watch.iteration(self.last)


@dataclass(frozen=True, eq=False)
class _Runs:
    """The runs of an attack on some images."""

    attack: APGD
    case: Case
    first: Tensor  # where `attack.start` leads

    def rows(self, rows: Tensor) -> _Runs:
        return replace(self, case=self.case.rows(rows), first=self.first[rows])

    def judged(self, x: Tensor) -> _Proposals:
        """Accuracy and untargeted loss of proposals, on the same draws whoever proposes."""
        logits = self.case.logits(x, max(self.attack.eot, JUDGE_DRAWS), ("apgd judge",))
        labels = self.case.y[:, None].expand(logits.shape[:2]).flatten()
        loss = LOSSES[self.attack.loss](logits.flatten(0, 1), labels).view(logits.shape[:2])
        accuracy = right(logits, self.case.y[:, None]).to(x.dtype)
        return _Proposals(x, accuracy.mean(1), mean_of(loss, answered(logits)))

    def aims(self) -> list[Tensor]:
        """What each series of runs hands to its loss: the labels, or pairs of label and target."""
        wanted, y = self.attack.targets, self.case.y
        if wanted == 0:
            return [y]
        logits = self.case.logits(self.case.x, self.attack.eot, ("apgd target",))
        logits = mean_of(logits, answered(logits))
        classes = logits.shape[1]
        if wanted > classes - 1:
            raise ValueError(
                f"the model has {classes} classes, {classes - 1} of them wrong; "
                f"got targets={wanted}: pass at most targets={classes - 1}"
            )
        ranked = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
        return [pair(y, ranked[:, i], classes) for i in range(wanted)]

    def measured(self, point: Tensor, aim: Tensor, run: int, number: int) -> Expected:
        attack = self.attack
        loss = dlr_targeted if attack.targets else LOSSES[attack.loss]
        key = ("apgd", run, number)
        return self.case.gradient(point, loss, attack.eot, key, average=attack.average, aim=aim)

    def climb(self, run: int, aim: Tensor, see: Callable[[Expected], None]) -> Tensor:
        """One run from its start: its proposals."""
        point, numbers = self.start(run), itertools.count()
        for ball, steps in self.attack.legs(self.case.norm):
            state = APGDState(ball, self.case.x, ball.project(point, self.case.x))
            seen = state.note(self.measured(state.point, aim, run, next(numbers)))
            rule = _step_rule(self.attack, state, steps)
            for _ in range(steps):
                see(seen)
                state.move(rule.step())
                seen = state.note(self.measured(state.point, aim, run, next(numbers)))
                rule.check(seen.loss)
            point = state.best
        return state.proposal

    def start(self, run: int) -> Tensor:
        """Random points on the edge of the ball, cut to the box; for L1 a projected normal."""
        x, ball = self.case.x, self.case.norm
        if self.attack.start is not None and run % self.attack.restarts == 0:
            return self.first
        if not self.attack.random_start:
            return x
        noise = self.case.noise.fold("apgd start", run)
        if isinstance(ball, Linf):
            z = 2.0 * noise.uniform("start", 0, x) - 1.0
        else:
            z = noise.normal("start", 0, x)
        if not isinstance(ball, L1):
            z = ball.eps * z / per_image(ball.size(z), x)
        return next(self.attack.legs(ball))[0].project(x + z, x)


def _step_rule(attack: APGD, state: APGDState, steps: int) -> StepRule:
    if isinstance(state.ball, L1):
        return Sparse(state, steps, warm=attack.shrinking)
    return Halving(state, steps, attack.rho)
