"""Noise schedules: alpha and sigma of a time, where x_t = alpha(t) x_0 + sigma(t) eps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Time = int | float
"""A network time: an index for discrete schedules (-1 is the clean image), else a real number."""


class Schedule(ABC):
    """alpha and sigma of a scalar time, as Python floats computed in double precision."""

    @abstractmethod
    def alpha(self, t: Time) -> float:
        """Scale of the image at time t."""

    @abstractmethod
    def sigma(self, t: Time) -> float:
        """Standard deviation of the noise at time t."""

    @abstractmethod
    def label(self, t: Time) -> float:
        """What a network trained on this schedule is told for time t."""


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


@dataclass(frozen=True)
class Karras(Schedule):
    """EDM's schedule (Karras et al., 2206.00364, table 1): t is the noise level sigma, alpha is 1.

    A `Grid` over it visits `t_star` down to `sigma_min`, spaced by `rho` (equation 5), then 0.

    Args:
        sigma_data: standard deviation of the images in [-1, 1] space that the network was trained
            with; it preconditions the network, see `Denoiser`.
        sigma_min: the last noise level before 0.
        sigma_max: the highest noise level that the network was made for; `t_star` may not exceed
            it.
        rho: 1 spaces the levels evenly; the larger, the closer they lie near `sigma_min`.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> Karras().alpha(0.5), Karras().sigma(0.5)
        (1.0, 0.5)
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max; "
                f"got {self.sigma_min} and {self.sigma_max}"
            )
        for name, value in (("sigma_data", self.sigma_data), ("rho", self.rho)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0; got {value}")

    def alpha(self, t: Time) -> float:
        """1: the image is not scaled."""
        return 1.0

    def sigma(self, t: Time) -> float:
        """t itself."""
        if not 0.0 <= t < math.inf:
            raise ValueError(f"t is a noise level and must be 0 or above; got {t}")
        return float(t)

    def label(self, t: Time) -> float:
        """c_noise = log(t) / 4.

        Raises:
            ValueError: at t = 0, where no network is asked.
        """
        if not 0.0 < t < math.inf:
            raise ValueError(f"a network is asked at noise levels above 0 only; got {t}")
        return math.log(t) / 4.0


def table(schedule: VPDiscrete, like: Tensor) -> Tensor:
    """alpha_bar as a tensor (T,) on the device and of the dtype of `like`, for training."""
    return torch.tensor(schedule.alpha_bar, dtype=like.dtype, device=like.device)
