"""Stated batteries of attacks: AutoAttack's, and the strongest for a number of network calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor, nn

from depure.attacks.adaptive import DiffHammer
from depure.attacks.apgd import APGD
from depure.attacks.base import Attack, Heard, Watch, calls_of_watch, elsewhere
from depure.attacks.ensemble import (
    Cascade,
    Case,
    Ensemble,
    Score,
    check_members,
)
from depure.attacks.expected import JUDGE_DRAWS
from depure.attacks.fab import FAB
from depure.attacks.model import Model
from depure.attacks.pgd import PGD
from depure.attacks.queries import check_counts
from depure.attacks.square import Square
from depure.noise import Noise
from depure.threat import L1, Ball, Linf

Version = Literal["standard", "rand", "stochastic", "fixed"]

_QUERIES = 5000  # Square's, as published
_FEWEST = 5  # steps worth an attack
_LONGEST = 1000  # steps of PGD and Square beyond which nothing is gained
_RUN = 200  # steps of an APGD run before another start is the better use of calls


def autoattack(
    version: Version = "standard",
    ball: Ball | None = None,
    *,
    steps: int = 100,
    queries: int = _QUERIES,
    eot: int = 20,
    classes: int = 10,
) -> Cascade:
    """AutoAttack (Croce & Hein, 2003.01690) in one of four versions.

    - "standard": APGD-CE, APGD-T, FAB-T and Square on single draws, for deterministic defences.
    - "rand": APGD-CE and APGD-DLR with EoT.
    - "stochastic": ours, the four of "standard" with EoT-averaged gradients and decisions.
    - "fixed": the members of "rand" as the ADDT authors choose among them, see
      `FixedAutoAttack`.

    All but "fixed" are an `Ensemble`: whatever the version, an image leaves only when it is broken
    with confidence, where the published program believes one draw. Against L1, as published,
    APGD-CE has 5 restarts and APGD-T 5 targets in "standard" and "stochastic", and APGD runs in
    shrinking balls (here in "rand" and "fixed" as well); Square has no L1 and is left out.

    Args:
        version: which.
        ball: the ball that is attacked; L-inf if None.
        steps: of APGD and FAB; fewer for a short run.
        queries: of Square, whose schedule of sizes is stretched to any number but the published.
        eot: draws averaged in all versions but "standard".
        classes: of the model. With fewer than 10 there are fewer targets; with fewer than 4,
            APGD-T becomes APGD on the untargeted margin, and so does APGD-DLR with fewer than 3.

    Raises:
        ValueError: an unknown version, or a setting that is out of range.

    Example:
        >>> autoattack("rand", steps=20, eot=5).iterations
        42
    """
    if version not in get_args(Version):
        raise ValueError(f"version must be one of {', '.join(get_args(Version))}; got {version!r}")
    _check_classes(classes)
    l1 = isinstance(ball, L1)
    draws = 1 if version == "standard" else eot
    if version in ("rand", "fixed"):
        apgd = [APGD(steps, loss=loss, eot=draws, shrinking=l1) for loss in ("ce", _dlr(classes))]
        return FixedAutoAttack(tuple(apgd)) if version == "fixed" else Ensemble(tuple(apgd))
    aims = min(5 if l1 else 9, classes - 1) if classes > 3 else 0
    members: list[Attack] = [
        APGD(steps, restarts=5 if l1 else 1, eot=draws, shrinking=l1),
        APGD(steps, loss="dlr" if aims else "margin", targets=aims, eot=draws, shrinking=l1),
        FAB(min(9, classes - 1), steps, eot=draws),
    ]
    if not l1:
        members.append(Square(queries, draws, rescale=queries != _QUERIES))
    return Ensemble(tuple(members))


@dataclass(frozen=True)
class FixedAutoAttack(Cascade):
    """The choice among attacks of the ADDT authors' "fixed" AutoAttack.

    The unattacked image and each member's proposal are classified `evals` times, each on draws of
    its own; a proposal takes over if its mean accuracy is strictly lower, and images at 0 leave.
    What they report, the mean over images of that least accuracy, is
    `propose(...).accuracy[:, -1].mean()`. It is biased down: the least of several means is a lucky
    one, also when no attack does anything. The evaluation judges the same images on fresh draws.

    Their members are the published APGD, which believes single draws; those here decide on means
    (see `APGD`) and are the stronger for it.

    Args:
        members: the attacks.
        evals: draws of every proposal (one, if all noise is known).
        chunk: rows per forward pass when judging, by the size of the images if None; affects
            speed and memory only.
    """

    members: tuple[Attack, ...]
    evals: int = 20
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_members(self.members)
        check_counts(self, "evals")

    def _score(self, case: Case, points: Tensor, stage: int) -> Score:
        return case.score(points, case.noise.fold("fixed", stage), self.evals, self.chunk)

    def _better(self, new: Score, old: Score) -> Tensor:
        return new.accuracy < old.accuracy

    def _broken(self, case: Case, points: Tensor, score: Score, stage: int) -> Tensor:
        return score.accuracy == 0


@dataclass(frozen=True)
class Transfer(Attack):
    """An attack on the classifier without its purifier, whose images the defence then meets.

    A gradient problem of the defence cannot hide from it. What its watch hears is measured on the
    bare classifier.

    Args:
        attack: any; where there is no noise, EoT is one draw.
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K), in eval mode.
    """

    attack: Attack
    classifier: nn.Module = field(repr=False)

    @property
    def heard(self) -> Heard:
        """The attack on the classifier."""
        return elsewhere(self.attack)

    @property
    def needs_gradient(self) -> bool:
        """No: it asks the classifier for gradients, and the defence for nothing."""
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
        """Adversarial images (B, C, H, W); the defence is not asked.

        Raises:
            ValueError: a part of the classifier is in train mode.
        """
        if any(part.training for part in self.classifier.modules()):
            raise ValueError(
                "the classifier to transfer from is in train mode, where its answers depend on "
                "the batch or on chance: call classifier.eval()"
            )
        plain = Noise(noise.keys)  # the stages that are held are the purifier's
        return self.attack(_Bare(self.classifier), x, y, ball, plain, watch)


class _Bare(nn.Module):
    """A classifier as a defence without noise."""

    stages: tuple[str, ...] = ()

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits


@dataclass(frozen=True)
class _Purse:
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

    def hammer(self, calls: int) -> Attack | None:
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
        """Shares of the calls and what they buy, in order."""
        apgd: list[tuple[float, Callable[[int], Attack | None]]] = [
            (0.30, lambda calls: self.apgd(calls, "ce")),
            (0.10, lambda calls: self.apgd(calls, _dlr(self.classes))),
            (0.05, self.transfer),
        ]
        if isinstance(self.ball, L1):
            return apgd
        return [(0.40, self.hammer), *apgd, (0.15, self.square)]


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
    for comparing their proposals and confirming what is broken. A member that is not to be had for
    its share (or is not made for L1, as all but APGD) is left out, and the others share its calls.
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
    _check_classes(classes)
    purse = _Purse(ball or Linf(), classes, random, classifier)
    plan = purse.members()
    while plan:
        draws = _judge_draws(calls, len(plan), random)
        left = max(calls - (2 * len(plan) + 1) * draws, 0)
        whole = sum(share for share, _ in plan)
        bought = [(share, buy, buy(int(left * share / whole))) for share, buy in plan]
        members = tuple(attack for _, _, attack in bought if attack is not None)
        if len(members) == len(plan):
            return Ensemble(members, judge_draws=draws)
        unaffordable = [i for i, entry in enumerate(bought) if entry[2] is None]
        del plan[unaffordable[-1]]
    raise ValueError(f"{calls} calls per image buy no attack: allow 100 or more")


def _judge_draws(calls: int, members: int, random: bool) -> int:
    """Draws that compare all proposals, and are drawn again to let images leave."""
    return min(max(int(0.15 * calls) // (2 * members + 1), 1), 50) if random else 1


def _check_classes(classes: int) -> None:
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes must be at least 2, a whole number; got {classes}")


def _dlr(classes: int) -> str:
    return "dlr" if classes > 2 else "margin"
