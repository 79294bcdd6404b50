"""A purification written out as a chain of pure links, ready for any loop driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from depure.types import Time

State = tuple[Tensor, ...]
"""What a chain carries from link to link: always a tuple, the first entry with one row per image.

Entries that are not floating point (a counter, a mask) are carried, not differentiated.
"""


class Link(NamedTuple):
    """One step of a chain, a pure function (state, context) -> state.

    Args:
        step: the function; it may run several times on one state and must then give the same.
        kind: links of one kind take the same memory, which is measured once a kind.
        round: which repetition of the loop it belongs to, from 0.
        time: where it arrives, if the loop has a time.
    """

    step: Callable[[State, State], State]
    kind: str
    round: int = 0
    time: Time | None = None

    def __call__(self, state: State, context: State) -> State:
        """The state after this link.

        Raises:
            TypeError: if the step returns no tuple.
        """
        after: object = self.step(state, context)
        if not isinstance(after, tuple):
            raise TypeError(
                f"a link of kind {self.kind!r} returned a {type(after).__name__}: its state is a "
                f"tuple of tensors, (x,) for one"
            )
        return after


@dataclass(frozen=True, eq=False)
class ReverseSDE:
    """The stochastic differential equation that a chain discretises, for solvers of their own.

    Time counts the steps of a round, so that floats do not accumulate. States are (B, C, H, W).

    Args:
        rounds: how often it is solved, from 0 to `steps` each time.
        steps: steps of a round.
        begin: (round, state) to the state that the round is solved from.
        drift: (step, state) to the drift, per step.
        spread: step to the standard deviation of the noise, per step.
        noise: (round, step, like) to the chain's own standard normal numbers; None for none.
        finish: what is done to the last state.
        last_sigma: noise level at the end of a round; the score is infinite at 0.
    """

    rounds: int
    steps: int
    begin: Callable[[int, Tensor], Tensor]
    drift: Callable[[int, Tensor], Tensor]
    spread: Callable[[int], float]
    noise: Callable[[int, int, Tensor], Tensor | None]
    finish: Callable[[Tensor], Tensor]
    last_sigma: float


@dataclass(frozen=True, eq=False)
class Chain:
    """Any purification that is a loop: a start made from the image, links, and an end.

    Args:
        start: made from the image under autograd: (x_t,), or (y, momentum, count).
        links: the steps, in order.
        end: from the last state to the image (B, C, H, W) in [0, 1].
        context: what every link sees besides its state (a guidance image, its features), made
            from the image under autograd; the replay returns its gradient too.
        shorter: the chain of so many steps a round, for `Surrogate`; None if there is none.
        sde: what `Adjoint` solves; None if the chain is no reverse SDE.
        parts: modules that the links call; their weights do not count as a step's memory.
            `Chained` fills them in.
    """

    start: State
    links: tuple[Link, ...]
    end: Callable[[State], Tensor]
    context: State = ()
    shorter: Callable[[int], Chain] | None = None
    sde: ReverseSDE | None = None
    parts: tuple[nn.Module, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether a weight of the parts requires a gradient."""
        return any(p.requires_grad for part in self.parts for p in part.parameters())

    @property
    def differentiated(self) -> bool:
        """Whether a gradient is wanted, as far as the inputs and the parts tell."""
        if not torch.is_grad_enabled():
            return False
        return any(t.requires_grad for t in (*self.start, *self.context)) or self.trained


def has_gradient(tensor: Tensor) -> bool:
    """Whether a tensor is of a kind that can be differentiated."""
    return tensor.is_floating_point() or tensor.is_complex()


def inner_gradient(f: Callable[..., Tensor], *states: Tensor) -> State:
    """The gradients of the sum of f(*states) by each of the states, for guidance inside a link.

    Differentiable itself where an input needs it: one of the states, or anything that `f` closes
    over. Elsewhere no graph is left behind, so that a replay stays within its memory.

    Args:
        f: to a number, or one per image (B,).
        states: floating point tensors; what is no variable of the gradient (a reference image, say)
            is closed over.

    Raises:
        RuntimeError: `f` has no gradient by one of the states.

    Example:
        >>> inner_gradient(lambda x: x.square().sum(), torch.tensor([1.0, 2.0]))
        (tensor([2., 4.]),)
    """
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = tuple(
            # A view of its own: the gradient by one state does not go through another.
            s.view_as(s) if wanted and s.requires_grad else s.detach().requires_grad_()
            for s in states
        )
        value = f(*leaves).sum()
        outer = any(s.requires_grad for s in states)
        needed = wanted and (outer or _leads_elsewhere(value, leaves))
        return torch.autograd.grad(value, leaves, create_graph=needed)


def _leads_elsewhere(value: Tensor, leaves: State) -> bool:
    """Whether the graph of a value reaches a leaf that is none of these."""
    own = {id(leaf) for leaf in leaves}
    seen, ahead = set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in own:
            return True
        ahead += [following for following, _ in node.next_functions]
    return False
