"""EDM's second-order sampler, deterministic or with churn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from depure.diffusion.denoiser import Denoiser
from depure.diffusion.samplers.base import Sampler
from depure.diffusion.schedules import Karras, Schedule
from depure.types import Time

_MOST = math.sqrt(2.0) - 1.0  # the cap of Algorithm 2: never more new noise than there is already


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method on EDM's probability-flow ODE dx/dt = (x - x0_hat) / t.

    Without churn it is deterministic (Karras et al., 2206.00364, Algorithm 1); with churn every
    step first raises the noise level by fresh noise (Algorithm 2). Two network calls a step, one
    in the last, to noise level 0, where Euler's method is used: 2 steps - 1 in all.

    The denoiser's schedule must be a `Karras`.

    Args:
        churn: gamma, the share by which a step raises its noise level, in [0, sqrt(2) - 1]. The
            paper gives S_churn = gamma * steps instead: see `churned`.
        s_min, s_max: the noise levels (before they are raised) that are churned, both included.
        s_noise: standard deviation of the fresh noise, in units of what the level calls for.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> Heun.churned(6, steps=50, s_min=0.01, s_max=0.46, s_noise=1.007)  # ADDT's
        Heun(churn=0.12, s_min=0.01, s_max=0.46, s_noise=1.007)
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.churn <= _MOST:
            raise ValueError(
                f"churn, a share of the noise level, must lie in [0, sqrt(2) - 1]; "
                f"got {self.churn}: pass S_churn / steps, or use Heun.churned(S_churn, steps)"
            )
        if not 0.0 <= self.s_min <= self.s_max:
            raise ValueError(
                f"s_min and s_max must satisfy 0 <= s_min <= s_max; "
                f"got {self.s_min} and {self.s_max}"
            )
        if not 0.0 < self.s_noise < math.inf:
            raise ValueError(f"s_noise must be a number above 0; got {self.s_noise}")

    @staticmethod
    def churned(
        s_churn: float,
        steps: int,
        *,
        s_min: float = 0.0,
        s_max: float = math.inf,
        s_noise: float = 1.0,
    ) -> Heun:
        """As the paper parameterises it: churn = min(S_churn / steps, sqrt(2) - 1).

        Args:
            s_churn: S_churn, the churn of all steps together, at least 0.
            steps: the steps of the grid that this rule is for.
            s_min, s_max, s_noise: see the class.

        Raises:
            ValueError: for settings out of range.
        """
        if not s_churn >= 0.0 or steps < 1:
            raise ValueError(
                f"s_churn must be at least 0 and steps at least 1; got {s_churn} and {steps}"
            )
        return Heun(min(s_churn / steps, _MOST), s_min, s_max, s_noise)

    @property
    def stochastic(self) -> bool:
        """When churn is above zero."""
        return self.churn > 0.0

    def check(self, schedule: Schedule) -> None:
        """Raise ValueError unless the schedule is a Karras one."""
        if not isinstance(schedule, Karras):
            raise ValueError(
                f"{self!r} integrates EDM's ODE, but the denoiser's schedule is {schedule!r}: use "
                f"ProbabilityFlow('heun') on a VPSDE, DDPM or DDIM on a discrete schedule"
            )

    def step(self, denoiser: Denoiser, x: Tensor, t: Time, s: Time, z: Tensor | None) -> Tensor:
        """Raise the level from t to t_hat with z, then Heun to s; Euler where s = 0."""
        self.check(denoiser.schedule)
        if z is not None and self.stochastic and self.s_min <= t <= self.s_max:
            # sqrt(t_hat^2 - t^2) for t_hat = (1 + churn) t
            x = x + self.s_noise * t * math.sqrt(self.churn * (2.0 + self.churn)) * z
            t = t * (1.0 + self.churn)
        slope = denoiser(x, t).eps
        ahead = x + (s - t) * slope
        if s == 0.0:
            return ahead
        return x + (s - t) * 0.5 * (slope + denoiser(ahead, s).eps)
