"""Gradients that are not the chain's own. Each says so: `exact` is False."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depure.diffusion.backprop.base import Backprop, run_plainly
from depure.diffusion.backprop.checkpoint import Checkpoint
from depure.diffusion.chain import Chain


def _value_of(value: Tensor, gradient_of: Tensor) -> Tensor:
    """Exactly `value` in the forward pass; the gradient of `gradient_of` in the backward pass."""
    return value.detach() + (gradient_of - gradient_of.detach())


@dataclass(frozen=True)
class Straight(Backprop):
    """BPDA: the chain forward, the identity backward (Athalye et al., 1802.00420, section 4.1)."""

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """The chain without a graph, x's gradient passed straight through."""
        with torch.no_grad():
            value = run_plainly(chain)
        return _value_of(value, x)

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """One link, without a graph."""
        with torch.no_grad():
            value = Checkpoint().at_once(chain, x)
        return _value_of(value, x)


@dataclass(frozen=True)
class Surrogate(Backprop):
    """The gradient of a chain of `steps` steps a round (Lee & Kim, 2303.09051).

    Args:
        steps: reverse steps a round of the coarser chain.
        exact_value: run the full chain for the value (default). With False, whoever asks for a
            gradient also gets the coarse chain's value, which saves one full chain, as published;
            without gradients the value is always the full chain's.
    """

    steps: int
    exact_value: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """The full chain's value with the coarse chain's gradient.

        Raises:
            ValueError: if a gradient is wanted of a chain that has no shorter version.
        """
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if not differentiated:
            return run_plainly(chain)
        coarse = Checkpoint().run(self._shorter(chain), x)
        if not self.exact_value:
            return coarse
        with torch.no_grad():
            value = run_plainly(chain)
        return _value_of(value, coarse)

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """One link."""
        return Checkpoint().at_once(chain, x)

    def _shorter(self, chain: Chain) -> Chain:
        if chain.shorter is None:
            raise ValueError(
                f"{self!r} needs a chain that can be written in fewer steps, and this one has no "
                f"`shorter`: take Checkpoint(), which is exact for every chain"
            )
        return replace(chain.shorter(self.steps), parts=chain.parts)


@dataclass(frozen=True)
class Blind(Backprop):
    """The attacker ignores the purifier: whoever asks for a gradient gets the input itself.

    Without gradients the chain runs in full, so the judge sees the real defence.
    """

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """x where a gradient is wanted, else the end of the chain."""
        if torch.is_grad_enabled() and x.requires_grad:
            return x.clone()
        return run_plainly(chain)

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """One link, as whoever asks for no gradient runs it."""
        return Straight().at_once(chain, x)
