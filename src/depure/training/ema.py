"""A running average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


class EMA:
    """An exponential moving average of the parameters of `network`.

    Update k (1, 2, ...) keeps the share `min(max_decay, (1 + k) / (10 + k))` of the average, so
    early updates move it quickly, and even the first keeps some of the weights it began with: an
    average of a fine-tuned network never forgets the pretrained one in a single update.
    Buffers (running statistics) are copied, for they are averages already.

    Args:
        network: gives the first average; it is not kept.
        max_decay: the share kept once warm, in `[0, 1)`.

    Raises:
        ValueError: `max_decay` is out of range.
    """

    def __init__(self, network: nn.Module, max_decay: float = 0.999) -> None:
        if not 0.0 <= max_decay < 1.0:
            raise ValueError(f"max_decay must lie in [0, 1); got {max_decay}")
        self.max_decay = max_decay
        self.updates = 0
        self.average = {name: value.detach().clone() for name, value in _tensors(network).items()}
        self._averaged = {name for name, _ in network.named_parameters()}

    def decay(self, k: int) -> float:
        """The share of the average that update `k` keeps, k counting from 1."""
        return min(self.max_decay, (1 + k) / (10 + k))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the present weights of `network`."""
        self.updates += 1
        share = 1.0 - self.decay(self.updates)
        for name, value in _tensors(network).items():
            if name in self._averaged:
                self.average[name].lerp_(value, share)
            else:
                self.average[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Give `network` the averaged weights."""
        for name, value in _tensors(network).items():
            value.copy_(self.average[name])


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
