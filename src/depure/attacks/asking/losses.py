"""Losses that attacks raise: logits (B, K) and labels (B,) to one number per image (B,)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Negative log-probability of the label."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best wrong logit minus the label's (Carlini & Wagner, 1608.04644): positive when wrong."""
    return _best_wrong(logits, y) - _of(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein, 2003.01690, eq. 6): shift and scale invariant.

    Raises:
        ValueError: with fewer than 3 classes.
    """
    if logits.shape[1] < 3:
        raise ValueError(
            f"the DLR loss needs at least 3 classes; got {logits.shape[1]}: use ce or margin"
        )
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)


def dlr_targeted(logits: Tensor, pairs: Tensor) -> Tensor:
    """Targeted difference of logits ratio (2003.01690, eq. 7); positive where the target leads y.

    Args:
        logits: (B, K).
        pairs: (B,), the label and the class to reach in one number each, see `pair`.

    Raises:
        ValueError: with fewer than 4 classes.
    """
    classes = logits.shape[1]
    if classes < 4:
        raise ValueError(
            f"the targeted DLR loss needs at least 4 classes; got {classes}: use loss='margin' "
            f"and targets=0"
        )
    y, target = pairs // classes, pairs % classes
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2.0
    return (_of(logits, target) - _of(logits, y)) / spread.clamp_min(1e-12)


def pair(y: Tensor, target: Tensor, classes: int) -> Tensor:
    """Label and target of each image in one number (B,), to travel where a label does."""
    return y * classes + target


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def targeted(loss: Loss) -> Loss:
    """The same loss raised towards a target: y is then the label to reach."""
    return lambda logits, y: -loss(logits, y)


def vanished(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    """Whether rounding has taken the loss's derivative by the logits (B, K) away, (B,) bool.

    A loss that only differences of logits decide has derivatives that sum to zero. So they have
    both signs, unless those of one sign were lost to rounding: the cross-entropy's by the label's
    logit is p - 1, and 0 once the probability p of the label rounds to 1 (margins above about 17
    in float32, 37 in float64). What is left, below the dtype's resolution, does not point away
    from the label. False where the derivative is not finite.
    """
    if logits.shape[1] < 2:
        return torch.zeros_like(y, dtype=torch.bool)
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(leaf, y).sum(), leaf)
    low, high = slope.amin(1), slope.amax(1)
    lost = (low >= 0) | (high <= 0)
    return lost & (torch.maximum(-low, high) < torch.finfo(slope.dtype).eps)


def _of(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None])[:, 0]


def _best_wrong(logits: Tensor, y: Tensor) -> Tensor:
    own = functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1)
