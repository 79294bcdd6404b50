"""Time grids: which times a purification visits. Integers index; floats do not accumulate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from depure.diffusion.schedules import Convention, Schedule, TimePath
from depure.diffusion.schedules.base import refuse_t_star


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
            refuse_t_star(self.t_star)
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        if self.convention not in get_args(Convention):
            raise ValueError(
                f"convention must be one of {', '.join(get_args(Convention))}; "
                f"got {self.convention!r}"
            )

    def path(self, schedule: Schedule) -> TimePath:
        """The times to visit on a schedule.

        Raises:
            ValueError: if t_star is out of the schedule's range, or the steps do not fit into the
                indices up to t_star.
        """
        return schedule.path(self.t_star, self.steps, self.convention)
