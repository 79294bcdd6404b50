"""What a noise schedule is: alpha and sigma of a time, where x_t = alpha(t) x_0 + sigma(t) eps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from depure.types import Time

Convention = Literal["diffpure", "addt", "adbm"]
PredictionName = Literal["epsilon", "x0", "v", "edm"]


@dataclass(frozen=True)
class TimePath:
    """One purification in time: noised with (alpha, sigma), then times[0] > ... > times[-1].

    Each consecutive pair (t, s) of times is one reverse step.
    """

    alpha: float
    sigma: float
    times: tuple[Time, ...]

    @property
    def pairs(self) -> tuple[tuple[Time, Time], ...]:
        """(t, s) of every reverse step, in order."""
        return tuple(zip(self.times[:-1], self.times[1:], strict=True))


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

    @abstractmethod
    def path(self, t_star: float, steps: int | None, convention: Convention) -> TimePath:
        """The times that a purification visits; see `Grid`.

        Raises:
            ValueError: if t_star is out of the schedule's range, or the steps do not fit.
        """

    @property
    def preserves_variance(self) -> bool:
        """Whether alpha^2 + sigma^2 = 1; else the image is not scaled, alpha is 1."""
        return True

    @property
    def end(self) -> float:
        """The t_star at which nothing of an image is left."""
        return 1.0

    @property
    def indices(self) -> int | None:
        """How many discrete times there are; None for real times."""
        return None

    @property
    def predictions(self) -> tuple[PredictionName, ...]:
        """What a network on this schedule may predict, the usual kind first."""
        return ("epsilon", "x0", "v")

    @property
    def data_scale(self) -> float | None:
        """sigma_data, if the network is preconditioned as EDM's is; else None."""
        return None

    def share(self, t: Time) -> float:
        """Time t as a share of the schedule; the noise level, where that is the time."""
        return float(t)

    def scheduler(self) -> dict[str, Any]:
        """The configuration of diffusers' scheduler of the same noise.

        Raises:
            ValueError: if they have none.
        """
        raise ValueError(f"no scheduler of diffusers is like {self!r}")


def refuse_t_star(t_star: float) -> NoReturn:
    """Raise ValueError: t_star is no fraction of a chain."""
    raise ValueError(f"t_star must lie in (0, 1], a fraction of the chain; got {t_star}")


def refuse_adbm(convention: Convention) -> None:
    """Raise ValueError for the adbm convention, on a schedule of real times."""
    if convention == "adbm":
        raise ValueError("the adbm convention needs a discrete schedule; choose diffpure or addt")


def label_of(t: Time) -> int:
    """Integer that keys the noise of a step: the index itself, or a real time in billionths."""
    return t if isinstance(t, int) else round(t * 1_000_000_000)
