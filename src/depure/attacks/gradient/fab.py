"""FAB: the smallest adversarial change, by projections onto the linearised decision boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from depure.answers import answered, mean_of, right
from depure.attacks.asking.gradients import Expected
from depure.attacks.asking.losses import margin, pair
from depure.attacks.base import Attack, TraceOf, Watch
from depure.attacks.case import Case
from depure.attacks.gradient.hyperplane import onto_plane
from depure.attacks.settings import check_count, check_inside
from depure.rows import per_image, where_rows
from depure.threat.balls import L1, L2, Ball, Linf, Norm

_SHORT = 0.1


@dataclass(frozen=True)
class FAB(Attack):
    """FAB-T (Croce & Hein, 1907.02044, algorithm 1; targeted as in AutoAttack, 2003.01690).

    A minimal-norm attack in L-inf, L2 or L1, run once for each of the likeliest wrong classes.
    It proposes the smallest adversarial point found where that lies in the ball, else that point
    projected into the ball (the iterate of largest margin, where none was adversarial).

    Against a stochastic defence the difference of logits and its gradient are means over `eot`
    fresh draws per iteration. An iterate is adversarial when the share of draws with the right
    label is under `below`: at 1/2, when most draws are wrong. This decision takes `eot` draws of
    its own, the same for all iterates of an image: fresh ones each time would crown, over
    hundreds of iterations, whichever point was luckiest. Where the mean logits favour the target
    and the point is not adversarial yet (never so without randomness), the attack aims beyond
    the plane on which the two logits are equal.

    Args:
        targets: wrong classes tried per image, the likeliest first by the clean mean logits.
        steps: iterations of a run; there is a run for each target and restart, and `iterations`
            in all.
        restarts: runs per target; the first starts at the image, others at a random point at
            half the radius of the ball, or of the best point if smaller.
        eot: draws averaged (one, if all noise is known).
        alpha_max: largest weight of the step from the original image.
        eta: overshoot of the projections.
        beta: an adversarial iterate goes back to this share of its distance.
        search: secant steps between image and best point at the end.
        below: share of right draws under which a point is adversarial.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> FAB(targets=3, steps=20).iterations
        60
    """

    targets: int = 9
    steps: int = 100
    restarts: int = 1
    eot: int = 10
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    search: int = 3
    below: float = 0.5

    def __post_init__(self) -> None:
        counts = {"targets": self.targets, "steps": self.steps, "restarts": self.restarts}
        for name, value in {**counts, "eot": self.eot}.items():
            check_count(name, value)
        check_count("search", self.search, least=0)
        if not 0.0 <= self.alpha_max <= 1.0:
            raise ValueError(f"alpha_max must lie in [0, 1]; got {self.alpha_max}")
        if not self.eta >= 1.0:
            raise ValueError(f"eta must be at least 1, to cross the boundary; got {self.eta}")
        check_inside("beta", self.beta)
        if not 0.0 < self.below <= 1.0:
            raise ValueError(f"below must be a share of draws in (0, 1]; got {self.below}")

    @property
    def trace_of(self) -> TraceOf:
        """Points on the boundary, in the bound or not, class by class."""
        return "several targets"

    @property
    def iterations(self) -> int:
        """Iterations of all runs."""
        return self.targets * self.restarts * self.steps

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """Those with a projection onto planes."""
        return (Linf, L2, L1)

    def trace_length(self, case: Case) -> int:
        """`iterations`."""
        return self.iterations

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place.

        Images that are adversarial unchanged come back unchanged.

        Raises:
            ValueError: the model has too few classes for `targets`.
        """
        problem, x = _Problem(self, case, watch), case.x
        clean = problem.judge(x)
        best = _Best(x, torch.where(clean.adversarial, 0.0, torch.inf).to(x), clean.margin)
        targets = _likeliest_wrong(clean.logits, case.y, self.targets)
        aims = pair(case.y[:, None], targets, clean.logits.shape[1])
        for rank in range(self.targets):
            for restart in range(self.restarts):
                best = _run(problem, rank, aims[:, rank], restart, best)
        best = _final_search(problem, clean.margin, best)
        inside = case.ball.contains(best.point, x)
        return where_rows(inside, best.point, case.ball.project(best.point, x))


class _Judged(NamedTuple):
    """What the fixed draws say of some points."""

    logits: Tensor  # (B, K), mean over the draws
    margin: Tensor  # (B,), of the mean logits
    adversarial: Tensor  # (B,) bool


class _Best(NamedTuple):
    """The smallest adversarial point of each image; of size inf while there is none."""

    point: Tensor  # (B, C, H, W)
    size: Tensor  # (B,)
    margin: Tensor  # (B,)

    def or_else(self, point: Tensor, size: Tensor, judged: _Judged) -> _Best:
        """The better of the two; without an adversarial point, the larger margin."""
        smaller = judged.adversarial & (size < self.size)
        neither = ~judged.adversarial & self.size.isinf()
        better = smaller | (neither & (judged.margin > self.margin))
        return _Best(
            where_rows(better, point, self.point),
            torch.where(smaller, size, self.size),
            torch.where(better, judged.margin, self.margin),
        )


