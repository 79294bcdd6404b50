"""What a purifier is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from depure.diffusion.denoiser import Denoiser
from depure.noise import Noise
from depure.records import came
from depure.types import Time, Waypoint

_TOLERANCE = 1e-3  # finite differences and float rounding may leave [0, 1] by a hair


class Entry(NamedTuple):
    """Where a diffusion purifier begins: x_t = alpha x + sigma z in [-1, 1] space."""

    denoiser: Denoiser
    alpha: float
    sigma: float
    time: Time


class Purifier(nn.Module, ABC):
    """A map from images to images: `(x, noise) -> x`, both (B, C, H, W) in [0, 1].

    A subclass names the `stages` at which it draws noise and writes `purify`. It begins in eval
    mode, and no part of it may be in train mode when it is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every part; one that refuses (a denoiser) leaves all in eval mode."""
        try:
            return super().train(mode)
        except ValueError:
            super().train(False)
            raise

    @property
    @abstractmethod
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that draw noise; empty for a deterministic purifier."""

    @property
    def defends(self) -> bool:
        """Whether it changes images at all; False for the undefended classifier."""
        return True

    @property
    def exact(self) -> bool:
        """Whether the gradient claims to be that of the purifier; False for BPDA and the like."""
        return True

    @abstractmethod
    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """Purify checked images with one row of noise each."""

    def record(self) -> dict[str, Any]:
        """What it is, as data for cards: its name, and the settings that decide its images."""
        return {"name": type(self).__name__, "settings": repr(self)}

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules whose calls are its cost: its child modules, or the parts of a purifier."""
        inner = (c.parts if isinstance(c, Purifier) else (c,) for c in self.children())
        return tuple(part for parts in inner for part in parts)

    @property
    def entry(self) -> Entry | None:
        """Up to where the image is noised; None if it is not."""
        return None

    @property
    def memory_limit(self) -> int | None:
        """Bytes that its gradients may take; None if it does not say."""
        return None

    def at_once(self, x: Tensor, noise: Noise) -> tuple[Tensor, int]:
        """The part of `purify` whose graph a gradient has in memory at one time; for planning.

        With it the number of images that are stored besides: 0, since as a rule it is all.
        """
        return self.purify(x, noise), 0

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        """Check the images and the noise, then purify.

        Raises:
            ValueError: for images of the wrong shape, dtype or range, noise with another number
                of rows, or a locked stage that this purifier does not have.
        """
        self._check(x, noise)
        return self.purify(x, noise)

    def trace(self, x: Tensor, noise: Noise) -> tuple[Waypoint, ...]:
        """Check as `forward` does, then the states passed through; the last is the result.

        Raises:
            ValueError: as `forward`, and for a purifier that passes through no states.
        """
        self._check(x, noise)
        return self.waypoints(x, noise)

    def waypoints(self, x: Tensor, noise: Noise) -> tuple[Waypoint, ...]:
        """States of checked images, scaled as images are, (x_t + 1) / 2; to be overridden.

        Raises:
            ValueError: unless overridden.
        """
        raise ValueError(
            f"{self!r} passes through no states of a reverse process: what needs them (DiffAttack, "
            f"say) works on a diffusion purifier such as DiffPure; any other attack works on this "
            f"defence"
        )

    def generator(self, steps: int) -> Purifier:
        """A purifier that leaves nothing of its input: a source of images.

        Args:
            steps: reverse steps.

        Raises:
            ValueError: for a purifier without a model that generates.
        """
        raise ValueError(
            f"{came(self)} generates no images: take a diffusion purifier such as DiffPure"
        )

    def _check(self, x: Tensor, noise: Noise) -> None:
        check_images(x)
        check_eval(self, "purifier")
        check_stages(noise.held, self.stages, "noise")
        if len(noise) != x.shape[0]:
            raise ValueError(
                f"{x.shape[0]} images need one row of noise each; got {len(noise)} rows"
            )


def check_stages(named: tuple[str, ...], stages: tuple[str, ...], what: str) -> None:
    """Raise ValueError if a stage is named that does not exist (it would lock nothing)."""
    for stage in named:
        if stage not in stages:
            known = ", ".join(stages) or "none: it is deterministic"
            raise ValueError(
                f"{what} names the stage {stage!r}, but this purifier draws noise at: {known}"
            )


def check_images(x: Tensor, name: str = "images") -> None:
    """Raise ValueError unless x is a floating (B, C, H, W) tensor, finite and within [0, 1]."""
    if not isinstance(x, Tensor) or x.ndim != 4:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{name} must have shape (B, C, H, W); got {shape}: add a batch dimension with x[None]"
        )
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point; got {x.dtype}: pass x.float() / 255")
    if x.numel() == 0:
        raise ValueError(f"{name} must not be empty; got shape {tuple(x.shape)}")
    low, high = (v.item() for v in torch.aminmax(x.detach()))
    if not low >= -_TOLERANCE or not high <= 1.0 + _TOLERANCE:
        if low != low or high != high:
            raise ValueError(f"{name} must be finite; got NaN: check the step that made them")
        cure = "pass (x + 1) / 2" if -1.001 <= low < 0 and high <= 1.001 else "rescale them"
        raise ValueError(f"{name} must lie in [0, 1]; got {low:g} to {high:g}: {cure}")


def check_eval(module: nn.Module, name: str) -> None:
    """Raise ValueError if any part of the module is in train mode."""
    for part in module.modules():
        if part.training:
            raise ValueError(
                f"the {name} has a part in train mode ({type(part).__name__}), where dropout and "
                f"batch statistics change its answers: call .eval() on it"
            )
