"""What a reverse rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from depure.diffusion.denoiser import Denoiser
from depure.diffusion.schedule import Karras, Schedule, Time


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

    def check(self, schedule: Schedule) -> None:  # noqa: B027 (most rules suit every schedule)
        """Raise ValueError if this rule does not suit the schedule."""


def refuse_karras(rule: Sampler, schedule: Schedule) -> None:
    """Raise ValueError if the schedule does not preserve variance, as the rule supposes."""
    if isinstance(schedule, Karras):
        raise ValueError(
            f"{rule!r} supposes a schedule that preserves variance, but the denoiser's schedule "
            f"is {schedule!r}: use Heun(), with churn for fresh noise, or DDIM(eta=0)"
        )


def clamp_unit(x0: Tensor, clip: bool) -> Tensor:
    """x0 clamped to [-1, 1] if asked. Sits in the graph: no gradient flows where it saturates."""
    return x0.clamp(-1.0, 1.0) if clip else x0