@dataclass(frozen=True, eq=False)
class _Problem:
    """One call, and the two questions put to the model."""

    attack: FAB
    case: Case
    watch: Watch

    def linearise(self, point: Tensor, aim: Tensor, rank: int, number: int) -> Expected:
        """Target logit minus own logit and its gradient, on fresh draws."""
        key = ("fab", rank, number)
        measured = self.case.gradient(point, _difference, self.attack.eot, key, aim=aim)
        self.watch.iteration(measured)
        return measured

    def judge(self, point: Tensor) -> _Judged:
        """Mean logits and the decision, on draws that are the same at every call."""
        logits = self.case.logits(point, self.attack.eot, ("fab judge",))
        mean = mean_of(logits, answered(logits))
        accuracy = right(logits, self.case.y[:, None]).to(mean.dtype).mean(1)
        return _Judged(mean, margin(mean, self.case.y), accuracy < self.attack.below)


def _run(problem: _Problem, rank: int, aim: Tensor, restart: int, best: _Best) -> _Best:
    """One pass of algorithm 1 towards one target class per image."""
    attack, x, ball = problem.attack, problem.case.x, problem.case.norm
    point = x if restart == 0 else _random_start(problem, best, rank, restart)
    level = torch.zeros_like(best.size)  # difference of logits to reach; stays 0 without noise
    for i in range(attack.steps):
        measured = problem.linearise(point, aim, rank, restart * attack.steps + i)
        point = _biased_step(attack, ball, x, point, measured, level)
        judged = problem.judge(point)
        best = best.or_else(point, ball.size(point - x), judged)
        ahead = _difference(judged.logits, aim)
        level = torch.where(ahead > level, 2.0 * ahead, level)
        level = torch.where(judged.adversarial, 0.0, level)
        back = x + attack.beta * (point - x)
        point = where_rows(judged.adversarial, back, point)
    return best


def _biased_step(
    attack: FAB, ball: Norm, x: Tensor, point: Tensor, measured: Expected, level: Tensor
) -> Tensor:
    """Project iterate and image onto the linearised boundary; combine them, biased to the image.

    A gap or gradient of 0 leaves the iterate in place; `expected_grad` zeroes broken gradients.
    """
    w = measured.grad
    gap = (level - measured.loss).nan_to_num(0.0, 0.0, 0.0)
    from_point = onto_plane(ball, point, w, gap)
    from_image = onto_plane(ball, x, w, gap + (w * (point - x)).flatten(1).sum(1))
    near, far = ball.size(from_point), ball.size(from_image)
    alpha = (near / (near + far).clamp_min(1e-12)).clamp_max(attack.alpha_max)
    alpha = per_image(alpha, x)
    stepped = point + attack.eta * from_point
    return ((1.0 - alpha) * stepped + alpha * (x + attack.eta * from_image)).clamp(0.0, 1.0)


def _random_start(problem: _Problem, best: _Best, rank: int, restart: int) -> Tensor:
    ball, x = problem.case.norm, problem.case.x
    delta = ball.start(x, problem.case.noise.fold("fab start", rank, restart)) - x
    radius = 0.5 * best.size.clamp_max(ball.eps)
    factor = radius / ball.size(delta).clamp_min(1e-12)
    return (x + per_image(factor, x) * delta).clamp(0.0, 1.0)


def _final_search(problem: _Problem, clean_margin: Tensor, best: _Best) -> _Best:
    """Secant steps for the boundary between the image and the best point (equation 10).

    They stop a tenth of the way from the best point short of the secant's zero: on a network that
    is linear there, rounding would decide on which side of the boundary the zero itself lies.
    """
    x, ball = problem.case.x, problem.case.norm
    low, low_margin = x, clean_margin
    for _ in range(problem.attack.search):
        share = (low_margin / (low_margin - best.margin)).nan_to_num(0.5).clamp(0.0, 1.0)
        share = share + _SHORT * (1.0 - share)
        point = low + per_image(share, low) * (best.point - low)
        judged = problem.judge(point)
        best = best.or_else(point, ball.size(point - x), judged)
        low = where_rows(judged.adversarial, low, point)
        low_margin = torch.where(judged.adversarial, low_margin, judged.margin)
    return best


def _likeliest_wrong(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The wrong classes of largest logits, (B, count), largest first."""
    classes = logits.shape[1]
    if count >= classes:
        cure = f"pass targets={classes - 1}" if classes > 1 else "there is nothing to attack"
        raise ValueError(
            f"FAB was to try {count} wrong classes, targets={count}, but the model has "
            f"{classes - 1} ({classes} in all): {cure}"
        )
    wrong = logits.nan_to_num().scatter(1, y[:, None], -torch.inf)
    return wrong.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _difference(logits: Tensor, aim: Tensor) -> Tensor:
    """Target logit minus own logit, for a `pair` of each image: positive past their boundary."""
    own, target = aim // logits.shape[1], aim % logits.shape[1]
    return logits.gather(1, torch.stack([own, target], 1)).diff(dim=1)[:, 0]
