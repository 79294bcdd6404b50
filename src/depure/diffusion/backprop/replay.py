"""A chain run once and replayed from stored states in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from depure.diffusion.backprop.base import CUT, walk
from depure.diffusion.chain import Link, State, has_gradient

Flow = Sequence[Tensor | None]
"""A cotangent for every entry of a state that can be differentiated; None is zero."""
recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)
"""True while a backward pass runs links again: who counts network calls counts these apart."""


@contextmanager
def flagged(flag: ContextVar[bool]) -> Iterator[None]:
    """Set a flag within the block."""
    token = flag.set(True)
    try:
        yield
    finally:
        flag.reset(token)


def leaves_of(state: State, needed: Sequence[bool] | None = None) -> State:
    """The same numbers as leaves; gradients are kept of what is needed, or of all that can."""
    wanted = [has_gradient(t) for t in state] if needed is None else needed
    return tuple(t.detach().requires_grad_(n) for t, n in zip(state, wanted, strict=True))


def _detached(state: State) -> State:
    return tuple(t.detach() for t in state)


def replay(links: Sequence[Link], start: State, context: State = (), segment: int = 1) -> State:
    """A state through the links, storing states only; the backward pass recomputes link by link.

    Exact with respect to start and context. A link that closes over something else that requires
    a gradient (weights) is found out while running forward, and the whole chain is then
    checkpointed by PyTorch, which differentiates that too.
    """
    state, around, states = _detached(start), _detached(context), []
    for i, link in enumerate(links):
        if i % segment == 0:
            states.append(state)
        # With gradients enabled but none required, nothing is recorded unless the link
        # closes over something that requires a gradient: the test costs nothing.
        state = link(state, around)
        if any(t.requires_grad for t in state):
            return _checkpointed(links, start, context)[-1]
    if not links or not any(t.requires_grad for t in (*start, *context)):
        return state if links else start
    (end,) = _tied(_Replay, links, segment, states, [state], start, context)
    return end


def replay_states(links: Sequence[Link], start: State, context: State = ()) -> tuple[State, ...]:
    """As `replay`, but the state after each link, each with a gradient of its own."""
    starts, around = [_detached(start)], _detached(context)
    for link in links:
        state = link(starts[-1], around)
        if any(t.requires_grad for t in state):
            return _checkpointed(links, start, context)
        starts.append(state)
    *stored, _ = starts
    if not links or not any(t.requires_grad for t in (*start, *context)):
        return tuple(starts[1:])
    return _tied(_ReplayStates, links, 1, stored, starts[1:], start, context)


def _checkpointed(links: Sequence[Link], start: State, context: State) -> tuple[State, ...]:
    again = [link._replace(step=partial(_again, link)) for link in links]
    return walk(again, start, context)


def _again(link: Link, state: State, context: State) -> State:
    end: State = checkpoint(link, state, context, use_reentrant=False, preserve_rng_state=False)
    return end


class _Plan(NamedTuple):
    """How a chain is replayed: everything but tensors, which `save_for_backward` holds."""

    links: tuple[Link, ...]
    segment: int
    lengths: list[int]  # entries of each stored state
    outputs: list[int]  # entries of each state returned that can be differentiated
    autocast: tuple[str, torch.dtype, bool]


def _tied(
    function: Any,
    links: Sequence[Link],
    segment: int,
    stored: Sequence[State],
    ends: Sequence[State],
    start: State,
    context: State,
) -> tuple[State, ...]:
    """The states `ends`, what can be differentiated of them tied to start and context."""
    outputs = [[t for t in end if has_gradient(t)] for end in ends]
    plan = _Plan(
        tuple(links), segment, [len(s) for s in stored], [len(o) for o in outputs],
        _autocast(start[0]),
    )  # fmt: skip
    flat, held = (tuple(t for state in states for t in state) for states in (outputs, stored))
    tied = iter(function.apply(plan, flat, held, *start, *context))
    return tuple(tuple(next(tied) if has_gradient(t) else t for t in end) for end in ends)


class _Replay(torch.autograd.Function):
    """The end of a chain already run, with a backward pass that replays it from stored states.

    States go through `save_for_backward`, so that autograd itself frees them, refuses a second
    backward pass through them and notices in-place changes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        ends: tuple[Tensor, ...],
        stored: tuple[Tensor, ...],
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*stored, *inputs[plan.lengths[0] :])
        return tuple(end.detach() for end in ends)  # of its own, though a link returned one twice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        back, links, segment = _Back(ctx), ctx.plan.links, ctx.plan.segment
        flow: Flow = cotangents
        with torch.autocast(*ctx.plan.autocast), flagged(recomputing):
            for i, state in reversed(list(enumerate(back.states))):
                flow = back.pull(links[i * segment : (i + 1) * segment], state, flow)
        return back.gradients(flow)


