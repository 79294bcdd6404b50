"""Time grids: which times a purification visits. Integers index; floats do not accumulate."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from depure.diffusion.schedule import VPSDE, Schedule, Time, VPDiscrete

Convention = Literal["diffpure", "addt", "adbm"]


@dataclass(frozen=True)
class Path:
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


@dataclass(frozen=True)
class Grid:
    """`steps` reverse steps over [0, t_star], t_star a fraction of the schedule's length.

    Conventions, where published programs are one index apart (T = 1000, t_star = 0.1):

    * "diffpure": noise at index 99, visit 99 down to the clean image in `steps` calls. On the
      VP-SDE: noise with the *discrete* alpha_bar at index 99, integrate from 0.1 to 1e-5.
    * "addt": noise at index 100, visit 100, 100 - 100/steps, ..., 0: steps + 1 calls. On the
      VP-SDE: noise at t = 0.1 + 1/1000, integrate to 0 in steps + 1 calls.
    * "adbm": noise at index 100 but visit from 99 as "diffpure" does; discrete schedules only.

    Without `steps`, every index is visited (VP-SDE: as many equal steps as there are thousandths).
    """

    t_star: float = 0.1
    steps: int | None = None
    convention: Convention = "diffpure"

    def __post_init__(self) -> None:
        if not 0.0 < self.t_star <= 1.0:
            raise ValueError(
                f"t_star must lie in (0, 1], a fraction of the chain; got {self.t_star}"
            )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        if self.convention not in get_args(Convention):
            raise ValueError(
                f"convention must be one of {', '.join(get_args(Convention))}; "
                f"got {self.convention!r}"
            )

    def path(self, schedule: Schedule) -> Path:
        """The times to visit on a schedule.

        Raises:
            ValueError: if the steps do not fit into the indices up to t_star.
        """
        if isinstance(schedule, VPDiscrete):
            return self._discrete(schedule)
        if isinstance(schedule, VPSDE):
            return self._continuous(schedule)
        raise ValueError(f"no time grid for the schedule {schedule!r}")

    def _discrete(self, schedule: VPDiscrete) -> Path:
        top = round(self.t_star * len(schedule))
        if top < 1:
            raise ValueError(
                f"t_star must reach at least one index of {len(schedule)}; got {self.t_star}: "
                f"raise it to {1 / len(schedule):g} or more"
            )
        n = top if self.steps is None else self.steps
        if not 1 <= n <= top:
            raise ValueError(
                f"steps must be at most {top}, the number of indices up to t_star = {self.t_star} "
                f"of {len(schedule)}; got {n}"
            )
        times: tuple[int, ...]
        if self.convention == "addt":
            if top >= len(schedule) or top % n:
                raise ValueError(
                    f"the addt convention needs steps that divide {top} and t_star below 1; "
                    f"got steps = {n}, t_star = {self.t_star}"
                )
            times = (*range(top, -1, -(top // n)), -1)
        else:
            times = tuple(top * (n - i) // n - 1 for i in range(n + 1))
        noised = times[0] if self.convention != "adbm" else min(top, len(schedule) - 1)
        return Path(schedule.alpha(noised), schedule.sigma(noised), times)

    def _continuous(self, schedule: VPSDE) -> Path:
        if self.convention == "adbm":
            raise ValueError(
                "the adbm convention needs a discrete schedule; choose diffpure or addt"
            )
        top, milli = Fraction(str(self.t_star)), Fraction(1, 1000)
        n = max(1, round(top / milli)) if self.steps is None else self.steps
        if self.convention == "addt":
            top, end, n = min(top + milli, Fraction(1)), Fraction(0), n + 1
        else:
            end = milli / 100
            if top <= end:
                raise ValueError(f"t_star must lie above {float(end):g}; got {self.t_star}")
        times = tuple(float(top + (end - top) * Fraction(i, n)) for i in range(n + 1))
        if self.convention == "addt":
            return Path(schedule.alpha(times[0]), schedule.sigma(times[0]), times)
        discrete = schedule.discrete()
        index = max(0, round(top * len(discrete)) - 1)
        return Path(discrete.alpha(index), discrete.sigma(index), times)


def label_of(t: Time) -> int:
    """Integer that keys the noise of a step: the index itself, or a real time in billionths."""
    return t if isinstance(t, int) else round(t * 1_000_000_000)
