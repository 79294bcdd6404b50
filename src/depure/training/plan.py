"""How a training runs: its length, its optimiser, its seed."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch

from depure.noise import Noise
from depure.records import came
from depure.training.loop import check_positive

Rate = Literal["constant", "cosine"]
_MOST_LR = 1e30  # beyond it, the optimiser's float32 overflows


@dataclass(frozen=True)
class Plan:
    """Length and optimiser; the published settings of ADDT, but for the length, by default.

    Args:
        updates: optimiser steps (ADDT: 19,600 on CIFAR-10).
        batch: images an update, over all processes (ADDT: 256).
        lr: learning rate of AdamW.
        rate: "constant", or "cosine": a climb over the first tenth, then half a cosine to 0.
        betas, weight_decay: of AdamW.
        clip: largest norm of the gradient.
        dropout: probability set in every dropout layer (ADDT: 0.1); None leaves them alone.
        max_decay: of the running average of the weights; 0 keeps no average.
        seed: fixes images, augmentation, times, noise and dropout.
        save_every: updates between two checkpoints.

    Raises:
        ValueError: a setting is out of range.
    """

    updates: int = 2000
    batch: int = 64
    lr: float = 2e-4
    rate: Rate = "constant"
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    clip: float = 1.0
    dropout: float | None = 0.1
    max_decay: float = 0.999
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        check_positive(
            updates=self.updates, batch=self.batch, lr=self.lr, clip=self.clip,
            save_every=self.save_every,
        )  # fmt: skip
        if not self.lr <= _MOST_LR or not 0.0 <= self.weight_decay <= _MOST_LR:
            raise ValueError(
                f"lr and weight_decay must be at most {_MOST_LR:g}, weight_decay not negative; got "
                f"{self.lr} and {self.weight_decay}"
            )
        dropout = 0.0 if self.dropout is None else self.dropout
        if not isinstance(dropout, Real) or not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1); got {came(dropout)}")
        if self.rate not in get_args(Rate):
            raise ValueError(f"rate must be one of {', '.join(get_args(Rate))}; got {self.rate!r}")


def batch_rows(images: int, batch: int, update: int, seed: int) -> torch.Tensor:
    """Rows of update 1, 2, ...: every image once an epoch, a new order each, none left over.

    A function of its arguments alone, so that a resumed run sees the same batches. Epochs follow
    one another without a gap: a batch may end one and begin the next.
    """
    first = (update - 1) * batch
    places = torch.arange(first, first + batch)
    epochs = places // images
    orders = {
        e: torch.randperm(images, generator=torch.Generator().manual_seed(_key(seed, e, "order")))
        for e in set(epochs.tolist())
    }
    return torch.stack([orders[int(p) // images][int(p) % images] for p in places])


def layer_seed(seed: int, update: int, process: int = 0) -> int:
    """Seed of what only torch's own generator can give an update: dropout; one for each process."""
    return _key(seed, update, "dropout") ^ process


def _key(seed: int, number: int, name: str) -> int:
    return int(Noise.of(seed, [number]).fold(name).keys.item()) & (2**63 - 1)
