"""Small parts of the training loop: seeds, the learning rate's shape, guards, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Tensor, nn

from depure.answers import right
from depure.data.images import Images
from depure.records import came


@contextmanager
def seeded(seed: int, network: nn.Module | None = None) -> Iterator[torch.Generator]:
    """A generator for all random numbers of a block, and torch's own generator put aside.

    Layers such as dropout, and fresh weights, can only draw from torch's global generator: inside
    the block it is seeded too, and afterwards it is as it was. The generator given is on the CPU,
    so that a seed means the same numbers on every device.

    Args:
        seed: fixes every number.
        network: names the device whose global generator is put aside; `None` means the CPU.
    """
    device = device_of(network) if network is not None else torch.device("cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield generator


def warm_cosine(step: int, total: int, warm: float = 0.1) -> float:
    """The share of the peak learning rate at `step` of `0 .. total - 1`, in `(0, 1]`.

    It climbs in a line for the first `warm * total` steps, then falls along half a cosine.
    """
    climb = max(1, round(warm * total))
    if step < climb:
        return (step + 1) / climb
    return 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, total - climb)))


def device_of(network: nn.Module) -> torch.device:
    """The device of the network's first parameter.

    Raises:
        ValueError: there is nothing to train.
    """
    for parameter in network.parameters():
        return parameter.device
    raise ValueError(f"{type(network).__name__} has no parameters, so it cannot be trained")


def finite(loss: torch.Tensor, step: int) -> float:
    """The loss as a number.

    Raises:
        FloatingPointError: it is NaN or infinite.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at update {step}: lower the learning rate")
    return value


def finite_weights(network: nn.Module, step: int) -> None:
    """Refuse to go on with weights that are not finite.

    Raises:
        FloatingPointError: names one that is not.
    """
    for name, weight in network.named_parameters():
        if not bool(weight.isfinite().all()):
            raise FloatingPointError(
                f"the weight {name} is not finite after update {step}: lower the learning rate"
            )


def check_positive(**numbers: float) -> None:
    """Refuse settings that are not above zero.

    Raises:
        ValueError: names the setting.
    """
    for name, value in numbers.items():
        if not isinstance(value, Real) or not 0 < value < math.inf:
            finite_too = " and finite" if isinstance(value, Real) and value == math.inf else ""
            raise ValueError(f"{name} must be above 0{finite_too}; got {came(value)}")


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], images: Images, batch_size: int = 256) -> float:
    """The share of `images` that `model` puts in their class, in `[0, 1]`.

    The model is used in the mode it is in.

    Raises:
        ValueError: there are no images.
    """
    check_positive(images=len(images), batch_size=batch_size)
    device = device_of(model) if isinstance(model, nn.Module) else images.x.device
    count = 0
    for rows in torch.split(torch.arange(len(images)), batch_size):
        logits = model(images.x[rows].to(device))
        count += int(right(logits.cpu(), images.y[rows].cpu()).sum())
    return count / len(images)
