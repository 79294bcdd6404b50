"""What a computation costs: floating-point operations, live bytes, and time as a ratio.

Operations and live bytes do not move from run to run, so tests may assert them; time ratios
are printed, never asserted.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Task = Callable[[], object]


class _FlopMode(TorchDispatchMode):
    """Adds up PyTorch's own FLOP formulas; FlopCounterMode breaks in a nested autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket
        self.calls[str(name)] = self.calls.get(str(name), 0) + 1
        if name in flop_registry:
            self.total += flop_registry[name](*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(task: Task) -> int:
    """Floating-point operations of matrix products and convolutions, forward and backward."""
    with _FlopMode() as mode:
        task()
    return mode.total


def live_peak(task: Task, device: str = "cpu") -> int:
    """Peak of the bytes in live tensors above those live at the start.

    Exact on a CPU (every allocation and release that PyTorch's allocator reports to its
    profiler, in order); `max_memory_allocated` on a GPU.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        task()
    results: Any = record.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@dataclass(frozen=True)
class Ratio:
    """Median, least and greatest of the per-round ratios of one method's time to another's."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


def alternate(
    tasks: Mapping[str, Task], reference: str, rounds: int, device: str = "cpu"
) -> dict[str, Ratio]:
    """Run all tasks in turn, `rounds` times over; ratios to the reference of the same round.

    One thread and process CPU time on a CPU, so that other people's processes on the machine
    move the ratios little; synchronised wall time on a GPU.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            seconds[name].append(timed(task, device))
    ratios = {
        name: [a / b for a, b in zip(spent, seconds[reference], strict=True)]
        for name, spent in seconds.items()
    }
    return {name: Ratio(statistics.median(r), min(r), max(r)) for name, r in ratios.items()}


def timed(task: Task, device: str = "cpu") -> float:
    """Seconds of one run; the garbage of earlier ones is swept first."""
    gc.collect()
    if device == "cpu":
        start = time.process_time()
        task()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    task()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def gradient_error(ours: Tensor, exact: Tensor) -> tuple[float, float]:
    """Relative L2 error and share of equal signs."""
    error = float((ours - exact).norm() / exact.norm())
    return error, float((ours.sign() == exact.sign()).double().mean())


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Where and when the figures were made."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": date.today().isoformat(),
        "cpu": models[0] if models else platform.processor(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
