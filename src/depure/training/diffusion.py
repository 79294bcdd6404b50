"""Train a denoiser: a short loop to read in one sitting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from depure.data.images import Images
from depure.diffusion.schedule import VPDiscrete, table
from depure.training.ema import EMA
from depure.training.loop import Progress, check_positive, device_of, finite, seeded, warm_cosine
from depure.training.losses import denoising_loss


def train_denoiser(
    network: nn.Module,
    images: Images,
    updates: int,
    *,
    batch_size: int = 128,
    lr: float = 2e-3,
    max_decay: float = 0.999,
    alpha_bar: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train ``network`` in place as a DDPM that predicts the noise (arXiv 2006.11239).

    Times are uniform over the whole schedule. AdamW, gradients clipped to norm 1; the learning
    rate climbs, then falls along a cosine to zero. At the end the network holds the average of its
    weights (:class:`~depure.training.ema.EMA`) and is in eval mode.

    Args:
        network: ``(x_t, t)`` to noise, a plain module or a diffusers model; x_t is
            ``(B, C, H, W)`` in diffusion space, t int64 ``(B,)``. Batches go to its device.
        images: the training set; it is scaled to ``[-1, 1]`` here.
        updates: optimiser steps.
        max_decay: share of the average that each update keeps, once warm.
        alpha_bar: ``(T,)`` squared signal scales; ``None`` means DDPM's linear betas, T = 1000.
        seed: fixes images, times, noise and dropout; torch's generator stays untouched.
        progress: called after every update with its number, their total, and the loss.

    Raises:
        ValueError: a setting is not above zero, or there are no images.
        FloatingPointError: the loss is not finite.
    """
    check_positive(updates=updates, batch_size=batch_size, lr=lr, images=len(images))
    device = device_of(network)
    linear = table(VPDiscrete.linear(), images.x)
    scale = (linear if alpha_bar is None else alpha_bar).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.0)
    ema = EMA(network, max_decay)
    network.train()
    with seeded(seed, network) as generator:
        for step in range(1, updates + 1):
            rows = torch.randint(len(images), (batch_size,), generator=generator)
            x0 = (2 * images.x[rows] - 1).to(device)
            t = torch.randint(len(scale), (batch_size,), generator=generator).to(device)
            eps = torch.randn(x0.shape, generator=generator).to(device)
            loss = denoising_loss(_noise_of(network), x0, t, eps, scale)
            value = finite(loss, step)
            optimizer.param_groups[0]["lr"] = lr * warm_cosine(step - 1, updates)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            ema.update(network)
            if progress:
                progress(step, updates, value)
    ema.copy_to(network)
    network.eval()


def _noise_of(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The network as a function to a tensor: diffusers models wrap theirs in an output."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        out = network(x, t)
        noise: Tensor = out if isinstance(out, Tensor) else out.sample
        return noise

    return predict
