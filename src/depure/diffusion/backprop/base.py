"""What a loop driver is, and the plainest one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depure.diffusion.chain import Chain
from depure.types import Step


def run_links(links: Sequence[Step], x: Tensor) -> Tensor:
    """x through every link, in order."""
    for link in links:
        x = link(x)
    return x


def walk(links: Sequence[Step], x: Tensor) -> tuple[Tensor, ...]:
    """The state after each link."""
    states = []
    for link in links:
        x = link(x)
        states.append(x)
    return tuple(states)


def require_graph(end: Tensor, x: Tensor) -> Tensor:
    """The end of a chain, known to lead back to x where a gradient is wanted.

    Raises:
        RuntimeError: if a step cut the graph.
    """
    if torch.is_grad_enabled() and x.requires_grad and not end.requires_grad:
        raise RuntimeError(
            "a step of the chain cut the graph (it ran under no_grad or detached its input): "
            "this defence has no gradient; attack it with Straight() (BPDA) instead"
        )
    return end


class Backprop(ABC):
    """Decides how a chain of steps is run and differentiated; a frozen dataclass of settings."""

    @property
    def exact(self) -> bool:
        """Whether the gradient is that of the chain itself."""
        return False

    @property
    def memory_limit(self) -> int | None:
        """Bytes for activations; None if there is no limit of its own."""
        return None

    @abstractmethod
    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """The end of the chain started at x (B, C, H, W), differentiable as this driver does."""

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """The part of `run` whose graph is in memory at one time: all, unless it replays links."""
        return self.run(chain, x)

    def states(self, chain: Chain, x: Tensor) -> tuple[Tensor, ...]:
        """The state (B, C, H, W) after each link; the last is the end.

        Raises:
            ValueError: if a gradient is wanted and this driver has none for the states between.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                f"{self!r} has no gradient of the states between the image and the end of the "
                f"chain: take Checkpoint(), which has exact ones"
            )
        return walk(chain.links(), x)


@dataclass(frozen=True)
class Full(Backprop):
    """Plain autograd: exact, 2 forwards of time, and memory for every step's activations."""

    @property
    def exact(self) -> bool:
        """Yes."""
        return True

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """Every link under autograd."""
        return require_graph(run_links(chain.links(), x), x)

    def states(self, chain: Chain, x: Tensor) -> tuple[Tensor, ...]:
        """Every link under autograd."""
        return tuple(require_graph(state, x) for state in walk(chain.links(), x))
