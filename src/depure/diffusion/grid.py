"""Time grids: which times a purification visits. Integers index; floats do not accumulate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NoReturn, get_args

from depure.diffusion.schedule import VPSDE, Karras, Schedule, Time, VPDiscrete

Convention = Literal["diffpure", "addt", "adbm"]

_LEVELS = 18  # EDM's own number for 32 x 32 images (2206.00364, table 2)


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

    On a `Karras` schedule, whose time is the noise level, t_star is the noise level to purify from
    (ADDT's EDM: 0.5) and may exceed 1; see below.

    Conventions, where published programs are one index apart (T = 1000, t_star = 0.1):

    * "diffpure": noise at index 99, visit 99 down to the clean image in `steps` calls. On the
      VP-SDE: noise with the *discrete* alpha_bar at index 99, integrate from 0.1 to 1e-5. Not the
      release to the letter: its 100 Euler steps are 99 of 1e-3 and a last one of 0.99e-3, here all
      100 are equal; and its discrete samplers know no `steps`, they visit every index.
    * "addt": noise at index 100, visit 100, 100 - 100/steps, ..., 0: steps + 1 calls. On the
      VP-SDE: noise at t = 0.1 + 1/1000, integrate to 0 in steps + 1 calls.
    * "adbm": noise at index 100 but visit from 99 as "diffpure" does; discrete schedules only.

    Without `steps`, every index is visited (VP-SDE: as many equal steps as there are thousandths).

    Karras: noise with standard deviation t_star, visit (t_star^(1/rho) + i / (steps - 1)
    (sigma_min^(1/rho) - t_star^(1/rho)))^rho for i = 0 .. steps - 1, then 0 (2206.00364,
    equation 5); 18 steps if none are given. "diffpure" and "addt" agree there.
    """

    t_star: float = 0.1
    steps: int | None = None
    convention: Convention = "diffpure"

    def __post_init__(self) -> None:
        if not 0.0 < self.t_star < math.inf:
            self._refuse_t_star()
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
            ValueError: if t_star is out of the schedule's range, or the steps do not fit into the
                indices up to t_star.
        """
        if isinstance(schedule, Karras):
            return self._levels(schedule)
        if self.t_star > 1.0:
            self._refuse_t_star()
        if isinstance(schedule, VPDiscrete):
            return self._discrete(schedule)
        if isinstance(schedule, VPSDE):
            return self._continuous(schedule)
        raise ValueError(f"no time grid for the schedule {schedule!r}")

    def _refuse_t_star(self) -> NoReturn:
        raise ValueError(f"t_star must lie in (0, 1], a fraction of the chain; got {self.t_star}")

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

    def _refuse_adbm(self) -> None:
        if self.convention == "adbm":
            raise ValueError(
                "the adbm convention needs a discrete schedule; choose diffpure or addt"
            )

    def _continuous(self, schedule: VPSDE) -> Path:
        self._refuse_adbm()
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

    def _levels(self, schedule: Karras) -> Path:
        self._refuse_adbm()
        top, end = float(self.t_star), schedule.sigma_min
        if not end < top <= schedule.sigma_max:
            raise ValueError(
                f"t_star is the noise level to purify from on {schedule!r}: it must lie above "
                f"sigma_min and at most at sigma_max; got {self.t_star}"
            )
        last = (_LEVELS if self.steps is None else self.steps) - 1
        high, low = top ** (1.0 / schedule.rho), end ** (1.0 / schedule.rho)
        inner = tuple((high + i / last * (low - high)) ** schedule.rho for i in range(1, last))
        times = (top, *inner, *((end,) if last else ()), 0.0)
        return Path(schedule.alpha(top), schedule.sigma(top), times)


def label_of(t: Time) -> int:
    """Integer that keys the noise of a step: the index itself, or a real time in billionths."""
    return t if isinstance(t, int) else round(t * 1_000_000_000)
