"""What a purifier is that is a loop."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, NamedTuple, Self, final

from torch import Tensor

from depure.diffusion.backprop import Backprop, Checkpoint
from depure.diffusion.chain import Chain, State
from depure.noise import Noise
from depure.purifiers.base import Purifier
from depure.records import came, record_of
from depure.types import Waypoint


class Level(NamedTuple):
    """Where a picture of a purification lies."""

    time: float  # share of the schedule that is left (on Karras: the noise level)
    noise: float  # sigma / alpha


class Chained(Purifier):
    """A purifier that is a loop: the author writes `chain`, gradients and states come with it.

    A subclass owns its networks as child modules, hands its settings and loop driver to this
    constructor, names the `stages` that draw noise and writes `chain`. What follows from settings
    is computed when it is asked for, never stored, so that `with_settings` cannot leave it behind.

    Args:
        settings: a frozen dataclass of plain settings.
        backprop: how gradients are made; exact and within a memory limit by default.

    Raises:
        ValueError: for a driver that is none, or settings that are no frozen dataclass.

    Example:
        >>> purifier.with_settings(replace(purifier.settings, steps=5))  # doctest: +SKIP
    """

    settings: Any
    backprop: Backprop

    def __init__(self, settings: Any, backprop: Backprop | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.backprop = backprop if backprop is not None else Checkpoint()

    @abstractmethod
    def chain(self, x: Tensor, noise: Noise) -> Chain:
        """The purification of checked images (B, C, H, W), one row of noise each, as a chain."""

    def check(self) -> None:
        """Raise ValueError for settings, parts and a driver that do not fit together.

        Called for every new object that `with_settings` and `with_backprop` make; to be extended.
        """
        if not isinstance(self.backprop, Backprop):
            raise ValueError(f"backprop must be a Backprop object; got {came(self.backprop)}")
        kind = type(self.settings)
        if not is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise ValueError(f"settings must be a frozen dataclass; got {came(self.settings)}")

    @final
    @property
    def exact(self) -> bool:
        """Whether the loop driver's gradient is exact."""
        return self.backprop.exact

    @final
    @property
    def memory_limit(self) -> int | None:
        """That of the loop driver."""
        return self.backprop.memory_limit

    @final
    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """The image at the end of the chain, one per image (B, C, H, W)."""
        return self.backprop.run(self.prepared(x, noise), x)

    @final
    def at_once(self, x: Tensor, noise: Noise) -> tuple[Tensor, int]:
        """What the loop driver has in memory at one time, and the images' worth it may store."""
        chain = self.prepared(x, noise)
        size = sum(t.numel() * t.element_size() for t in chain.start)
        around = sum(t.numel() * t.element_size() for t in chain.context)
        stored = len(chain.links) * size + around
        return self.backprop.at_once(chain, x), -(-stored // (x.numel() * x.element_size()))

    @final
    def states(self, x: Tensor, noise: Noise) -> tuple[State, ...]:
        """The state after each link, differentiable as the loop driver does.

        Raises:
            ValueError: if a gradient is wanted and `backprop` has none for the states between.
        """
        return self.backprop.states(self.prepared(x, noise), x)

    @final
    def waypoints(self, x: Tensor, noise: Noise) -> tuple[Waypoint, ...]:
        """The states after each link as images; the last is the purified one.

        Raises:
            ValueError: if a gradient is wanted and `backprop` has none for the states between, or
                if the loop reverses no noising.
        """
        chain = self.prepared(x, noise)
        states = self.backprop.states(chain, x)
        noised = self.noised(x, noise, states)
        if noised is None:
            return super().waypoints(x, noise)
        rounds = [link.round for link in chain.links]
        points = []
        for i, (link, state, image) in enumerate(zip(chain.links, states, noised, strict=True)):
            left = (max(rounds) - link.round, rounds[i + 1 :].count(link.round))
            time = float("nan") if link.time is None else link.time
            points.append(Waypoint(*left, time, chain.end(state), image))
        return tuple(points)

    def noised(self, x: Tensor, noise: Noise, states: Sequence[State]) -> Sequence[Tensor] | None:
        """What noising alone makes of the image at each link's time; None if nothing is noised.

        Args:
            x: images (B, C, H, W).
            noise: one row per image.
            states: those after each link.

        Returns:
            One (B, C, H, W) per link, scaled as the images of the states are.
        """
        return None

    def pictures(self, x: Tensor, noise: Noise) -> Iterator[Tensor]:
        """x, then every state as an image (B, C, H, W), with the noise that it holds."""
        chain = self.prepared(x, noise)
        state = chain.start
        yield x
        for link in chain.links:
            state = link(state, chain.context)
            yield chain.end(state)

    def levels(self, x: Tensor, noise: Noise) -> list[Level]:
        """Time and noise level of each of the pictures; what is not known is NaN."""
        times = [link.time for link in self.prepared(x, noise).links]
        known = [float("nan") if t is None else float(t) for t in times]
        return [Level(0.0, 0.0), *(Level(t, float("nan")) for t in known)]

    def scales(self, chain: Chain) -> list[float]:
        """By what each link scales its state before it steps (alpha, where it noises first)."""
        return [1.0] * len(chain.links)

    def record(self) -> dict[str, Any]:
        """Name, networks, settings and loop driver."""
        return {
            "name": type(self).__name__,
            "networks": [type(part).__name__ for part in self.parts],
            **{k: v for k, v in record_of(self.settings).items() if k != "name"},
            "backprop": record_of(self.backprop),
        }

    @final
    def prepared(self, x: Tensor, noise: Noise) -> Chain:
        """`chain`, with what a loop driver must know of the networks."""
        return replace(self.chain(x, noise), parts=self.parts)

    @final
    def with_settings(self, settings: Any) -> Self:
        """The same purifier with other settings (networks are shared).

        Raises:
            ValueError: for settings of another class, or that do not fit.
        """
        if type(settings) is not type(self.settings):
            raise ValueError(
                f"settings must be {type(self.settings).__name__}, as in "
                f"replace(purifier.settings, ...); got {came(settings)}"
            )
        return self._with("settings", settings)

    @final
    def with_backprop(self, backprop: Backprop) -> Self:
        """The same purifier, differentiated in another way (networks are shared).

        Raises:
            ValueError: for a driver that does not fit.
        """
        return self._with("backprop", backprop)

    def _with(self, name: str, value: Any) -> Self:
        other = copy.copy(self)
        # A module keeps its children, weights and hooks in dictionaries: each needs its own.
        other.__dict__ = {k: copy.copy(v) if isinstance(v, dict) else v
                          for k, v in self.__dict__.items()}  # fmt: skip
        setattr(other, name, value)
        other.check()
        return other

    def __repr__(self) -> str:
        parts = ", ".join(type(part).__name__ for part in self.parts)
        return f"{type(self).__name__}({parts}; {self.settings!r}, backprop={self.backprop!r})"
