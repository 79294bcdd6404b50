"""The worst case over several attacks, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import bdtr
from torch import Tensor

from depure.attacks.base import Attack
from depure.attacks.case import Case, is_better
from depure.attacks.ensembles.cascade import Cascade, Score, check_members, scored
from depure.attacks.settings import check_count, check_inside, check_share


@dataclass(frozen=True)
class Ensemble(Cascade):
    """The worst case over attacks for each image, on draws that are common to all proposals.

    Per image, the proposal of lowest mean accuracy is kept, of largest mean margin among equals;
    the image itself is among the candidates, so what is wrong without attack is never credited to
    a member. Against a stochastic defence all meet the same `judge_draws` draws, which no member
    saw. The evaluation then judges the choice on others.

    An image leaves before a member if its best candidate is broken with confidence: on
    `judge_draws` draws more, new at every stage, so few are right that an accuracy of `below`
    or more would have given as few with a chance of at most 1 - `confidence`, shared equally
    among all stages (an exact binomial test): of the images that should stay, at most that share
    ever leaves. With too few draws to be so sure (44 suffice for five members, see
    `most_right`), every image meets every member. Where nothing is random, one wrong draw is
    certain.

    Args:
        members: attacks, the strongest for their cost first; they may be ensembles.
        judge_draws: draws on which proposals are compared, and again on which an image leaves.
        below: accuracy under which an image is broken.
        confidence: of the decision that it is.

    Raises:
        ValueError: a setting is out of range, or a member is no attack.

    Example:
        >>> from depure.attacks import APGD, PGD
        >>> len(Ensemble((PGD(), APGD(loss="dlr", eot=20))).members)
        2
    """

    members: tuple[Attack, ...]
    judge_draws: int = 50
    below: float = 0.1
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_members(self.members)
        check_count("judge_draws", self.judge_draws)
        check_share("below", self.below)
        check_inside("confidence", self.confidence)

    @property
    def most_right(self) -> int:
        """Right draws that an image may have and leave; -1 if none, with too few `judge_draws`."""
        doubt, most = (1.0 - self.confidence) / len(self.members), -1
        while most + 1 < self.judge_draws and bdtr(most + 1, self.judge_draws, self.below) <= doubt:
            most += 1
        return most

    def _score(self, case: Case, points: Tensor, stage: int) -> Score:
        return scored(case, points, self.judge_draws, ("ensemble",))

    def _better(self, new: Score, old: Score) -> Tensor:
        return is_better(*new, *old)

    def _broken(self, case: Case, points: Tensor, score: Score, stage: int) -> Tensor:
        if not case.random:
            return score.accuracy == 0
        broken = torch.zeros_like(score.accuracy, dtype=torch.bool)
        # Draws already spent say for which images the test is worth its draws.
        rows = (score.accuracy <= self.below).nonzero()[:, 0]
        if self.most_right < 0 or not len(rows):
            return broken
        key = ("ensemble leave", stage)
        sure = scored(case.rows(rows), points[rows], self.judge_draws, key)
        right = (sure.accuracy * self.judge_draws).round()
        return broken.index_copy(0, rows, right <= self.most_right)
