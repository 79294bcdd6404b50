"""Attacks one after another: the strongest proposal of each image, and who leaves when."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from depure.attacks.asking.gradients import Expected
from depure.attacks.asking.queries import as_measurement
from depure.attacks.base import Attack, Watch
from depure.attacks.case import Case, Key
from depure.threat.balls import Ball


class Proposal(NamedTuple):
    """The best proposals of a cascade, and how it came to them.

    `accuracy` has an entry for the unattacked images and one after each member. Accuracies are
    those by which the cascade chose: taking the minimum of several noisy means biases it
    downwards, so they are below what fresh draws will say, and the judge's alone count.
    """

    x_adv: Tensor  # (B, C, H, W)
    winner: Tensor  # (B,) int8, whose proposal it is: a member's number, or -1, unattacked
    accuracy: Tensor  # (B, members + 1), of the best proposal until then
    attacked: Tensor  # (B, members) bool, whether the image was still there


class Score(NamedTuple):
    """What some draws say of one point per image."""

    accuracy: Tensor  # (B,), share of draws with the right label
    margin: Tensor  # (B,), mean of the best wrong logit over the label's

    def rows(self, rows: Tensor) -> Score:
        """Of some points alone."""
        return Score(self.accuracy[rows], self.margin[rows])


def scored(case: Case, points: Tensor, draws: int, key: Key) -> Score:
    """Score one point per image, (B, C, H, W), on draws of their own."""
    answer = case.margins(points[:, None], draws, key)
    return Score(answer.accuracy[:, 0], answer.margin[:, 0])


class Cascade(Attack):
    """Members one after another; an image leaves when a rule says that it is broken.

    The best proposal of an image begins as the image itself: the null control.
    """

    members: tuple[Attack, ...]

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
    def balls(self) -> tuple[type[Ball], ...]:
        """Those in which every member attacks."""
        kinds = {kind: None for member in self.members for kind in member.balls}
        return tuple(k for k in kinds if all(issubclass(k, m.balls) for m in self.members))

    @property
    def needs_gradient(self) -> bool:
        """Whether a member does."""
        return any(member.needs_gradient for member in self.members)

    def trace_length(self, case: Case) -> int:
        """That of the members, and one entry before and after them."""
        return sum(member.trace_length(case) for member in self.members) + 2

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W), see `search`."""
        return self.search(case, watch).x_adv

    def search(self, case: Case, watch: Watch) -> Proposal:
        """The best proposal for each image, whose it is, and accuracy member by member.

        The watch hears the members' iterations in order; an image that has left repeats its last
        entry. The first and the last entry are the ensemble's own, of the unattacked images and
        of the proposals: mean margin as loss, and accuracy. The losses in between are each
        member's. It hears `member` once the images are scored, and after each member.

        Raises:
            ValueError: a member does not fit the model.
        """
        best = _Best.of(case.x, self._score(case, case.x, 0))
        trace = _Trace(watch, best.measurement())
        history, attacked = [best.score.accuracy], []
        watch.member(0, best.score.accuracy)
        for number, member in enumerate(self.members):
            rows = self._staying(case, best, number)
            trace.begin(member.trace_length(case))
            if len(rows):
                self._attack(case.rows(rows), rows, number, best, trace)
            trace.fill()
            history.append(best.score.accuracy)
            attacked.append(~best.gone)
            watch.member(number + 1, best.score.accuracy)
        trace.begin(1)
        trace.see(torch.arange(len(case.x), device=case.x.device), best.measurement())
        return Proposal(best.x, best.winner, torch.stack(history, 1), torch.stack(attacked, 1))

    def _staying(self, case: Case, best: _Best, number: int) -> Tensor:
        """The images, by row, that are to meet a member; the others have left."""
        rows = (~best.gone).nonzero()[:, 0]
        if len(rows):
            score = best.score.rows(rows)
            broken = self._broken(case.rows(rows), best.x[rows], score, number)
            best.gone = best.gone.index_copy(0, rows, broken)
        return (~best.gone).nonzero()[:, 0]

    def _attack(self, part: Case, rows: Tensor, number: int, best: _Best, trace: _Trace) -> None:
        """Take a member's proposals for the images that are left, where they are better."""
        noise = part.noise.fold("ensemble member", number)
        of_rows = _OfRows(trace, rows)
        x_adv = self.members[number](part.model, part.x, part.y, part.ball, noise, watch=of_rows)
        score = self._score(part, x_adv, number + 1)
        won = self._better(score, best.score.rows(rows))
        best.take(rows[won], x_adv[won], score.rows(won), number)


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

    def take(self, rows: Tensor, x_adv: Tensor, score: Score, number: int) -> None:
        """These images have a better proposal, by a member."""
        self.x = self.x.index_copy(0, rows, x_adv.to(self.x))
        both = zip(self.score, score, strict=True)
        self.score = Score(*(old.index_copy(0, rows, new) for old, new in both))
        self.winner = self.winner.index_fill(0, rows, number)

    def measurement(self) -> Expected:
        """As an entry of the trace."""
        return as_measurement(self.x, self.score.margin, self.score.accuracy)


class _Trace:
    """Reports all images to the watch, each member with as many entries as it was to have."""

    def __init__(self, watch: Watch, first: Expected) -> None:
        self.watch, self.last, self.left = watch, first, 1
        self.fill()

    def begin(self, length: int) -> None:
        """The next member, which has so many entries."""
        self.left = length

    def see(self, rows: Tensor, seen: Expected) -> None:
        """Note what a member measured of some rows."""
        if self.left <= 0:
            return
        both = zip(self.last, seen, strict=True)
        self.last = Expected(*(o.index_copy(0, rows, n.to(o)) for o, n in both))
        self.watch.iteration(self.last)
        self.left -= 1

    def fill(self) -> None:
        """Nothing more was measured."""
        for _ in range(self.left):
            self.watch.iteration(self.last)
        self.left = 0


class _OfRows(Watch):
    """Hears a member that was given some of the images."""

    def __init__(self, trace: _Trace, rows: Tensor) -> None:
        self.trace, self.rows = trace, rows

    def iteration(self, measured: Expected) -> None:
        self.trace.see(self.rows, measured)


def check_members(members: tuple[Attack, ...]) -> None:
    """Raise ValueError unless these are one to 127 attacks, in a tuple."""
    if not isinstance(members, tuple) or not 1 <= len(members) <= 127:
        got = f"{len(members)}" if isinstance(members, tuple) else type(members).__name__
        raise ValueError(f"members must be a tuple of 1 to 127 attacks; got {got}")
    strange = [m for m in members if not isinstance(m, Attack)]
    if strange:
        raise ValueError(f"every member must be an attack; got {strange[0]!r}")
