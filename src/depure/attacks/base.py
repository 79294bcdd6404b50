"""What an attack is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol

from torch import Tensor

from depure.attacks.expected import Expected
from depure.attacks.model import Model
from depure.noise import Noise
from depure.threat import Ball

Heard = Literal["proposal", "search", "aims"]
"""What a watch hears last: of the defence near what is proposed; of another model or outside the
bound; or of the last of several aims, each with a loss of its own."""


class Watch(Protocol):
    """Called at every iteration with what the attack measured there, for traces and progress."""

    def __call__(self, iteration: int, measured: Expected) -> None:
        """Note one iteration (from 0); `measured` belongs to the iterate before its step."""


class Attack(ABC):
    """A frozen dataclass of settings; calling it proposes one adversarial image per image."""

    @abstractmethod
    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W) in the ball around x, aiming at a label other than y."""

    @property
    def heard(self) -> Heard:
        """What its watch hears last, which says what its trace can be compared with."""
        return "proposal"

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks the defence for gradients, which some defences cannot give."""
        return True


def calls_of_watch(attack: Attack) -> int:
    """How often an attack calls its watch."""
    return int(getattr(attack, "iterations", getattr(attack, "steps", 1)))


def elsewhere(attack: Attack) -> Heard:
    """What is heard of an attack on another model in the defence's place."""
    return "aims" if attack.heard == "aims" else "search"


class Started(Protocol):
    """Settings of an attack that walks from a point of the ball."""

    @property
    def start(self) -> Attack | None:
        """An attack from whose proposals to begin."""

    @property
    def random_start(self) -> bool:
        """Whether to begin at a random point of the ball rather than at the image."""


def beginning(
    attack: Started, model: Model, x: Tensor, y: Tensor, ball: Ball, noise: Noise
) -> Tensor:
    """Where an attack begins, (B, C, H, W).

    The attack that it starts from is not heard by its watch: a trace shows one loss of one model.
    """
    if attack.start is not None:
        return ball.project(attack.start(model, x, y, ball, noise.fold("from")), x)
    return ball.start(x, noise.fold("start")) if attack.random_start else x


def check_start(attack: Started) -> None:
    """Raise ValueError unless `start` is an attack that is not asked to start somewhere else."""
    if attack.start is None:
        return
    if not isinstance(attack.start, Attack):
        raise ValueError(f"start must be an attack or None; got {attack.start!r}")
    if attack.random_start:
        raise ValueError("start and random_start exclude each other: leave one out")
