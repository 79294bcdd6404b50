"""How many rows go through a defence at once: from counted work and measured memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from depure.defences.defended import Defended
from depure.diffusion.backprop.checkpoint import default_limit
from depure.noise import Noise
from depure.rows import Chunk, rows_at_once

# Floating point operations of one network call that a processor works off well, from and to: with
# fewer the overhead of a call shows, with more caches overflow (measured from 8x8 to 32x32).
_WORK = {"cpu": (4e9, 8e9)}
_WORK_ELSEWHERE = (5e11, 1e12)
_MOST = 1024  # rows, however small the images
# Bytes taken for each byte of a tensor: what kernels use besides, and what an allocator cannot
# fill (on a CPU 1.3 to 1.9 in resident memory).
_SLACK = {"cpu": 1.5}
_SLACK_ELSEWHERE = 1.1
_PROBE = (2, 4)  # rows measured; what grows between them is a row's


@dataclass(frozen=True)
class Need:
    """What a gradient of one row takes, measured and counted on one image.

    Args:
        flops: floating point operations of one network call.
        graph: bytes that autograd keeps of one step, or of the whole purifier if it is no chain.
        step: most bytes while such a step is differentiated.
        rest: most bytes while the classifier is differentiated.
        states: bytes of the states between the steps.
        steps: how many steps there are.
    """

    flops: float
    graph: int
    step: int
    rest: int
    states: int
    steps: int

    @property
    def least(self) -> int:
        """Bytes without a step's graph kept for longer than it takes to differentiate it."""
        return self.states + max(self.step, self.rest)

    @property
    def reserve(self) -> int:
        """Bytes beside the graphs of kept steps."""
        return self.states + max(self.step - self.graph, self.rest)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors made inside the block that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        weakref.finalize(storage, self._freed, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes of all tensors that `work` has made and not yet freed, at most at one time."""
    live = _Live()
    with live:
        work()
    return live.peak


def need_of(model: Defended, x: Tensor, noise: Noise) -> Need:
    """Measure a defence on the first image of x (B, C, H, W), with the first row of `noise`.

    One step of the purifier and the classifier run forward and backward on 2 and 4 copies.
    """
    steps = 0

    def purify(leaf: Tensor) -> Tensor:
        nonlocal steps
        out, steps = model.purifier.at_once(leaf, noise[[0] * len(leaf)])
        return out

    two, four = (_measured(purify, x, rows) for rows in _PROBE)
    rest = [_measured(model.classifier, x, rows).peak for rows in _PROBE]
    flops = max(_flops(model.purifier, purify, x), _flops(model.classifier, model.classifier, x))
    image = x[0].numel() * x.element_size()
    return Need(
        flops, _a_row(two.graph, four.graph), _a_row(two.peak, four.peak), _a_row(*rest),
        image * (steps + 4), max(1, steps),
    )  # fmt: skip


class _Measured(NamedTuple):
    graph: int  # bytes after the forward pass
    peak: int


def _measured(forward: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> _Measured:
    """Bytes of a gradient of some rows; of the forward pass alone if there is no gradient."""
    live = _Live()
    leaf = x[:1].expand(rows, -1, -1, -1).clone().requires_grad_()
    with live, torch.enable_grad():
        out = forward(leaf)
        graph = live.now
        if out.requires_grad:
            torch.autograd.grad(out.sum(), leaf, allow_unused=True)
    return _Measured(graph, live.peak)


def _a_row(few: int, many: int) -> int:
    """Bytes a row; what does not grow with the rows is counted with the few that may be run."""
    return max(1, (many - few) // (_PROBE[1] - _PROBE[0]), many // _PROBE[1])


def _flops(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Floating point operations of one row, divided by how often the network is called."""
    calls = dict.fromkeys((m for m in module.modules() if list(m.parameters(False))), 0)

    def hook(part: nn.Module, args: Any) -> None:
        calls[part] += 1

    handles = [part.register_forward_pre_hook(hook) for part in calls]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            forward(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return float(counter.get_total_flops()) / max([1, *calls.values()])


def plan_chunk(
    model: Defended,
    x: Tensor,
    noise: Noise,
    limit: int | None = None,
    rows: int | None = None,
) -> Chunk:
    """The rows that go through a defence at once, within a limit of memory.

    Few enough that one step and the classifier can be differentiated within the limit; many enough
    that a network call is worth its overhead; between the two such that the graphs of all steps
    can be kept, which saves a third of the work.

    Args:
        model: the defence.
        x: images (B, C, H, W) of the size meant; the first is used.
        noise: one row per image.
        limit: bytes for a gradient's tensors; None: the purifier's own limit, or 1 GiB on a CPU and
            half of the free memory of a GPU, which may then be exceeded by one row.
        rows: at most so many; None: as many as is fast.

    Raises:
        ValueError: if one row alone needs more than a limit that was named.
    """
    named = model.purifier.memory_limit if limit is None else limit
    size = named or default_limit(x.device)
    try:
        need = need_of(model, x, noise[:1])
    except (RuntimeError, TypeError, ValueError):  # what is wrong is said where the defence is used
        return Chunk(rows_at_once(x, rows))
    slack = _SLACK.get(x.device.type, _SLACK_ELSEWHERE)
    least = slack * need.least
    if named and least > named:
        raise ValueError(
            f"one image needs about {least / 2**20:.0f} MiB at once; the memory limit is "
            f"{named / 2**20:.0f} MiB: raise it, or take smaller images"
        )
    low, high = (_rows(w, need.flops, x) for w in _WORK.get(x.device.type, _WORK_ELSEWHERE))
    whole = int(size / (slack * (need.reserve + need.steps * need.graph)))
    found = max(1, min(max(whole, low), high, int(size / least), rows or _MOST))
    return Chunk(found, math.ceil(slack * need.reserve))


def _rows(work: float, flops: float, x: Tensor) -> int:
    """Rows that make so much work; the usual number where it cannot be counted."""
    return max(1, min(_MOST, int(work / flops))) if flops else rows_at_once(x)
