"""Purification by partial noising and denoising."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from depure.diffusion.backprop import Backprop, Surrogate
from depure.diffusion.chain import Chain, State
from depure.diffusion.denoiser import Denoiser
from depure.diffusion.grid import Grid
from depure.diffusion.samplers import DDPM, Sampler
from depure.diffusion.schedules import Convention
from depure.noise import Noise
from depure.purifiers.base import Entry
from depure.purifiers.chained import Chained, Level
from depure.purifiers.diffusion.rounds import Rounds
from depure.records import came


@dataclass(frozen=True)
class DiffPureSettings:
    """What a `DiffPure` does with its denoiser; see there."""

    sampler: Sampler
    t_star: float = 0.1
    steps: int | None = None
    rounds: int = 1
    convention: Convention = "diffpure"
    clamp: bool = False


class DiffPure(Chained):
    """Noise the image up to t_star, then denoise it (Nie et al., 2205.07460).

    Args:
        denoiser: the diffusion model.
        sampler: the reverse rule.
        t_star: how far to noise, as a fraction of the chain (0.1 of T = 1000 is 100 steps); on a
            `Karras` schedule the noise level in [-1, 1] space (ADDT's EDM: 0.5).
        steps: reverse steps per round; None visits every index (18 noise levels on `Karras`).
        rounds: how often to noise and denoise in sequence.
        backprop: how gradients are made; exact and within a memory budget by default.
        convention: which published index arithmetic to follow, see `Grid`.
        clamp: clamp the result to [0, 1] inside the graph (ADDT does, DiffPure does not).

    Raises:
        ValueError: for settings that do not fit together.

    Example:
        >>> purifier = DiffPure(denoiser, DDPM(), t_star=0.1, steps=10)  # doctest: +SKIP
        >>> purifier(x, Noise.of(seed=0, index=range(len(x))))  # doctest: +SKIP
    """

    settings: DiffPureSettings

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler | None = None,
        *,
        t_star: float = 0.1,
        steps: int | None = None,
        rounds: int = 1,
        backprop: Backprop | None = None,
        convention: Convention = "diffpure",
        clamp: bool = False,
    ) -> None:
        rule = sampler if sampler is not None else DDPM()
        super().__init__(DiffPureSettings(rule, t_star, steps, rounds, convention, clamp), backprop)
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"denoiser must be a Denoiser object; got {came(denoiser)}")
        self.denoiser = denoiser
        self.check()
        self.eval()

    def check(self) -> None:
        """Raise ValueError for settings, a denoiser and a driver that do not fit together."""
        super().check()
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {self.rounds}")
        if not isinstance(self.sampler, Sampler):
            raise ValueError(f"sampler must be a Sampler object; got {came(self.sampler)}")
        self.sampler.check(self.denoiser.schedule)
        self.grid.path(self.denoiser.schedule)  # fails here, not in the first batch
        if isinstance(self.backprop, Surrogate):
            replace(self.grid, steps=self.backprop.steps).path(self.denoiser.schedule)

    @property
    def sampler(self) -> Sampler:
        """The reverse rule."""
        return self.settings.sampler

    @property
    def grid(self) -> Grid:
        """Which times are visited."""
        return Grid(self.settings.t_star, self.settings.steps, self.settings.convention)

    @property
    def rounds(self) -> int:
        """How often the image is noised and denoised."""
        return self.settings.rounds

    @property
    def clamp(self) -> bool:
        """Whether the result is clamped to [0, 1]."""
        return self.settings.clamp

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The network, which denoisers may share."""
        return (self.denoiser.network,)

    @property
    def stages(self) -> tuple[str, ...]:
        """ "forward", and "reverse" if the sampler is stochastic."""
        return ("forward", "reverse") if self.sampler.stochastic else ("forward",)

    def chain(self, x: Tensor, noise: Noise) -> Chain:
        """One link per reverse step, in [-1, 1] space; only a clamped end stays within [0, 1]."""
        return self._rounds(noise).chain(2.0 * x - 1.0, _image)

    def _rounds(self, noise: Noise) -> Rounds:
        return Rounds(self.denoiser, self.sampler, self.grid, noise, self.rounds, self.clamp)

    def noised(self, x: Tensor, noise: Noise, states: Sequence[State]) -> Sequence[Tensor]:
        """alpha(t) x + sigma(t) z of each round's image and forward noise, as images."""
        points = self._rounds(noise).noised(2.0 * x - 1.0, [state[0] for state in states])
        return [(point + 1.0) / 2.0 for point in points]

    def pictures(self, x: Tensor, noise: Noise) -> Iterator[Tensor]:
        """x, and every round's noised image and states, each divided by its alpha."""
        rounds, state = self._rounds(noise), 2.0 * x - 1.0
        path, schedule = rounds.path, self.denoiser.schedule
        alphas = [schedule.alpha(t) for t in path.times[1:-1]] + [1.0]
        yield x
        for i, link in enumerate(rounds.links()):
            turn, place = divmod(i, len(alphas))
            if place == 0:
                yield (rounds.begin(path, turn, state) / path.alpha + 1.0) / 2.0
            (state,) = link((state,), ())
            yield (state / alphas[place] + 1.0) / 2.0

    def levels(self, x: Tensor, noise: Noise) -> list[Level]:
        """Of each picture; the ends of every round count as 0."""
        schedule, path = self.denoiser.schedule, self.grid.path(self.denoiser.schedule)
        inner = [schedule.sigma(t) / schedule.alpha(t) for t in path.times[1:-1]]
        times = [schedule.share(t) for t in path.times[:-1]] + [0.0]
        turn = list(map(Level, times, [path.sigma / path.alpha, *inner, 0.0]))
        return [Level(0.0, 0.0), *turn * self.rounds]

    def scales(self, chain: Chain) -> list[float]:
        """alpha for the first link of every round, which noises its state, else 1."""
        alpha, steps = self.grid.path(self.denoiser.schedule).alpha, len(chain.links) // self.rounds
        return [alpha if i % steps == 0 else 1.0 for i in range(len(chain.links))]

    @property
    def entry(self) -> Entry:
        """The time up to which the image is noised."""
        path = self.grid.path(self.denoiser.schedule)
        return Entry(self.denoiser, path.alpha, path.sigma, path.times[0])

    def generator(self, steps: int) -> DiffPure:
        """The same network and rule from the end of the schedule, where nothing is left of x."""
        return DiffPure(self.denoiser, self.sampler, t_star=self.denoiser.schedule.end, steps=steps)

    def record(self) -> dict[str, Any]:
        """With the denoiser's signature in place of the networks' names."""
        record = {**super().record(), "networks": [self.denoiser.signature()]}
        return record

    def __repr__(self) -> str:
        return (
            f"DiffPure({self.denoiser.signature()}, {self.sampler!r}, {self.grid!r}, "
            f"rounds={self.rounds}, backprop={self.backprop!r}, clamp={self.clamp})"
        )


def _image(state: State) -> Tensor:
    return (state[0] + 1.0) / 2.0
