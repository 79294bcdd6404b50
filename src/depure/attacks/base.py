"""What an attack is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from depure.attacks.expected import Expected
from depure.attacks.model import Model
from depure.noise import Noise
from depure.threat import Ball


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


def calls_of_watch(attack: Attack) -> int:
    """How often an attack calls its watch."""
    return int(getattr(attack, "iterations", getattr(attack, "steps", 1)))
