"""The defence in one arithmetic: float64 where it can be had, else the attack's own dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from depure.defences.defended import Defended
from depure.noise import Noise
from depure.weights import first_line

# Rounding of logits, relative: what is left of a dtype's precision after a network.
ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
T = TypeVar("T")
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class NoGradient(Exception):
    """The defence gives no gradient; the message says what was seen."""


class NotFinite(Exception):
    """The defence gives no finite logits where the gradient would be looked at."""


@dataclass(frozen=True, eq=False)
class Arithmetic:
    """A defence asked for logits and gradients, a bounded number of rows at a time."""

    model: Defended
    dtype: torch.dtype
    rows: int  # of one forward pass
    widened: bool = False  # whether what it makes in a narrower dtype is kept in float64
    tick: Callable[[int], None] = lambda rows: None
    seen: list[str] = field(default_factory=list)  # narrower dtypes met while widening

    @property
    def name(self) -> str:
        """For a verdict."""
        plain = str(self.dtype).removeprefix("torch.")
        return plain + (", also where the defence narrows its values" if self.widened else "")

    def logits(self, x: Tensor, noise: Noise) -> Tensor:
        """Logits (B, K), float64, without gradients."""
        found = []
        with torch.no_grad(), self._mode():
            for a in range(0, len(x), self.rows):
                part = slice(a, a + self.rows)
                found.append(self.model(x[part].to(self.dtype), noise[part]).double())
                self.tick(len(found[-1]))
        return torch.cat(found)

    def gradient(self, x: Tensor, noise: Noise, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of `sum(cotangent * logits)`, (B, C, H, W), and the logits, both float64.

        Raises:
            NoGradient: there is none.
        """
        grads, logits = [], []
        for a in range(0, len(x), self.rows):
            part = slice(a, a + self.rows)
            with torch.enable_grad(), self._mode():
                grad, out = _pull(self.model, x[part].to(self.dtype), noise[part], cotangent[part])
            grads.append(grad.double())
            logits.append(out.double())
            self.tick(len(grad))
        return torch.cat(grads), torch.cat(logits)

    def _mode(self) -> AbstractContextManager[Any]:
        return _Widened(self.seen) if self.widened else nullcontext()


def _pull(model: Defended, x: Tensor, noise: Noise, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    try:
        logits = model(leaf, noise)
        if not logits.requires_grad:
            raise NoGradient("the logits carry no graph back to the image")
        (grad,) = torch.autograd.grad(logits, leaf, cotangent.to(logits), allow_unused=True)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise NoGradient(f"asking for the gradient raised: {first_line(error)}") from error
    if grad is None:
        raise NoGradient("the graph of the logits does not lead back to the image")
    return grad, logits.detach()


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator raised this, on a CPU or a GPU."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate" in text
    )


class _Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation in float64, whatever the code casts to: the same formula, not its rounding.

    What the code makes in a narrower dtype (a time embedding, `x.float()`, `logits.half()`) is
    made there, so that the numbers are the same, and kept in float64 from then on.
    """

    def __init__(self, seen: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func._schema.is_mutable:
            return func(*args, **given)
        args, given = tree_map(self._wide, args), tree_map(self._wide, given)
        cast = func is torch.ops.aten._to_copy.default and given.get("dtype") in _NARROW
        if cast and args[0].is_floating_point():
            self.seen.append(str(given["dtype"]))
            given["dtype"] = torch.float64
        return tree_map(self._wide, func(*args, **given))

    def _wide(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in _NARROW:
            return value
        self.seen.append(str(value.dtype))
        return value.double()


def candidates(plain: Arithmetic) -> list[Arithmetic]:
    """The defence in float64, as it is and with its narrower values widened; none if it cannot.

    A row takes twice the bytes, so half as many run at a time.
    """
    if plain.dtype == torch.float64:
        return [plain, replace(plain, widened=True)]
    try:
        double = copy.deepcopy(plain.model).double()
    except Exception as error:
        if out_of_memory(error):
            raise
        return []
    rows = max(1, plain.rows // 2)
    both = (False, True)
    return [
        replace(plain, model=double, dtype=torch.float64, rows=rows, widened=w, seen=[])
        for w in both
    ]


def first_that_runs(plain: Arithmetic) -> Arithmetic:
    """Float64 with narrower values widened, untried; `plain` if there is none."""
    found = candidates(plain)
    return found[-1] if found else plain


def or_plain(
    fine: Arithmetic, plain: Arithmetic, work: Callable[[Arithmetic], T]
) -> tuple[Arithmetic, T]:
    """What `work` gives in `fine`, or in `plain` if the defence does not run there; and which."""
    try:
        return fine, work(fine)
    except Exception as error:
        if fine is plain or out_of_memory(error) or isinstance(error, NotFinite):
            raise
        return plain, work(plain)


def finest(plain: Arithmetic, x: Tensor, noise: Noise) -> Arithmetic:
    """The arithmetic to judge in: float64 if the defence runs and is smooth in it.

    A defence that is rough in float64 either narrows its values, which widening undoes, or is
    rough by itself, which is to be seen. Where it narrows them out of reach, it is `plain`.
    """
    rough: list[Arithmetic] = []
    for one in candidates(plain):
        try:
            if _smooth(one, x, noise):
                return one
        except Exception as error:
            if out_of_memory(error):
                raise
        else:
            rough.append(one)
    narrow = any(one.seen for one in rough) or not rough
    return plain if narrow else rough[0]


def _smooth(one: Arithmetic, x: Tensor, noise: Noise) -> bool:
    """Whether quotients over 1e-7 and over 1e-9 agree as far as float64 lets them."""
    v = noise.normal("direction", 0, x.double()).sign()
    points = torch.cat([x.double() + h * v for h in (1e-7, -1e-7, 1e-9, -1e-9)])
    a, b, c, d = one.logits(points, noise[[*range(len(x))] * 4]).chunk(4)
    wide, near = (a - b) / 2e-7, (c - d) / 2e-9
    floor = ROUNDING[torch.float64] * a.abs().amax(1, keepdim=True) / 1e-9
    allowed = 10 * floor + 1e-3 * wide.abs().amax(1, keepdim=True)
    moves = (wide != 0).any(1)  # a coarse rounding hides both quotients: not a sign of smoothness
    return bool((((near - wide).abs() <= allowed).all(1) & moves).all())
