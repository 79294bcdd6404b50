"""Ancestral sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from depure.diffusion.denoiser import Denoiser
from depure.diffusion.samplers.base import Sampler, clamp_unit, refuse_karras
from depure.diffusion.schedules import Schedule
from depure.types import Time


@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling from q(x_s | x_t, x0_hat) (Ho et al., 2006.11239, eq. 7), any stride.

    Args:
        variance: "small" is the posterior's beta_tilde, "large" is beta, the two choices of
            section 3.2 (ADDT uses large; they differ much at large strides).
        clip_x0: clamp x0_hat to [-1, 1] (ADDT does). It zeroes gradients where it saturates.

    No noise is added in the step to the clean image.
    """

    variance: Literal["small", "large"] = "small"
    clip_x0: bool = False

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance must be small or large; got {self.variance!r}")

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError on a Karras schedule."""
        refuse_karras(self, schedule)

    def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Tensor | None) -> Tensor:
        """x_s = posterior mean + standard deviation * z."""
        schedule = denoiser.schedule
        self.check(schedule)
        x0 = clamp_unit(denoiser(x, t).x0, self.clip_x0)
        ratio, beta, posterior = _transition(schedule, t, s)
        var_t, var_s = schedule.sigma(t) ** 2, schedule.sigma(s) ** 2
        mean = (schedule.alpha(s) * beta * x0 + ratio * var_s * x) / var_t
        if z is None or var_s == 0.0:
            return mean
        return mean + math.sqrt(posterior if self.variance == "small" else beta) * z


def _transition(schedule: Schedule, t: Time, s: Time) -> tuple[float, float, float]:
    """Of q(x_t | x_s): the scale, the variance beta; and the posterior variance beta_tilde."""
    ratio = schedule.alpha(t) / schedule.alpha(s)
    beta = 1.0 - ratio**2
    return ratio, beta, beta * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2
