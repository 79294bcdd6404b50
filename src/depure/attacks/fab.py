"""FAB: the smallest adversarial change, by projections onto the linearised decision boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from depure.answers import answered, mean_of, right
from depure.attacks.base import Attack, Heard, Watch
from depure.attacks.expected import Expected, expected_grad, sampled_logits
from depure.attacks.halfspace import onto_plane
from depure.attacks.losses import margin, pair
from depure.attacks.model import Model
from depure.noise import Noise
from depure.threat import Ball

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
        chunk: rows per forward pass, by the size of the images if None; affects speed and
            memory only.

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
    chunk: int | None = None

    def __post_init__(self) -> None:
        least = {"targets": 1, "steps": 1, "restarts": 1, "eot": 1, "search": 0, "chunk": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if name == "chunk" and value is None:
                continue
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be at least {low}, a whole number; got {value}")
        if not 0.0 <= self.alpha_max <= 1.0:
            raise ValueError(f"alpha_max must lie in [0, 1]; got {self.alpha_max}")
        if not self.eta >= 1.0:
            raise ValueError(f"eta must be at least 1, to cross the boundary; got {self.eta}")
        if not 0.0 < self.beta < 1.0:
            raise ValueError(f"beta must lie inside (0, 1); got {self.beta}")
        if not 0.0 < self.below <= 1.0:
            raise ValueError(f"below must be a share of draws in (0, 1]; got {self.below}")

    @property
    def heard(self) -> Heard:
        """Points on the boundary, in the bound or not, class by class."""
        return "aims"

    @property
    def iterations(self) -> int:
        """Iterations of all runs, which is how often `watch` is called."""
        return self.targets * self.restarts * self.steps

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

        Images that are adversarial unchanged come back unchanged.

        Raises:
            ValueError: the model has too few classes for `targets`, or FAB lacks the ball's norm.
        """
        problem = _Problem(self, model, x, y, ball, noise, watch)
        clean = problem.judge(x)
        best = _Best(x, torch.where(clean.adversarial, 0.0, torch.inf).to(x), clean.margin)
        targets = _likeliest_wrong(clean.logits, y, self.targets)
        aims = pair(y[:, None], targets, clean.logits.shape[1])
        for rank in range(self.targets):
            for restart in range(self.restarts):
                best = _run(problem, rank, aims[:, rank], restart, best)
        best = _final_search(problem, clean.margin, best)
        inside = _rows(ball.contains(best.point, x), x)
        return torch.where(inside, best.point, ball.project(best.point, x))


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
            torch.where(_rows(better, point), point, self.point),
            torch.where(smaller, size, self.size),
            torch.where(better, judged.margin, self.margin),
        )


@dataclass(frozen=True, eq=False)
class _Problem:
    """The arguments of one call, and the two questions put to the model."""

    attack: FAB
    model: Model
    x: Tensor
    y: Tensor
    ball: Ball
    noise: Noise
    watch: Watch | None

    def linearise(self, point: Tensor, aim: Tensor, rank: int, turn: int) -> Expected:
        """Target logit minus own logit and its gradient, on fresh draws."""
        attack = self.attack
        noise = self.noise.fold("fab", rank, turn)
        measured = expected_grad(
            self.model, point, aim, _difference, noise, attack.eot,
            chunk=attack.chunk, labels=self.y,
        )  # fmt: skip
        if self.watch is not None:
            self.watch(rank * attack.restarts * attack.steps + turn, measured)
        return measured

    def judge(self, point: Tensor) -> _Judged:
        """Mean logits and the decision, on draws that are the same at every call."""
        noise = self.noise.fold("fab judge")
        logits = sampled_logits(self.model, point, noise, self.attack.eot, self.attack.chunk)
        mean = mean_of(logits, answered(logits))
        accuracy = right(logits, self.y[:, None]).to(mean.dtype).mean(1)
        return _Judged(mean, margin(mean, self.y), accuracy < self.attack.below)


def _run(problem: _Problem, rank: int, aim: Tensor, restart: int, best: _Best) -> _Best:
    """One pass of algorithm 1 towards one target class per image."""
    attack, x, ball = problem.attack, problem.x, problem.ball
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
        point = torch.where(_rows(judged.adversarial, x), back, point)
    return best


def _biased_step(
    attack: FAB, ball: Ball, x: Tensor, point: Tensor, measured: Expected, level: Tensor
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
    alpha = _rows(alpha, x)
    stepped = point + attack.eta * from_point
    return ((1.0 - alpha) * stepped + alpha * (x + attack.eta * from_image)).clamp(0.0, 1.0)


def _random_start(problem: _Problem, best: _Best, rank: int, restart: int) -> Tensor:
    ball, x = problem.ball, problem.x
    delta = ball.start(x, problem.noise.fold("fab start", rank, restart)) - x
    radius = 0.5 * best.size.clamp_max(ball.eps)
    factor = radius / ball.size(delta).clamp_min(1e-12)
    return (x + _rows(factor, x) * delta).clamp(0.0, 1.0)


def _final_search(problem: _Problem, clean_margin: Tensor, best: _Best) -> _Best:
    """Secant steps for the boundary between the image and the best point (equation 10).

    They stop a tenth of the way from the best point short of the secant's zero: on a network that
    is linear there, rounding would decide on which side of the boundary the zero itself lies.
    """
    low, low_margin = problem.x, clean_margin
    for _ in range(problem.attack.search):
        share = (low_margin / (low_margin - best.margin)).nan_to_num(0.5).clamp(0.0, 1.0)
        share = share + _SHORT * (1.0 - share)
        point = low + _rows(share, low) * (best.point - low)
        judged = problem.judge(point)
        best = best.or_else(point, problem.ball.size(point - problem.x), judged)
        low = torch.where(_rows(judged.adversarial, low), low, point)
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


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