class _ReplayStates(torch.autograd.Function):
    """All states of a chain already run; going back, each adds its own cotangent to the chain's."""

    forward = _Replay.forward

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        back, ends = _Back(ctx), len(cotangents)
        flow: Flow = ()
        steps = list(zip(ctx.plan.links, back.states, ctx.plan.outputs, strict=True))
        with torch.autocast(*ctx.plan.autocast), flagged(recomputing):
            for link, state, count in reversed(steps):
                own = cotangents[ends - count : ends]
                flow = [_sum(*two) for two in zip(own, flow, strict=True)] if flow else own
                # Nobody asked for the states after the last one asked for.
                flow = back.pull((link,), state, flow) if any(f is not None for f in flow) else ()
                ends -= count
        return back.gradients(flow)


def _sum(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return two if one is None else one if two is None else two + one


def _autocast(x: Tensor) -> tuple[str, torch.dtype, bool]:
    """Autocast as it is now, to recompute under the same."""
    device = x.device.type
    return device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def pull_back(
    link: Link, state: State, context: State, flow: Flow, needed: Sequence[bool] = ()
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """The vector-Jacobian product of one link, with its graph in memory.

    Args:
        link: what is differentiated.
        state: where; its graph is not followed.
        context: as the link sees it.
        flow: of the state after the link.
        needed: whether to differentiate by each entry of the context; by none if left out.

    Returns:
        The flow of `state`, and a cotangent or None for each entry of the context.

    Raises:
        RuntimeError: the link cut the graph.
    """
    wanted = needed or [False] * len(context)
    leaves, around = leaves_of(state), leaves_of(context, wanted)
    inputs = [t for t in (*leaves, *around) if t.requires_grad]
    with torch.enable_grad():
        ends = [t for t in link(leaves, around) if has_gradient(t)]
    asked = [(t, f) for t, f in zip(ends, flow, strict=True) if f is not None]
    led = [(t, f) for t, f in asked if t.requires_grad]
    if asked and not led:
        raise RuntimeError(CUT)
    grads: Flow = [None] * len(inputs)
    if led:
        outputs, cotangents = zip(*led, strict=True)
        grads = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    found = iter(grads)
    before = [next(found) for t in leaves if t.requires_grad]
    return before, [next(found) if t.requires_grad else None for t in around]


class _Back:
    """A backward pass under way: what was stored, and the context's cotangents so far."""

    def __init__(self, ctx: Any) -> None:
        plan: _Plan = ctx.plan
        left = iter(ctx.saved_tensors)
        self.states = [tuple(next(left) for _ in range(n)) for n in plan.lengths]
        self.context = tuple(left)
        self.needed = ctx.needs_input_grad[-len(self.context) :] if self.context else ()
        self._totals: list[Tensor | None] = [None] * len(self.context)

    def pull(self, links: Sequence[Link], state: State, flow: Flow) -> Flow:
        """Cotangents of a state from those after a run of links, one link's graph at a time.

        Both hold one per floating point entry, None for zero.
        """
        states = [state]
        with torch.no_grad():
            for link in links[:-1]:
                states.append(link(states[-1], _detached(self.context)))
        for link in reversed(links):
            flow, around = pull_back(link, states.pop(), self.context, flow, self.needed)
            self._totals = [_sum(*two) for two in zip(around, self._totals, strict=True)]
        return flow

    def gradients(self, flow: Flow) -> tuple[Tensor | None, ...]:
        """One per argument of `forward`, from the cotangents of the start."""
        left = iter(flow)
        start = [next(left, None) if has_gradient(t) else None for t in self.states[0]]
        return None, None, None, *start, *self._totals
