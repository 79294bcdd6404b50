"""What a run costs: network calls, seconds and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from depure.defences.defended import Defended
from depure.diffusion.backprop.checkpoint import probing


@dataclass
class Cost:
    """Forward calls counted in images (one image through one network once), and seconds."""

    denoiser_calls: int = 0
    classifier_calls: int = 0
    seconds: float = 0.0


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs."""
    several = list(costs)
    return Cost(
        sum(c.denoiser_calls for c in several),
        sum(c.classifier_calls for c in several),
        sum(c.seconds for c in several),
    )


@contextmanager
def counted(model: Defended) -> Iterator[Cost]:
    """Count the calls of the model's networks, recomputations included, while the block runs."""
    cost = Cost()

    def count(field: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not probing.get():
                setattr(cost, field, getattr(cost, field) + len(args[0]))

        return hook

    handles = [model.classifier.register_forward_pre_hook(count("classifier_calls"))]
    parts = dict.fromkeys(model.purifier.parts)
    handles += [p.register_forward_pre_hook(count("denoiser_calls")) for p in parts]
    begin = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds += time.perf_counter() - begin  # on top of what a journal remembers
        for handle in handles:
            handle.remove()


def peak_memory(device: torch.device) -> int:
    """Bytes: the process's largest resident set, or the largest allocation on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
