"""Samplers of the variance-preserving SDE and of its probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from depure.diffusion.denoiser import Denoiser
from depure.diffusion.samplers.base import Reverse, Sampler
from depure.diffusion.schedules import VPSDE, Schedule
from depure.types import Time


def _vpsde(schedule: Schedule) -> VPSDE:
    if not isinstance(schedule, VPSDE):
        vp = schedule.preserves_variance
        cure = "build the denoiser with schedule=VPSDE()" if vp else "use Heun()"
        raise ValueError(
            f"this sampler integrates the VP-SDE, but the denoiser's schedule is {schedule!r}: "
            f"{cure}"
        )
    return schedule


def reverse_drift(denoiser: Denoiser, x: Tensor, t: Time, weight: float) -> Tensor:
    """-dx/dt of the reverse process: beta/2 x + weight * beta * score (2011.13456, eq. 6 and 13).

    weight is 1 for the reverse SDE and 1/2 for the probability flow.
    """
    schedule = _vpsde(denoiser.schedule)
    score = denoiser(x, t).eps / -schedule.sigma(t)
    return schedule.beta(t) * (0.5 * x + weight * score)


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """Euler-Maruyama on the reverse VP-SDE (DiffPure, 2205.07460, eq. 5).

    Args:
        denoise_last: leave the noise out of the last step (ADDT's VP code returns that mean;
            DiffPure's keeps the noise, whose standard deviation is then sqrt(beta(0) dt)).
    """

    denoise_last: bool = False

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError unless the schedule is a VPSDE."""
        _vpsde(schedule)

    def reverse(self, denoiser: Denoiser, times: Sequence[Time]) -> Reverse:
        """The reverse VP-SDE, drift and spread per step."""
        schedule, spacing = _vpsde(denoiser.schedule), (times[0] - times[-1]) / (len(times) - 1)
        return Reverse(
            lambda i, x: reverse_drift(denoiser, x, times[i], 1.0) * spacing,
            lambda i: math.sqrt(schedule.beta(times[i]) * spacing),
        )

    def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Tensor | None) -> Tensor:
        """x + drift dt + sqrt(beta(t) dt) z with dt = t - s."""
        mean = x + reverse_drift(denoiser, x, t, 1.0) * (t - s)
        if z is None:
            return mean
        return mean + math.sqrt(_vpsde(denoiser.schedule).beta(t) * (t - s)) * z


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """The probability-flow ODE of the VP-SDE (2011.13456, eq. 13), deterministic given its start.

    Args:
        method: "euler" (one network call a step, DiffPure's ODE variant) or "heun" (two).
    """

    method: Literal["euler", "heun"] = "euler"

    def __post_init__(self) -> None:
        if self.method not in ("euler", "heun"):
            raise ValueError(f"method must be euler or heun; got {self.method!r}")

    @property
    def stochastic(self) -> bool:
        """Never."""
        return False

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError unless the schedule is a VPSDE."""
        _vpsde(schedule)

    def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Tensor | None) -> Tensor:
        """One Euler or Heun step; Heun falls back to Euler where sigma(s) = 0."""
        slope = reverse_drift(denoiser, x, t, 0.5)
        ahead = x + slope * (t - s)
        if self.method == "euler" or denoiser.schedule.sigma(s) == 0.0:
            return ahead
        return x + 0.5 * (slope + reverse_drift(denoiser, ahead, s, 0.5)) * (t - s)
