"""What a denoiser is trained to minimise: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def denoising_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
) -> Tensor:
    """The mean squared error of the predicted noise (DDPM, arXiv 2006.11239, equation 14).

    Args:
        network: ``(x_t, t) -> eps``, both images ``(B, C, H, W)``.
        x0: clean images ``(B, C, H, W)`` in ``[-1, 1]``.
        t: int64 ``(B,)``, indices into ``alpha_bar``.
        eps: standard normal noise, shaped as ``x0``.
        alpha_bar: ``(T,)``, the squared signal scale at each time.

    Returns:
        A scalar: the mean over images and pixels.

    Raises:
        ValueError: the shapes disagree.
    """
    if eps.shape != x0.shape or t.shape != x0.shape[:1]:
        raise ValueError(
            f"x0 {tuple(x0.shape)} needs noise of the same shape and one time for each image; "
            f"got eps {tuple(eps.shape)} and t {tuple(t.shape)}"
        )
    x_t = diffuse(x0, t, eps, alpha_bar)
    predicted = network(x_t, t)
    if predicted.shape != eps.shape:
        # Broadcasting would give a number, and train towards nothing.
        raise ValueError(
            f"the network must predict noise of shape {tuple(eps.shape)}; "
            f"got {tuple(predicted.shape)}: a network with learned variance needs its first half"
        )
    return torch.nn.functional.mse_loss(predicted, eps)


def diffuse(x0: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """``x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`` (DDPM, equation 4).

    Shapes as in :func:`denoising_loss`; each image has its own time. The result has the dtype of
    ``x0``, whatever that of ``alpha_bar``.
    """
    a = alpha_bar[t].to(x0.dtype).view(-1, *(1,) * (x0.ndim - 1))
    return a.sqrt() * x0 + (1 - a).sqrt() * eps
