"""Rounds of noising and denoising, written out as links."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from depure.diffusion.chain import Chain, Link, ReverseSDE, State
from depure.diffusion.denoiser import Denoiser
from depure.diffusion.grid import Grid
from depure.diffusion.samplers.base import Sampler
from depure.diffusion.schedules import TimePath, label_of
from depure.noise import Noise


@dataclass(frozen=True, eq=False)
class Rounds:
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

    @property
    def path(self) -> TimePath:
        """The times of a round."""
        return self.grid.path(self.denoiser.schedule)

    def chain(self, x: Tensor, end: Callable[[State], Tensor]) -> Chain:
        """All rounds from x (B, C, H, W) in [-1, 1] space; `end` makes an image of the end."""

        def shorter(steps: int) -> Chain:
            return replace(self, grid=replace(self.grid, steps=steps)).chain(x, end)

        return Chain(
            (x,), self.links(), end, shorter=shorter, sde=self.sde(), parts=(self.denoiser.network,)
        )

    def links(self) -> tuple[Link, ...]:
        """One link for every reverse step of every round."""
        path, kind = self.path, repr(self.sampler)
        return tuple(
            Link(partial(self._step, path, turn, i), kind, turn, path.times[i + 1])
            for turn in range(self.rounds)
            for i in range(len(path.pairs))
        )

    def begin(self, path: TimePath, turn: int, x: Tensor) -> Tensor:
        """The state that round `turn` starts from: x with the round's forward noise."""
        return path.alpha * x + path.sigma * self.noise.normal("forward", (turn, 0), x)

    def noised(self, x: Tensor, states: Sequence[Tensor]) -> Iterator[Tensor]:
        """What noising alone makes of x at the times of the states.

        The counterpart of a state at time t of a round is alpha(t) x + sigma(t) z, with the image
        x and the forward noise z that this round began with.
        """
        schedule, times = self.denoiser.schedule, self.path.times[1:]
        for turn in range(self.rounds):
            z = self.noise.normal("forward", (turn, 0), x)
            for t in times:
                yield schedule.alpha(t) * x + schedule.sigma(t) * z
            x = states[(turn + 1) * len(times) - 1]

    def sde(self) -> ReverseSDE | None:
        """What the links discretise, if the rule is that of a reverse SDE."""
        path, denoiser = self.path, self.denoiser
        reverse = self.sampler.reverse(denoiser, path.times)
        if reverse is None:
            return None
        return ReverseSDE(
            self.rounds,
            len(path.pairs),
            begin=partial(self.begin, path),
            drift=reverse.drift,
            spread=reverse.spread,
            noise=partial(self._z, path),
            finish=lambda x: x.clamp(-1.0, 1.0) if self.clamp else x,
            last_sigma=denoiser.schedule.sigma(path.times[-1]),
        )

    def _z(self, path: TimePath, turn: int, i: int, like: Tensor) -> Tensor | None:
        """Standard normal numbers of reverse step i; None where the rule takes none."""
        last = i + 1 == len(path.times) - 1
        if not self.sampler.stochastic or (last and self.sampler.denoise_last):
            return None
        return self.noise.normal("reverse", (turn, label_of(path.times[i])), like)

    def _step(self, path: TimePath, turn: int, i: int, state: State, context: State) -> State:
        (x,) = state
        if i == 0:
            x = self.begin(path, turn, x)
        t, s = path.times[i], path.times[i + 1]
        z = self._z(path, turn, i, x)
        x = self.sampler.step(self.denoiser, x, t, s, z)
        end = turn + 1 == self.rounds and i + 2 == len(path.times)
        return (x.clamp(-1.0, 1.0),) if self.clamp and end else (x,)
