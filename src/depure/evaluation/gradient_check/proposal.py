"""A last look at the gradient, where the attack ended."""

from __future__ import annotations

import torch
from torch import Tensor

from depure.defences.defended import Defended
from depure.evaluation.gradient_check.check import GradientCheck, verify_gradient
from depure.noise import Noise
from depure.threat import Linf

_NEAR = Linf(1 / 255)  # points so near a proposal stand for it, and are off its kinks
_IMAGES = 2


def check_at_proposals(
    model: Defended, x_adv: Tensor, y: Tensor, noise: Noise, chunk: int
) -> GradientCheck:
    """The gradient check at the first proposals of an attack, at 3 points at most.

    A gradient may be right near the images and wrong where the attack leads.

    Args:
        model: the defence.
        x_adv: what the attack proposed (B, C, H, W).
        y: labels (B,).
        noise: one row per image.
        chunk: rows of one forward pass of the attack.
    """
    few = torch.arange(min(_IMAGES, len(x_adv)))
    return verify_gradient(
        model, x_adv[few], y[few], noise[few.tolist()], ball=_NEAR, chunk=chunk, short=True
    )
