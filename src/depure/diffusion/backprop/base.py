"""What a loop driver is, and the plainest one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depure.diffusion.chain import Chain, Link, State

CUT = (
    "a step of the chain cut the graph (it ran under no_grad or detached its input): "
    "this defence has no gradient; attack it with Straight() (BPDA) instead"
)


def run_links(links: Sequence[Link], state: State, context: State) -> State:
    """A state through every link, in order."""
    for link in links:
        state = link(state, context)
    return state


def walk(links: Sequence[Link], state: State, context: State) -> tuple[State, ...]:
    """The state after each link."""
    states = []
    for link in links:
        state = link(state, context)
        states.append(state)
    return tuple(states)


def run_plainly(chain: Chain) -> Tensor:
    """The image that comes out of the chain, with the graph that autograd makes of it."""
    return chain.end(run_links(chain.links, chain.start, chain.context))


def require_graph(end: Tensor, x: Tensor) -> Tensor:
    """The end of a chain, known to lead back to x where a gradient is wanted.

    Raises:
        RuntimeError: if a step cut the graph.
    """
    if torch.is_grad_enabled() and x.requires_grad and not end.requires_grad:
        raise RuntimeError(CUT)
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
        """The image that the chain makes of x (B, C, H, W), differentiable as this driver does.

        Both are images in [0, 1]; the chain was made from x.
        """

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """The part of `run` whose graph is in memory at one time: all, unless it replays links."""
        return self.run(chain, x)

    def states(self, chain: Chain, x: Tensor) -> tuple[State, ...]:
        """The state after each link.

        Raises:
            ValueError: if a gradient is wanted and this driver has none for the states between.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                f"{self!r} has no gradient of the states between the image and the end of the "
                f"chain: take Checkpoint(), which has exact ones"
            )
        return walk(chain.links, chain.start, chain.context)


@dataclass(frozen=True)
class Full(Backprop):
    """Plain autograd: exact, 2 forwards of time, and memory for every step's activations."""

    @property
    def exact(self) -> bool:
        """Yes."""
        return True

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """Every link under autograd."""
        return require_graph(run_plainly(chain), x)

    def states(self, chain: Chain, x: Tensor) -> tuple[State, ...]:
        """Every link under autograd."""
        states = walk(chain.links, chain.start, chain.context)
        return tuple(require_state(state, x) for state in states)


def require_state(state: State, x: Tensor) -> State:
    """As `require_graph`, for a state: one of its entries leads back to x."""
    if not any(t.requires_grad for t in state):
        require_graph(state[0], x)
    return state
