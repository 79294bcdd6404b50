"""Ensembles: the strongest proposal of several attacks, image by image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from scipy.special import bdtr
from torch import Tensor

from depure.attacks.base import Attack, Watch, calls_of_watch
from depure.attacks.climb import better
from depure.attacks.expected import Expected
from depure.attacks.model import Model
from depure.attacks.queries import ask, check_counts, check_share, is_random, told
from depure.noise import Noise
from depure.threat import Ball


class Proposal(NamedTuple):
    """What a cascade found, and how it came to it.

    `accuracy` has an entry for the unattacked images and one after each member. Accuracies are
    those by which the cascade chose: the least of several is a lucky one, so they are below what
    fresh draws will say, and the judge's alone count.
    """

    x_adv: Tensor  # (B, C, H, W)
    winner: Tensor  # (B,) int8, whose proposal it is: a member's number, or -1, unattacked
    accuracy: Tensor  # (B, members + 1), of the best proposal until then
    attacked: Tensor  # (B, members) bool, whether the image was still there


class Score(NamedTuple):
    """What some draws say of one point per image."""

    accuracy: Tensor  # (B,), share of draws with the right label
    margin: Tensor  # (B,), mean of the best wrong logit over the label's

    def of(self, rows: Tensor) -> Score:
        """Of some points alone."""
        return Score(self.accuracy[rows], self.margin[rows])


@dataclass(frozen=True, eq=False)
class Case:
    """Images under attack: the arguments of a call."""

    model: Model
    x: Tensor
    y: Tensor
    ball: Ball
    noise: Noise

    def of(self, rows: Tensor) -> Case:
        """Some images alone."""
        return replace(self, x=self.x[rows], y=self.y[rows], noise=self.noise[rows])

    def score(self, points: Tensor, noise: Noise, draws: int, chunk: int | None) -> Score:
        """Score one point per image, (B, C, H, W), on draws of this noise."""
        answer = ask(self.model, points[:, None], self.y, noise, draws, chunk)
        return Score(answer.accuracy[:, 0], answer.margin[:, 0])


class Cascade(Attack):
    """Members one after another; an image leaves when a rule says that it is broken.

    The best proposal of an image begins as the image itself: the null control.
    """

    members: tuple[Attack, ...]
    chunk: int | None

    @abstractmethod
    def _score(self, case: Case, points: Tensor, stage: int) -> Score:
        """How good the points of a stage are: 0 the images, i + 1 what member i proposes."""

    @abstractmethod
    def _better(self, new: Score, old: Score) -> Tensor:
        """Whether the new score wins, (B,) bool."""

    @abstractmethod
    def _broken(self, case: Case, points: Tensor, score: Score, stage: int) -> Tensor:
        """Whether the best so far is good enough to leave before member `stage`, (B,) bool."""

    @property
    def needs_gradient(self) -> bool:
        """Whether a member does."""
        return any(member.needs_gradient for member in self.members)

    @property
    def iterations(self) -> int:
        """How often `watch` is called: by the members, and before and after them."""
        return sum(calls_of_watch(m) for m in self.members) + 2

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W), as `propose` finds them."""
        return self.propose(model, x, y, ball, noise, watch).x_adv

    def propose(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
        after: Callable[[], None] = lambda: None,
    ) -> Proposal:
        """The best proposal for each image, who made it, and accuracy member by member.

        `after` is called once the images are scored, and once after each member: whoever counts
        network calls reads them there (`evaluate` does, across kills too).

        The watch hears the members' iterations in turn, an image that has left repeating what was
        last seen of it. The first and the last of all are the ensemble's own, of the unattacked
        images and of the proposals: mean margin as loss, and accuracy. The losses in between are
        each member's.

        Raises:
            ValueError: a member does not fit the ball or the model.
        """
        case = Case(model, x, y, ball, noise)
        best = _Best.of(x, self._score(case, x, 0))
        trace = _Trace(watch, best.told())
        history, attacked = [best.score.accuracy], []
        after()
        for number, member in enumerate(self.members):
            rows = self._staying(case, best, number)
            trace.begin(calls_of_watch(member))
            if len(rows):
                self._attack(case.of(rows), rows, number, best, trace)
            trace.fill()
            history.append(best.score.accuracy)
            attacked.append(~best.gone)
            after()
        trace.begin(1)
        trace.see(torch.arange(len(x), device=x.device), 0, best.told())
        return Proposal(best.x, best.winner, torch.stack(history, 1), torch.stack(attacked, 1))

    def _staying(self, case: Case, best: _Best, number: int) -> Tensor:
        """The images, by row, that are to meet a member; the others have left."""
        rows = (~best.gone).nonzero()[:, 0]
        if len(rows):
            score = best.score.of(rows)
            broken = self._broken(case.of(rows), best.x[rows], score, number)
            best.gone = best.gone.index_copy(0, rows, broken)
        return (~best.gone).nonzero()[:, 0]

    def _attack(self, part: Case, rows: Tensor, number: int, best: _Best, trace: _Trace) -> None:
        """Hear a member's proposals for the images that are left."""
        noise, see = part.noise.fold("ensemble member", number), partial(trace.see, rows)
        found = self.members[number](part.model, part.x, part.y, part.ball, noise, see)
        score = self._score(part, found, number + 1)
        won = self._better(score, best.score.of(rows))
        best.take(rows[won], found[won], score.of(won), number)


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
        chunk: rows per forward pass when judging, by the size of the images if None; affects
            speed and memory only.

    Raises:
        ValueError: a setting is out of range, or a member is no attack.

    Example:
        >>> from depure.attacks import APGD, PGD
        >>> Ensemble((PGD(), APGD(loss="dlr", eot=20))).iterations
        122
    """

    members: tuple[Attack, ...]
    judge_draws: int = 50
    below: float = 0.1
    confidence: float = 0.95
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_members(self.members)
        check_counts(self, "judge_draws")
        check_share("below", self.below)
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must lie inside (0, 1); got {self.confidence}")

    @property
    def most_right(self) -> int:
        """Right draws that an image may have and leave; -1 if none, with too few `judge_draws`."""
        doubt, most = (1.0 - self.confidence) / len(self.members), -1
        while most + 1 < self.judge_draws and bdtr(most + 1, self.judge_draws, self.below) <= doubt:
            most += 1
        return most

    def _score(self, case: Case, points: Tensor, stage: int) -> Score:
        return case.score(points, case.noise.fold("ensemble"), self.judge_draws, self.chunk)

    def _better(self, new: Score, old: Score) -> Tensor:
        return better(*new, *old)

    def _broken(self, case: Case, points: Tensor, score: Score, stage: int) -> Tensor:
        if not is_random(case.model, case.noise):
            return score.accuracy == 0
        broken = torch.zeros_like(score.accuracy, dtype=torch.bool)
        # Draws already spent say for which images the test is worth its draws.
        rows = (score.accuracy <= self.below).nonzero()[:, 0]
        if self.most_right < 0 or not len(rows):
            return broken
        few = case.of(rows)
        fresh = few.noise.fold("ensemble leave", stage)
        sure = few.score(points[rows], fresh, self.judge_draws, self.chunk)
        right = (sure.accuracy * self.judge_draws).round()
        return broken.index_copy(0, rows, right <= self.most_right)


@dataclass(eq=False)
class _Best:
    """The best proposal of each image until now."""

    x: Tensor
    score: Score
    winner: Tensor
    gone: Tensor

    @staticmethod
    def of(x: Tensor, score: Score) -> _Best:
        nobody = torch.full((len(x),), -1, dtype=torch.int8, device=x.device)
        return _Best(x, score, nobody, nobody >= 0)

    def take(self, rows: Tensor, found: Tensor, score: Score, number: int) -> None:
        """These images have a better proposal, by a member."""
        self.x = self.x.index_copy(0, rows, found.to(self.x))
        both = zip(self.score, score, strict=True)
        self.score = Score(*(old.index_copy(0, rows, new) for old, new in both))
        self.winner = self.winner.index_fill(0, rows, number)

    def told(self) -> Expected:
        """What a watch hears of it."""
        return told(self.x, self.score.margin, self.score.accuracy)


class _Trace:
    """Tells `watch` of all images, equally often whoever has left."""

    def __init__(self, watch: Watch | None, first: Expected) -> None:
        self.watch, self.last, self.count, self.end = watch, first, 0, 1
        self.fill()

    def begin(self, iterations: int) -> None:
        """The next member, who is to be heard so often."""
        self.end = self.count + iterations

    def see(self, rows: Tensor, iteration: int, seen: Expected) -> None:
        """Note what a member measured of some rows."""
        if self.watch is None or self.count >= self.end:
            return
        both = zip(self.last, seen, strict=True)
        self.last = Expected(*(o.index_copy(0, rows, n.to(o)) for o, n in both))
        self.watch(self.count, self.last)
        self.count += 1

    def fill(self) -> None:
        """Nothing more was measured."""
        while self.watch is not None and self.count < self.end:
            self.watch(self.count, self.last)
            self.count += 1


def check_members(members: tuple[Attack, ...]) -> None:
    """Raise ValueError unless these are one to 127 attacks, in a tuple."""
    if not isinstance(members, tuple) or not 1 <= len(members) <= 127:
        got = f"{len(members)}" if isinstance(members, tuple) else type(members).__name__
        raise ValueError(f"members must be a tuple of 1 to 127 attacks; got {got}")
    strange = [m for m in members if not isinstance(m, Attack)]
    if strange:
        raise ValueError(f"every member must be an attack; got {strange[0]!r}")
