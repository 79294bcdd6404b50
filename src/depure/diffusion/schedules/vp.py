"""Variance-preserving schedules: discrete indices, and the continuous SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch

from depure.diffusion.schedules.base import (
    Convention,
    Schedule,
    TimePath,
    refuse_adbm,
    refuse_t_star,
)
from depure.types import Time


@dataclass(frozen=True)
class VPDiscrete(Schedule):
    """Variance-preserving schedule over the indices 0..T-1 of a list of betas (DDPM, 2006.11239).

    alpha(t)**2 is the product of (1 - beta) over 0..t; index -1 is the clean image.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.betas or not all(0.0 < b < 1.0 for b in self.betas):
            raise ValueError("betas must be a non-empty list of numbers strictly between 0 and 1")

    def __repr__(self) -> str:
        ends = f"{self.betas[0]:g}..{self.betas[-1]:g}"
        middle = f"{self.alpha_bar[len(self.betas) // 2]:.8g}"  # tells linear from scaled
        return f"VPDiscrete(T={len(self.betas)}, betas={ends}, middle alpha_bar={middle})"

    @staticmethod
    def linear(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> VPDiscrete:
        """Betas evenly spaced from first to last (DDPM; ADBM has first=1e-6)."""
        return VPDiscrete(tuple(torch.linspace(first, last, steps, dtype=torch.float64).tolist()))

    @staticmethod
    def cosine(steps: int = 1000, offset: float = 0.008, limit: float = 0.999) -> VPDiscrete:
        """alpha(t)**2 follows a squared cosine (2102.09672, eq. 17), betas at most `limit`."""

        def level(u: float) -> float:
            return math.cos((u + offset) / (1.0 + offset) * math.pi / 2.0) ** 2

        ratios = (level((i + 1) / steps) / level(i / steps) for i in range(steps))
        return VPDiscrete(tuple(min(1.0 - r, limit) for r in ratios))

    @cached_property
    def alpha_bar(self) -> tuple[float, ...]:
        """Products of (1 - beta), one per index: the squared alphas."""
        betas = torch.tensor(self.betas, dtype=torch.float64)
        return tuple(torch.cumprod(1.0 - betas, 0).tolist())

    def __len__(self) -> int:
        return len(self.betas)

    def _squared(self, t: Time) -> float:
        if t != int(t) or not -1 <= t < len(self.betas):
            raise ValueError(
                f"t must be an integer index from -1 (clean) to {len(self.betas) - 1}; got {t}"
            )
        return 1.0 if t == -1 else self.alpha_bar[int(t)]

    def alpha(self, t: Time) -> float:
        """Square root of alpha_bar at index t."""
        return math.sqrt(self._squared(t))

    def sigma(self, t: Time) -> float:
        """Square root of 1 - alpha_bar at index t."""
        return math.sqrt(1.0 - self._squared(t))

    def label(self, t: Time) -> float:
        """The index itself."""
        return t

    def path(self, t_star: float, steps: int | None, convention: Convention) -> TimePath:
        """The indices that a purification visits, see `Grid`."""
        if t_star > 1.0:
            refuse_t_star(t_star)
        top = round(t_star * len(self))
        if top < 1:
            raise ValueError(
                f"t_star must reach at least one index of {len(self)}; got {t_star}: "
                f"raise it to {1 / len(self):g} or more"
            )
        n = top if steps is None else steps
        if not 1 <= n <= top:
            raise ValueError(
                f"steps must be at most {top}, the number of indices up to t_star = {t_star} "
                f"of {len(self)}; got {n}"
            )
        times: tuple[int, ...]
        if convention == "addt":
            if top >= len(self) or top % n:
                raise ValueError(
                    f"the addt convention needs steps that divide {top} and t_star below 1; "
                    f"got steps = {n}, t_star = {t_star}"
                )
            times = (*range(top, -1, -(top // n)), -1)
        else:
            times = tuple(top * (n - i) // n - 1 for i in range(n + 1))
        noised = times[0] if convention != "adbm" else min(top, len(self) - 1)
        return TimePath(self.alpha(noised), self.sigma(noised), times)

    @property
    def indices(self) -> int:
        """The number of betas."""
        return len(self.betas)

    def share(self, t: Time) -> float:
        """(t + 1) / T: 0 for the clean image at index -1."""
        return (t + 1) / len(self)

    def scheduler(self) -> dict[str, Any]:
        """A DDPMScheduler of these betas."""
        return {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": len(self),
            "trained_betas": list(self.betas),
            "prediction_type": "epsilon",
        }


@dataclass(frozen=True)
class VPSDE(Schedule):
    """Continuous variance-preserving SDE, t in [0, 1] (2011.13456, eq. 11; DiffPure, 2205.07460).

    beta(t) = beta_min + t (beta_max - beta_min); dx = -beta/2 x dt + sqrt(beta) dw.
    `label_scale` maps t to what the network was trained on (999 for 1,000 discrete indices).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    label_scale: float = 999.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"beta_min and beta_max must satisfy 0 < beta_min < beta_max; "
                f"got {self.beta_min} and {self.beta_max}"
            )

    def beta(self, t: Time) -> float:
        """Rate of noising at time t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _log_squared(self, t: Time) -> float:
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"t must lie in [0, 1]; got {t}")
        return -0.5 * (self.beta_max - self.beta_min) * t**2 - self.beta_min * t

    def alpha(self, t: Time) -> float:
        """exp(-1/2 int_0^t beta)."""
        return math.exp(0.5 * self._log_squared(t))

    def sigma(self, t: Time) -> float:
        """sqrt(1 - alpha(t)**2), without cancellation near t = 0."""
        return math.sqrt(-math.expm1(self._log_squared(t)))

    def label(self, t: Time) -> float:
        """t * label_scale."""
        return t * self.label_scale

    def discrete(self, steps: int = 1000) -> VPDiscrete:
        """Discrete schedule DiffPure's code noises with: betas from beta_min/T to beta_max/T."""
        return VPDiscrete.linear(steps, self.beta_min / steps, self.beta_max / steps)

    def path(self, t_star: float, steps: int | None, convention: Convention) -> TimePath:
        """The real times that a purification visits, see `Grid`."""
        if t_star > 1.0:
            refuse_t_star(t_star)
        refuse_adbm(convention)
        top, milli = Fraction(str(t_star)), Fraction(1, 1000)
        n = max(1, round(top / milli)) if steps is None else steps
        if convention == "addt":
            top, end, n = min(top + milli, Fraction(1)), Fraction(0), n + 1
        else:
            end = milli / 100
            if top <= end:
                raise ValueError(f"t_star must lie above {float(end):g}; got {t_star}")
        times = tuple(float(top + (end - top) * Fraction(i, n)) for i in range(n + 1))
        if convention == "addt":
            return TimePath(self.alpha(times[0]), self.sigma(times[0]), times)
        discrete = self.discrete()
        index = max(0, round(top * len(discrete)) - 1)
        return TimePath(discrete.alpha(index), discrete.sigma(index), times)

    def scheduler(self) -> dict[str, Any]:
        """That of its discrete steps."""
        return self.discrete().scheduler()
