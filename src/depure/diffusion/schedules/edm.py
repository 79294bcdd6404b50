"""EDM's schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from depure.diffusion.schedules.base import (
    Convention,
    PredictionName,
    Schedule,
    TimePath,
    refuse_adbm,
)
from depure.types import Time

_LEVELS = 18  # EDM's own number for 32 x 32 images (2206.00364, table 2)


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

    def path(self, t_star: float, steps: int | None, convention: Convention) -> TimePath:
        """The noise levels that a purification visits, see `Grid`."""
        refuse_adbm(convention)
        top, end = float(t_star), self.sigma_min
        if not end < top <= self.sigma_max:
            raise ValueError(
                f"t_star is the noise level to purify from on {self!r}: it must lie above "
                f"sigma_min and at most at sigma_max; got {t_star}"
            )
        last = (_LEVELS if steps is None else steps) - 1
        high, low = top ** (1.0 / self.rho), end ** (1.0 / self.rho)
        inner = tuple((high + i / last * (low - high)) ** self.rho for i in range(1, last))
        times = (top, *inner, *((end,) if last else ()), 0.0)
        return TimePath(self.alpha(top), self.sigma(top), times)

    @property
    def preserves_variance(self) -> bool:
        """No: alpha is 1."""
        return False

    @property
    def end(self) -> float:
        """sigma_max."""
        return self.sigma_max

    @property
    def predictions(self) -> tuple[PredictionName, ...]:
        """EDM's raw network, or v, which is its negative."""
        return ("edm", "v")

    @property
    def data_scale(self) -> float:
        """sigma_data."""
        return self.sigma_data

    def scheduler(self) -> dict[str, Any]:
        """An EDMEulerScheduler."""
        return {
            "_class_name": "EDMEulerScheduler",
            "sigma_data": self.sigma_data,
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "rho": self.rho,
            "prediction_type": "epsilon",
        }
