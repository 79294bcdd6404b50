"""A purification written out as a chain of pure links, ready for any loop driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from depure.diffusion.denoiser import Denoiser
from depure.diffusion.grid import Grid, Path, label_of
from depure.diffusion.samplers.base import Sampler
from depure.noise import Noise
from depure.types import Step, Waypoint


@dataclass(frozen=True, eq=False)
class Chain:
    """`rounds` times: noise the state (stage "forward"), then denoise it (stage "reverse").

    Every link is one reverse step, a pure function of the state (B, C, H, W) in [-1, 1] space;
    the first of each round noises the state before it steps, and the very last clamps it to
    [-1, 1] if asked. Reverse noise is keyed by the round and the time it leaves, so coarser
    chains share the numbers of the times they share.
    """

    denoiser: Denoiser
    sampler: Sampler
    grid: Grid
    noise: Noise
    rounds: int = 1
    clamp: bool = False

    def links(self) -> tuple[Step, ...]:
        """One function state -> state for every reverse step of every round."""
        path = self.grid.path(self.denoiser.schedule)
        steps = range(len(path.pairs))
        return tuple(partial(self._link, path, r, i) for r in range(self.rounds) for i in steps)

    def coarse(self, steps: int) -> Chain:
        """The same chain in fewer steps a round."""
        return replace(self, grid=replace(self.grid, steps=steps))

    def noised(self, path: Path, turn: int, x: Tensor) -> Tensor:
        """The state that round `turn` starts from: x with the round's forward noise."""
        return path.alpha * x + path.sigma * self.noise.normal("forward", (turn, 0), x)

    def waypoints(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Waypoint, ...]:
        """The states after each link of the chain from x, beside what noising alone makes of x.

        The counterpart of a state at time t of a round is alpha(t) x + sigma(t) z, with the image
        x and the forward noise z that this round began with.
        """
        schedule, times = self.denoiser.schedule, self.grid.path(self.denoiser.schedule).times[1:]
        points = []
        for turn in range(self.rounds):
            z = self.noise.normal("forward", (turn, 0), x)
            part = states[turn * len(times) : (turn + 1) * len(times)]
            for i, (t, state) in enumerate(zip(times, part, strict=True)):
                noised = schedule.alpha(t) * x + schedule.sigma(t) * z
                left = (self.rounds - turn - 1, len(times) - i - 1)
                points.append(Waypoint(*left, t, state, noised))
            x = part[-1]
        return tuple(points)

    def reverse_noise(self, path: Path, turn: int, i: int, like: Tensor) -> Tensor | None:
        """Standard normal numbers of reverse step i; None where the rule takes none."""
        last = i + 1 == len(path.times) - 1
        if not self.sampler.stochastic or (last and self.sampler.denoise_last):
            return None
        return self.noise.normal("reverse", (turn, label_of(path.times[i])), like)

    def _link(self, path: Path, turn: int, i: int, x: Tensor) -> Tensor:
        if i == 0:
            x = self.noised(path, turn, x)
        t, s = path.times[i], path.times[i + 1]
        z = self.reverse_noise(path, turn, i, x)
        x = self.sampler.step(self.denoiser, x, t, s, z)
        end = turn + 1 == self.rounds and i + 2 == len(path.times)
        return x.clamp(-1.0, 1.0) if self.clamp and end else x
