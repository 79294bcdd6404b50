"""Purification by partial noising and denoising."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from depure.diffusion.backprop import Backprop, Checkpoint, Surrogate
from depure.diffusion.chain import Chain
from depure.diffusion.denoiser import Denoiser
from depure.diffusion.grid import Convention, Grid
from depure.diffusion.samplers import DDPM, Sampler
from depure.noise import Noise
from depure.purify.base import Purifier
from depure.types import Waypoint


class DiffPure(Purifier):
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
        super().__init__()
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1; got {rounds}")
        self.denoiser = denoiser
        self.sampler = sampler if sampler is not None else DDPM()
        self.grid = Grid(t_star, steps, convention)
        self.rounds = rounds
        self.backprop = backprop if backprop is not None else Checkpoint()
        self.clamp = clamp
        for name, part, kind in (
            ("denoiser", denoiser, Denoiser),
            ("sampler", self.sampler, Sampler),
            ("backprop", self.backprop, Backprop),
        ):
            if not isinstance(part, kind):
                raise ValueError(f"{name} must be a {kind.__name__} object; got {part!r:.80}")
        self.sampler.check(denoiser.schedule)
        self.grid.path(denoiser.schedule)  # fails here, not in the first batch
        if isinstance(self.backprop, Surrogate):
            Grid(t_star, self.backprop.steps, convention).path(denoiser.schedule)
        self.eval()

    @property
    def stages(self) -> tuple[str, ...]:
        """ "forward", and "reverse" if the sampler is stochastic."""
        return ("forward", "reverse") if self.sampler.stochastic else ("forward",)

    @property
    def exact(self) -> bool:
        """Whether the loop driver's gradient is exact."""
        return self.backprop.exact

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """One purified image per image (B, C, H, W); beyond [0, 1] by a little unless clamped."""
        return (self.backprop.run(self._chain(noise), 2.0 * x - 1.0) + 1.0) / 2.0

    @property
    def memory_limit(self) -> int | None:
        """That of the loop driver."""
        return self.backprop.memory_limit

    def at_once(self, x: Tensor, noise: Noise) -> tuple[Tensor, int]:
        """What the loop driver has in memory at one time, and the states that it may store."""
        chain = self._chain(noise)
        return (self.backprop.at_once(chain, 2.0 * x - 1.0) + 1.0) / 2.0, len(chain.links())

    def waypoints(self, x: Tensor, noise: Noise) -> tuple[Waypoint, ...]:
        """The states after each reverse step, (x_t + 1) / 2; the last is the purified image.

        Raises:
            ValueError: if a gradient is wanted and `backprop` has none for the states between.
        """
        chain, start = self._chain(noise), 2.0 * x - 1.0
        points = chain.waypoints(start, self.backprop.states(chain, start))
        return tuple(
            p._replace(state=(p.state + 1.0) / 2.0, noised=(p.noised + 1.0) / 2.0) for p in points
        )

    def _chain(self, noise: Noise) -> Chain:
        return Chain(self.denoiser, self.sampler, self.grid, noise, self.rounds, self.clamp)

    def with_backprop(self, backprop: Backprop) -> Self:
        """The same defence, differentiated in another way (the network is shared)."""
        return type(self)(
            self.denoiser,
            self.sampler,
            t_star=self.grid.t_star,
            steps=self.grid.steps,
            rounds=self.rounds,
            backprop=backprop,
            convention=self.grid.convention,
            clamp=self.clamp,
        )

    def __repr__(self) -> str:
        return (
            f"DiffPure({self.denoiser.signature()}, {self.sampler!r}, {self.grid!r}, "
            f"rounds={self.rounds}, backprop={self.backprop!r}, clamp={self.clamp})"
        )
