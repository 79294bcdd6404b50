"""Exact gradients of long chains in bounded memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from depure.diffusion.backprop.base import (
    Backprop,
    require_graph,
    require_state,
    run_links,
    run_plainly,
    walk,
)
from depure.diffusion.backprop.replay import flagged, leaves_of, replay, replay_states
from depure.diffusion.chain import Chain, Link, State, has_gradient
from depure.rows import current_chunk

_CPU_BUDGET = 2**30
probing: ContextVar[bool] = ContextVar("probing", default=False)
"""True while a step is probed: who counts network calls leaves this one out, as it happens once a
process and would make the count of a resumed run differ."""
_link_bytes: WeakKeyDictionary[nn.Module, dict[Hashable, int]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Checkpoint(Backprop):
    """Exact gradients: keep the graphs of the last K of T steps, replay the others from states.

    Costs (3 - K/T) forward chains and the memory of K + 1 steps' activations plus T states.

    Args:
        memory_limit: bytes for the activations of kept steps; K is what fits, found by
            probing one step once per batch shape. None: 1 GiB on a CPU, half of the free memory
            on a GPU. 0: keep nothing.
        segment: store every `segment`-th state only and recompute those between ("nested"):
            for chains so long that the states themselves fill the memory; costs up to one more
            forward chain.
    """

    # Not in the repr, which is the record: they cannot change a result.
    memory_limit: int | None = field(default=None, repr=False)
    segment: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        if self.memory_limit is not None and self.memory_limit < 0:
            raise ValueError(f"memory_limit must be at least 0 bytes; got {self.memory_limit}")
        if self.segment < 1:
            raise ValueError(f"segment must be at least 1 step; got {self.segment}")

    @property
    def exact(self) -> bool:
        """Yes."""
        return True

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """Replay the first T - K links, keep the graphs of the last K."""
        if not chain.differentiated:
            return run_plainly(chain)
        split = len(chain.links) - self.kept(chain, x)
        state = replay(chain.links[:split], chain.start, chain.context, self.segment)
        return require_graph(chain.end(run_links(chain.links[split:], state, chain.context)), x)

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """One link; what else is kept is counted when it is decided, see `kept`."""
        return chain.end(_heaviest(chain))

    def states(self, chain: Chain, x: Tensor) -> tuple[State, ...]:
        """As `run`; exact for a loss of any of the states, and as frugal.

        `segment` does not matter: who asks for every state has every state in memory.
        """
        if not chain.differentiated:
            return walk(chain.links, chain.start, chain.context)
        split = len(chain.links) - self.kept(chain, x)
        head = replay_states(chain.links[:split], chain.start, chain.context)
        tail = walk(chain.links[split:], head[-1] if head else chain.start, chain.context)
        return tuple(require_state(state, x) for state in (*head, *tail))

    def kept(self, chain: Chain, x: Tensor) -> int:
        """K: how many of the last links' graphs the budget holds for a batch like x."""
        budget = default_limit(x.device) if self.memory_limit is None else self.memory_limit
        if budget == 0:
            return 0
        sizes, chunk = [max(1, size) for size in link_bytes(chain)], current_chunk()
        if chunk is not None and chunk.reserve:
            return _fitting(sizes, budget - chunk.reserve * len(x))
        if sum(sizes) <= budget:
            return len(sizes)
        return _fitting(sizes, budget - max(sizes, default=0))  # one is needed to replay


def _fitting(sizes: Sequence[int], budget: int) -> int:
    """How many of the last sizes a budget holds together."""
    for kept, size in enumerate(reversed(sizes)):
        budget -= size
        if budget < 0:
            return kept
    return len(sizes)


def default_limit(device: torch.device) -> int:
    """Bytes for activations where nobody names a limit: 1 GiB, or half of a GPU's free memory."""
    if device.type != "cuda":
        return _CPU_BUDGET
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached) // 2


def link_bytes(chain: Chain) -> tuple[int, ...]:
    """Bytes that autograd saves in each link for a batch like the start, weights not counted.

    Probed once per kind of link and batch shape for the chain's parts, at the first of the kind.
    """
    cache, key = _cache_of(chain)
    known = {link.kind: cache.get((link.kind, *key)) for link in chain.links}
    state, missing = chain.start, sum(size is None for size in known.values())
    for link in chain.links:
        if not missing:
            break
        if known[link.kind] is None:
            known[link.kind] = cache[(link.kind, *key)] = _probe(chain, link, state)
            missing -= 1
        if missing:  # another kind follows, which may see states of another shape
            with torch.no_grad(), flagged(probing):
                state = link(state, chain.context)
    return tuple(known[link.kind] or 0 for link in chain.links)


def step_bytes(chain: Chain) -> int:
    """The most of `link_bytes`."""
    return max(link_bytes(chain), default=0)


def _cache_of(chain: Chain) -> tuple[dict[Hashable, int], tuple[Hashable, ...]]:
    """What is known of the chain's parts, and what else decides a link's bytes beside its kind."""
    tensors = (*chain.start, *chain.context)
    device = chain.start[0].device
    shapes = tuple((t.shape, t.dtype) for t in tensors)
    needed = tuple(t.requires_grad for t in chain.context)
    others = tuple(ref(part) for part in chain.parts[1:])
    autocast = torch.is_autocast_enabled(device.type)
    cache = _link_bytes.setdefault(chain.parts[0], {}) if chain.parts else {}
    return cache, (shapes, device, needed, others, autocast, chain.trained)


def _probe(chain: Chain, link: Link, state: State) -> int:
    given = [p for part in chain.parts for p in part.parameters()] + list(chain.context)
    left_out = {tensor.data_ptr() for tensor in given}
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> int:
        # Held in a list that is emptied, not in the graph: an output that is saved for its own
        # gradient would make a circle, with a whole step's memory in it.
        saved.append(tensor)
        return len(saved) - 1

    needed = [t.requires_grad for t in chain.context]
    leaves, context = leaves_of(state), leaves_of(chain.context, needed)
    with (
        flagged(probing),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, saved.__getitem__),
    ):
        link(leaves, context)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in saved}
    saved.clear()  # the graph holds the list, whose tensors hold the graph
    return sum(s.nbytes() for pointer, s in storages.items() if pointer not in left_out)


def _heaviest(chain: Chain) -> State:
    """The state after the first link of the kind that takes most memory, led back to the start."""
    if len({link.kind for link in chain.links}) == 1:
        return chain.links[0](chain.start, chain.context)
    sizes = link_bytes(chain)
    at = sizes.index(max(sizes, default=0)) if sizes else 0
    with torch.no_grad():
        state = run_links(chain.links[:at], chain.start, chain.context)
    led = sum(0.0 * t.sum() for t in chain.start if t.requires_grad)
    state = tuple(t + led if has_gradient(t) else t for t in state)
    return run_links(chain.links[at : at + 1], state, chain.context)
