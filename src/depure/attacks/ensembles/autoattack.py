"""AutoAttack in four versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from depure.attacks.base import Attack
from depure.attacks.blackbox.square import Square
from depure.attacks.case import Case
from depure.attacks.ensembles.cascade import Cascade, Score, check_members, scored
from depure.attacks.ensembles.ensemble import Ensemble
from depure.attacks.gradient.apgd import APGD
from depure.attacks.gradient.fab import FAB
from depure.attacks.settings import check_count
from depure.threat.balls import L1, Ball

Version = Literal["standard", "rand", "stochastic", "fixed"]

_QUERIES = 5000  # Square's, as published


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
        >>> [member.loss for member in autoattack("rand", steps=20, eot=5).members]
        ['ce', 'dlr']
    """
    if version not in get_args(Version):
        raise ValueError(f"version must be one of {', '.join(get_args(Version))}; got {version!r}")
    check_count("classes", classes, least=2)
    l1 = isinstance(ball, L1)
    draws = 1 if version == "standard" else eot
    if version in ("rand", "fixed"):
        apgd = [
            APGD(steps, loss=loss, eot=draws, shrinking=l1)
            for loss in ("ce", dlr_or_margin(classes))
        ]
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
    `search(...).accuracy[:, -1].mean()`. Taking the minimum of several noisy means biases it
    downwards, also when no attack does anything. The evaluation judges the same images on fresh
    draws.

    Their members are the published APGD, which believes single draws; those here decide on means
    (see `APGD`) and are the stronger for it.

    Args:
        members: the attacks.
        evals: draws of every proposal (one, if all noise is known).
    """

    members: tuple[Attack, ...]
    evals: int = 20

    def __post_init__(self) -> None:
        check_members(self.members)
        check_count("evals", self.evals)

    def _score(self, case: Case, points: Tensor, stage: int) -> Score:
        return scored(case, points, self.evals, ("fixed", stage))

    def _better(self, new: Score, old: Score) -> Tensor:
        return new.accuracy < old.accuracy

    def _broken(self, case: Case, points: Tensor, score: Score, stage: int) -> Tensor:
        return score.accuracy == 0


def dlr_or_margin(classes: int) -> str:
    """The loss that needs no scale: DLR is not defined for fewer than 3 classes."""
    return "dlr" if classes > 2 else "margin"
