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
from depure.diffusion.backprop.replay import recomputing


@dataclass
class Cost:
    """Forward calls counted in images (one image through one network once), and seconds."""

    purifier_calls: int = 0
    recomputed_calls: int = 0  # of the purifier's networks, while a gradient is taken
    classifier_calls: int = 0
    seconds: float = 0.0


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs."""
    several = list(costs)
    return Cost(
        sum(c.purifier_calls for c in several),
        sum(c.recomputed_calls for c in several),
        sum(c.classifier_calls for c in several),
        sum(c.seconds for c in several),
    )


@contextmanager
def counted(model: Defended) -> Iterator[Cost]:
    """Count the calls of the model's networks while the block runs, recomputations apart."""
    cost = Cost()

    def classified(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not probing.get():
            cost.classifier_calls += len(args[0])

    def purified(module: nn.Module, args: tuple[Any, ...]) -> None:
        if probing.get():
            return
        if recomputing.get():
            cost.recomputed_calls += len(args[0])
        else:
            cost.purifier_calls += len(args[0])

    handles = [model.classifier.register_forward_pre_hook(classified)]
    parts = dict.fromkeys(model.purifier.parts)
    handles += [part.register_forward_pre_hook(purified) for part in parts]
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
