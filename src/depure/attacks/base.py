"""What an attack is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, final

from torch import Tensor

from depure.attacks.asking.gradients import Expected
from depure.attacks.asking.model import Model
from depure.attacks.case import Case
from depure.noise import Noise
from depure.records import came
from depure.threat.balls import Ball, Norm

TraceOf = Literal["defence", "other model", "several targets"]
"""Which model and loss the last entry of a trace belongs to: the defence at the proposal; another
model, or a point outside the bound; or one of several targets, each with a loss of its own."""


class Watch:
    """Hears how an attack is doing, for traces and progress; this one does nothing.

    Override what you want to hear.
    """

    def iteration(self, measured: Expected) -> None:
        """One iteration: what was measured at the iterate before its step."""

    def member(self, number: int, accuracy: Tensor) -> None:
        """A member of an ensemble is done: accuracy (B,) of the best proposals until then.

        Number 0 is the unattacked images, i + 1 comes after member i.
        """


class Attack(ABC):
    """A frozen dataclass of settings; calling it proposes one adversarial image per image.

    A new attack writes `propose`; see docs/extending.md.
    """

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """The kinds of ball that it attacks in."""
        return (Norm,)

    @property
    def trace_of(self) -> TraceOf:
        """What the end of its trace can be compared with."""
        return "defence"

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks the defence for gradients, which some defences cannot give."""
        return True

    def trace_length(self, case: Case) -> int:
        """How often it calls `watch.iteration`, which is the length of its trace."""
        return 1

    @final
    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        *,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W) in the ball around x, with a label other than y.

        Args:
            model: the defence.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,), whole numbers.
            ball: what may be changed.
            noise: one row per image; the attack asks under numbers folded from it.
            watch: hears every iteration.

        Raises:
            ValueError: the shapes do not fit together, or this attack is not made for this ball.
        """
        _check_call(x, y, noise, watch)
        check_ball(self, ball)
        ball.check_images(x)
        return self.propose(Case(model, x, y, ball, noise), Watch() if watch is None else watch)

    @abstractmethod
    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W) for a checked case; called by `__call__` alone."""


class Iterated(Attack):
    """An attack whose setting `steps` is its number of iterations, each heard once."""

    steps: int

    def trace_length(self, case: Case) -> int:
        """`steps`."""
        return self.steps


def trace_of_inner(attack: Attack) -> TraceOf:
    """What the trace of an attack shows that runs on another model in the defence's place."""
    return "several targets" if attack.trace_of == "several targets" else "other model"


def start_point(case: Case, start: Attack | None, random_start: bool) -> Tensor:
    """Where an ascent begins, (B, C, H, W): at the image, or where it was told to.

    The watch does not hear the attack that it starts from: a trace shows one loss of one model.

    Args:
        case: the images under attack.
        start: an attack from whose proposals to begin.
        random_start: begin at a random point of the ball.
    """
    x, ball = case.x, case.ball
    if start is not None:
        return ball.project(start(case.model, x, case.y, ball, case.noise.fold("from")), x)
    return case.norm.start(x, case.noise.fold("start")) if random_start else x


def check_start(start: Attack | None, random_start: bool) -> None:
    """Raise ValueError unless `start` is an attack that is not asked to start somewhere else."""
    if start is None:
        return
    if not isinstance(start, Attack):
        raise ValueError(f"start must be an attack or None; got {start!r}")
    if random_start:
        raise ValueError("start and random_start exclude each other: leave one out")


def check_ball(attack: Attack, ball: Ball) -> None:
    """Raise ValueError unless the attack is made for this kind of ball."""
    if isinstance(ball, attack.balls):
        return
    kinds = {kind.__name__: kind for kind in attack.balls}
    names = [*("Linf", "L2", "L1") * ("Norm" in kinds), *(n for n in kinds if n != "Norm")]
    raise ValueError(
        f"{type(attack).__name__} attacks in {', '.join(names) or 'no ball at all'} only; got "
        f"{ball}: choose another ball, or an attack such as {ball.attacked_by}"
    )


def _check_call(x: Tensor, y: Tensor, noise: Noise, watch: Watch | None) -> None:
    if watch is not None and not isinstance(watch, Watch):
        raise ValueError(
            f"watch must be a Watch, whose `iteration` and `member` are called; got {came(watch)}"
        )
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be floating point images (B, C, H, W); got {x.dtype} {tuple(x.shape)}"
        )
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(
            f"y must be {len(x)} whole numbers, a label per image; got {y.dtype} {tuple(y.shape)}"
        )
    if len(noise) != len(x):
        raise ValueError(f"noise must have {len(x)} rows, one per image; got {len(noise)}")
