"""Exact gradients of long chains in bounded memory."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from depure.diffusion.backprop.base import Backprop, require_graph, run_links, walk
from depure.diffusion.chain import Chain
from depure.rows import current_chunk
from depure.types import Step

_CPU_BUDGET = 2**30
probing: ContextVar[bool] = ContextVar("probing", default=False)
"""True while a step is probed: who counts network calls leaves this one out, as it happens once a
process and would make the count of a resumed run differ."""
_step_bytes: WeakKeyDictionary[nn.Module, dict[Hashable, int]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Checkpoint(Backprop):
    """Exact gradients: keep the graphs of the last K of T steps, replay the others from states.

    Costs (3 - K/T) forward chains and the memory of K + 1 steps' activations plus T states.

    Args:
        memory_budget: bytes for the activations of kept steps; K is what fits, found by
            probing one step once per batch shape. None: 1 GiB on a CPU, half of the free memory
            on a GPU. 0: keep nothing.
        segment: store every `segment`-th state only and recompute those between ("nested"):
            for chains so long that the states themselves fill the memory; costs up to one more
            forward chain.
    """

    # Not in the repr, which is the record: they cannot change a result.
    memory_budget: int | None = field(default=None, repr=False)
    segment: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        if self.memory_budget is not None and self.memory_budget < 0:
            raise ValueError(f"memory_budget must be at least 0 bytes; got {self.memory_budget}")
        if self.segment < 1:
            raise ValueError(f"segment must be at least 1 step; got {self.segment}")

    @property
    def exact(self) -> bool:
        """Yes."""
        return True

    @property
    def memory_limit(self) -> int | None:
        """The memory budget."""
        return self.memory_budget

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        """Replay the first T - K links, keep the graphs of the last K."""
        links = chain.links()
        if not _differentiated(chain, x):
            return run_links(links, x)
        split = len(links) - self.kept(chain, x)
        end = run_links(links[split:], replay(links[:split], x, self.segment))
        return require_graph(end, x)

    def at_once(self, chain: Chain, x: Tensor) -> Tensor:
        """One link; what else is kept is counted when it is decided, see `kept`."""
        return chain.links()[0](x)

    def states(self, chain: Chain, x: Tensor) -> tuple[Tensor, ...]:
        """As `run`; exact for a loss of any of the states, and as frugal.

        `segment` does not matter: who asks for every state has every state in memory.
        """
        links = chain.links()
        if not _differentiated(chain, x):
            return walk(links, x)
        split = len(links) - self.kept(chain, x)
        head = replay_states(links[:split], x)
        tail = walk(links[split:], head[-1] if head else x)
        return tuple(require_graph(state, x) for state in (*head, *tail))

    def kept(self, chain: Chain, x: Tensor) -> int:
        """K: how many steps' graphs the budget holds for a batch like x."""
        links = chain.links()
        budget = default_limit(x.device) if self.memory_budget is None else self.memory_budget
        if budget == 0:
            return 0
        size, chunk = max(1, step_bytes(chain, x)), current_chunk()
        if chunk is not None and chunk.reserve:
            budget = max(0, budget - chunk.reserve * len(x))
            return min(len(links), budget // size)
        if size * len(links) <= budget:
            return len(links)
        return max(0, (budget - size) // size)  # one step's worth is needed to replay


def _differentiated(chain: Chain, x: Tensor) -> bool:
    weights = any(p.requires_grad for p in chain.denoiser.parameters())
    return torch.is_grad_enabled() and (x.requires_grad or weights)


def default_limit(device: torch.device) -> int:
    """Bytes for activations where nobody names a limit: 1 GiB, or half of a GPU's free memory."""
    if device.type != "cuda":
        return _CPU_BUDGET
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached) // 2


def step_bytes(chain: Chain, x: Tensor) -> int:
    """Bytes that autograd saves in one link for a batch like x, weights not counted.

    Probed once per network, sampler and batch shape.
    """
    trained = any(p.requires_grad for p in chain.denoiser.parameters())
    autocast = torch.is_autocast_enabled(x.device.type)
    key = (x.shape, x.dtype, x.device, repr(chain.sampler), autocast, trained)
    known = _step_bytes.setdefault(chain.denoiser.network, {})
    if key not in known:
        known[key] = _probe(chain, x)
    return known[key]


def _probe(chain: Chain, x: Tensor) -> int:
    weights = {p.data_ptr() for p in chain.denoiser.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> None:
        # Held here and not in the graph, where an output saved for its own gradient would make a
        # circle that only the garbage collector opens, with a whole step's memory in it.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage

    leaf = x.detach().requires_grad_()
    token = probing.set(True)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            chain.links()[0](leaf)
    finally:
        probing.reset(token)
    return sum(storage.nbytes() for storage in saved.values())


def replay(links: Sequence[Step], x: Tensor, segment: int = 1) -> Tensor:
    """x through the links, storing states only; the backward pass recomputes link by link.

    Exact with respect to x. A link that closes over something that requires a gradient itself
    (weights, a guidance image) is found out while running forward, and the whole chain is then
    checkpointed by PyTorch, which differentiates that too.
    """
    state, states = x.detach(), []
    for i, link in enumerate(links):
        if i % segment == 0:
            states.append(state)
        # With gradients enabled but none required, nothing is recorded unless the link
        # closes over something that requires a gradient: the test costs nothing.
        state = link(state)
        if state.requires_grad:
            return _checkpointed(links, x)[-1]
    if not links or not x.requires_grad:
        return x if not links else state
    apply: Any = _Replay.apply
    out: Tensor = apply(x, tuple(links), segment, state, tuple(states))
    return out


def replay_states(links: Sequence[Step], x: Tensor) -> tuple[Tensor, ...]:
    """As `replay`, but the state after each link, each with a gradient of its own."""
    starts, states = [x.detach()], []
    for link in links:
        state = link(starts[-1])
        if state.requires_grad:
            return _checkpointed(links, x)
        states.append(state)
        starts.append(state)
    if not links or not x.requires_grad:
        return tuple(states)
    apply: Any = _ReplayStates.apply
    out: tuple[Tensor, ...] = apply(x, tuple(links), tuple(starts))
    return out


def _checkpointed(links: Sequence[Step], x: Tensor) -> tuple[Tensor, ...]:
    return walk([partial(_again, link) for link in links], x)


def _again(link: Step, x: Tensor) -> Tensor:
    end: Tensor = checkpoint(link, x, use_reentrant=False, preserve_rng_state=False)
    return end


class _Replay(torch.autograd.Function):
    """The end of a chain already run, with a backward pass that replays it from stored states.

    States go through `save_for_backward`, so that autograd itself frees them, refuses a second
    backward pass through them and notices in-place changes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        links: tuple[Step, ...],
        segment: int,
        end: Tensor,
        states: tuple[Tensor, ...],
    ) -> Tensor:
        ctx.links, ctx.segment, ctx.autocast = links, segment, _autocast(x)
        ctx.save_for_backward(*states)
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(*ctx.autocast):
            for i, state in reversed(list(enumerate(ctx.saved_tensors))):
                links = ctx.links[i * ctx.segment : (i + 1) * ctx.segment]
                grad = _pull_back(links, state, grad)
        return grad, None, None, None, None


class _ReplayStates(torch.autograd.Function):
    """All states of a chain already run; going back, each adds its own cotangent to the chain's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, links: tuple[Step, ...], starts: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        ctx.links, ctx.autocast = links, _autocast(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*starts[:-1])
        return starts[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad: Tensor | None = None
        parts = zip(ctx.links, ctx.saved_tensors, cotangents, strict=True)
        with torch.autocast(*ctx.autocast):
            for link, start, own in reversed(list(parts)):
                if own is not None:
                    grad = own if grad is None else grad + own
                if grad is not None:  # nobody asked for the states after the last one asked for
                    grad = _pull_back((link,), start, grad)
        return grad, None, None


def _autocast(x: Tensor) -> tuple[str, torch.dtype, bool]:
    """Autocast as it is now, to recompute under the same."""
    device = x.device.type
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def _pull_back(links: Sequence[Step], state: Tensor, grad: Tensor) -> Tensor:
    """The vector-Jacobian product of a run of links, one link's graph at a time."""
    states = [state]
    with torch.no_grad():
        for link in links[:-1]:
            states.append(link(states[-1]))
    for link in reversed(links):
        leaf = states.pop().detach().requires_grad_()
        with torch.enable_grad():
            end = require_graph(link(leaf), leaf)
        (grad,) = torch.autograd.grad(end, leaf, grad)
    return grad
