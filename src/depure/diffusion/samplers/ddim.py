"""Implicit sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from depure.diffusion.denoiser import Denoiser
from depure.diffusion.samplers.base import Sampler, clamp_unit, refuse_karras
from depure.diffusion.schedules import Schedule
from depure.types import Time


@dataclass(frozen=True)
class DDIM(Sampler):
    """Implicit sampling (Song et al., 2010.02502, eq. 12 and 16), any stride.

    Args:
        eta: 0 is deterministic, 1 has the variance of ancestral sampling. On a `Karras` schedule
            only 0, which is Euler's method there.
        clip_x0: clamp x0_hat to [-1, 1] (ADDT does); eps is left as it was, as in diffusers.
    """

    eta: float = 0.0
    clip_x0: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}")

    @property
    def stochastic(self) -> bool:
        """When eta is above zero."""
        return self.eta > 0.0

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError if eta is above zero on a Karras schedule."""
        if self.eta > 0.0:
            refuse_karras(self, schedule)

    def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Tensor | None) -> Tensor:
        """x_s = alpha_s x0 + sqrt(sigma_s^2 - sd^2) eps + sd z."""
        schedule = denoiser.schedule
        self.check(schedule)
        x0, eps, _ = denoiser(x, t)
        x0 = clamp_unit(x0, self.clip_x0)
        sigma_t, sigma_s = schedule.sigma(t), schedule.sigma(s)
        kept = (schedule.alpha(t) / schedule.alpha(s)) ** 2
        sd = self.eta * sigma_s / sigma_t * math.sqrt(1.0 - kept)
        mean = schedule.alpha(s) * x0 + math.sqrt(max(sigma_s**2 - sd**2, 0.0)) * eps
        return mean if z is None or sd == 0.0 else mean + sd * z
