"""The strongest battery of attacks for a number of network calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from depure.attacks.asking.gradients import JUDGE_DRAWS
from depure.attacks.base import Attack
from depure.attacks.blackbox.square import Square
from depure.attacks.ensembles.autoattack import dlr_or_margin
from depure.attacks.ensembles.ensemble import Ensemble
from depure.attacks.gradient.apgd import APGD
from depure.attacks.gradient.diffhammer import DiffHammer
from depure.attacks.gradient.pgd import PGD
from depure.attacks.purifier.substitute import Transfer
from depure.attacks.settings import check_count
from depure.threat.balls import L1, Ball, Linf

_FEWEST = 5  # steps worth an attack
_LONGEST = 1000  # steps of PGD and Square beyond which nothing is gained
_RUN = 200  # steps of an APGD run before another start is the better use of calls


@dataclass(frozen=True)
class _Budget:
    """Calls per image that one member may spend, and how to spend them."""

    ball: Ball
    classes: int
    random: bool
    classifier: nn.Module | None

    def split(self, calls: int) -> tuple[int, int]:
        """Steps and draws: ten steps for each draw, up to 20 draws (then PGD200+EoT20)."""
        eot = min(max(round(math.sqrt(calls / 10)), 1), 20) if self.random else 1
        return calls // eot, eot

    def pgd(self, calls: int) -> Attack | None:
        steps, eot = self.split(calls)
        if steps < _FEWEST:
            return None
        return PGD(min(steps, _LONGEST), eot=eot)

    def diffhammer(self, calls: int) -> Attack | None:
        """PGD where nothing is random or the calls are too few."""
        _, eot = self.split(calls)
        steps = (calls - 2 * max(eot, JUDGE_DRAWS)) // eot - 1
        if not self.random or steps < _FEWEST:
            return self.pgd(calls)
        return DiffHammer(min(steps, _LONGEST), eot=eot)

    def apgd(self, calls: int, loss: str, random: bool | None = None) -> APGD | None:
        """As many runs of 200 steps as there are calls for, or one that is shorter."""
        shrinking = isinstance(self.ball, L1)
        judge = JUDGE_DRAWS if (self.random if random is None else random) else 1
        _, eot = self.split(calls) if judge > 1 else (0, 1)
        runs = max((calls - judge) // (_RUN * eot + judge), 1)
        steps = ((calls - judge) // runs - judge) // eot - (3 if shrinking else 1)
        if steps < _FEWEST:
            return None
        return APGD(steps, restarts=runs, loss=loss, eot=eot, shrinking=shrinking)

    def transfer(self, calls: int) -> Attack | None:
        """No noise: one draw is enough."""
        attack = self.apgd(calls, "ce", random=False)
        return Transfer(attack, self.classifier) if attack and self.classifier else None

    def square(self, calls: int) -> Attack | None:
        pairs, eot = self.split(calls // 2)
        steps = pairs - 1 if self.random else calls - 2
        if steps < _FEWEST:
            return None
        return Square(min(steps, 10 * _LONGEST), eot)

    def members(self) -> list[tuple[float, Callable[[int], Attack | None]]]:
        """Share of the calls per member, and how to make it, in order."""
        apgd: list[tuple[float, Callable[[int], Attack | None]]] = [
            (0.30, lambda calls: self.apgd(calls, "ce")),
            (0.10, lambda calls: self.apgd(calls, dlr_or_margin(self.classes))),
            (0.05, self.transfer),
        ]
        if isinstance(self.ball, L1):
            return apgd
        return [(0.40, self.diffhammer), *apgd, (0.15, self.square)]


def strongest(
    calls: int,
    ball: Ball | None = None,
    classifier: nn.Module | None = None,
    *,
    classes: int = 10,
    random: bool = True,
) -> Ensemble:
    """The battery for a budget of network calls, strongest per call first.

    DiffHammer (0.40 of the calls; PGD where nothing is random), APGD-CE (0.30), APGD-DLR (0.10),
    transfer of APGD-CE from the undefended classifier (0.05) and Square (0.15), after 0.15 of all
    for comparing their proposals and confirming what is broken. A member that its share cannot
    pay for (or is not made for L1, as all but APGD) is left out, and the others share its calls.
    Calls are split into about ten steps for every EoT draw, up to 20 draws.

    A call is one image through the defence (or the bare classifier) once, under one draw; gradients
    cost a backward pass each besides. No image ever costs more than `calls`, and one that leaves
    early costs less. `evaluate` records accuracy against calls.

    Args:
        calls: calls per image, judging of proposals included but not the evaluation's.
        ball: the ball that is attacked; L-inf if None.
        classifier: the undefended classifier, in eval mode; without it there is no transfer.
        classes: of the model; the margin replaces the DLR loss with fewer than 3.
        random: whether draws of the defence differ; False if it is deterministic or all of its
            noise is known, and then nothing is spent on EoT.

    Raises:
        ValueError: too few calls for any member, or `classes` below 2.

    Example:
        >>> [type(m).__name__ for m in strongest(4000).members]
        ['DiffHammer', 'APGD', 'APGD', 'Square']
    """
    check_count("classes", classes, least=2)
    budget = _Budget(ball or Linf(), classes, random, classifier)
    plan = budget.members()
    while plan:
        draws = _judge_draws(calls, len(plan), random)
        left = max(calls - (2 * len(plan) + 1) * draws, 0)
        whole = sum(share for share, _ in plan)
        made = [make(int(left * share / whole)) for share, make in plan]
        members = tuple(attack for attack in made if attack is not None)
        if len(members) == len(plan):
            return Ensemble(members, judge_draws=draws)
        unaffordable = [i for i, attack in enumerate(made) if attack is None]
        del plan[unaffordable[-1]]
    raise ValueError(f"{calls} calls per image are too few for any attack: allow 100 or more")


def _judge_draws(calls: int, members: int, random: bool) -> int:
    """Draws that compare all proposals, and are drawn again to let images leave."""
    return min(max(int(0.15 * calls) // (2 * members + 1), 1), 50) if random else 1
