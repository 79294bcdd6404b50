"""What an attack sees of a defence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from depure.attacks.asking.losses import Loss
from depure.noise import Noise
from depure.types import Trace


class Model(Protocol):
    """Logits under given noise, and the names of the stages that draw it."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that draw noise."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) under one row of noise each."""


@runtime_checkable
class Traced(Model, Protocol):
    """A defence that also shows what it passes through, and the classifier behind it."""

    @property
    def classifier(self) -> Callable[[Tensor], Tensor]:
        """Images (B, C, H, W) to logits (B, K)."""

    def trace(self, x: Tensor, noise: Noise) -> Trace:
        """The logits of a call and the states before them, all with gradients.

        Raises:
            ValueError: if there are no states, or no gradients of them.
        """


Term = Callable[[Tensor, Noise, Tensor, Loss], tuple[Tensor, Tensor]]
"""Images, one row of noise each, labels, loss to logits (B, K) and what is added to the loss (B,).
The logits are those of the defence under this noise."""


@dataclass(eq=False)
class WithTerm:
    """A defence, and a term that `expected_grad` adds to whatever loss of it an attack raises.

    Whoever asks for logits gets those of the defence, so that any attack that goes by
    `expected_grad` can be run on it.
    """

    model: Model
    term: Term
    used: bool = False  # whether a gradient was ever asked for

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of the defence."""
        return self.model.stages

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """The defence's logits."""
        return self.model(x, noise)

    def measured(self, x: Tensor, noise: Noise, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and the term (B,)."""
        return self.term(x, noise, y, loss)
