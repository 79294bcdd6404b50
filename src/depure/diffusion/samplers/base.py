"""What a reverse rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from depure.diffusion.denoiser import Denoiser
from depure.diffusion.schedules import Schedule
from depure.types import Time


class Reverse(NamedTuple):
    """A reverse SDE in time that counts the steps of a round."""

    drift: Callable[[int, Tensor], Tensor]  # (step, state) to the drift, per step
    spread: Callable[[int], float]  # step to the standard deviation, per step


class Sampler(ABC):
    """One reverse rule: a frozen dataclass of settings with a single `step`."""

    @property
    @abstractmethod
    def stochastic(self) -> bool:
        """Whether `step` uses its noise z."""

    @property
    def denoise_last(self) -> bool:
        """Whether the last step of a chain is taken without its noise."""
        return False

    @abstractmethod
    def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Tensor | None) -> Tensor:
        """From x at time t to the state at the earlier time s, with standard normal z like x."""

    def reverse(self, denoiser: Denoiser, times: Sequence[Time]) -> Reverse | None:
        """The SDE that this rule discretises over equally spaced times; None if it is no such."""
        return None

    def check(self, schedule: Schedule) -> None:  # noqa: B027 (most rules suit every schedule)
        """Raise ValueError if this rule does not suit the schedule."""


def refuse_karras(rule: Sampler, schedule: Schedule) -> None:
    """Raise ValueError if the schedule does not preserve variance, as the rule supposes."""
    if not schedule.preserves_variance:
        raise ValueError(
            f"{rule!r} supposes a schedule that preserves variance, but the denoiser's schedule "
            f"is {schedule!r}: use Heun(), with churn for fresh noise, or DDIM(eta=0)"
        )


def clamp_unit(x0: Tensor, clip: bool) -> Tensor:
    """x0 clamped to [-1, 1] if asked. Sits in the graph: no gradient flows where it saturates."""
    return x0.clamp(-1.0, 1.0) if clip else x0
