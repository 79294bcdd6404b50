"""Plain training of a diffusion model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depure.data.images import Images
from depure.noise import Noise
from depure.training.objectives.base import Objective
from depure.training.process import Process


@dataclass(frozen=True)
class Denoising(Objective):
    """The loss of a diffusion model (DDPM, 2006.11239, equation 14; EDM, 2206.00364, equation 8).

    Also the control of an adversarial fine-tuning: the same updates without perturbed noise.

    Args:
        process: how images are noised, and what the network predicts.
    """

    process: Process

    def __call__(self, network: nn.Module, batch: Images, noise: Noise) -> Tensor:
        """The denoising loss, images scaled to [-1, 1]."""
        x0 = 2.0 * batch.x - 1.0
        t = draw_times(self.process, x0, noise)
        check_batch(x0, batch.y, t)
        return self.process.loss(network, x0, t, noise.normal("forward", 0, x0)).mean()


def draw_times(process: Process, x0: Tensor, noise: Noise) -> Tensor:
    """A time (B,) for each image."""
    return process.times(noise.uniform("time", 0, x0[:, 0, 0, 0].double()))


def check_batch(x0: Tensor, y: Tensor, t: Tensor) -> None:
    """Refuse a batch whose parts do not fit, or whose images are not in `[-1, 1]`.

    Raises:
        ValueError: says what came and what was expected.
    """
    if x0.ndim != 4 or not x0.is_floating_point() or x0.numel() == 0:
        raise ValueError(
            f"x0 must hold real images (B, C, H, W), no size 0; "
            f"got shape {tuple(x0.shape)}, dtype {x0.dtype}"
        )
    low, high = (float(v) for v in x0.detach().aminmax())
    if not -1.0 <= low <= high <= 1.0:
        raise ValueError(f"x0 must lie in [-1, 1]; got {low} to {high}: pass 2 * x - 1 for pixels")
    if y.shape != x0.shape[:1] or y.dtype != torch.int64 or t.shape != x0.shape[:1]:
        raise ValueError(
            f"y must hold one int64 label and t one time for each of {len(x0)} images; "
            f"got y {tuple(y.shape)} {y.dtype} and t {tuple(t.shape)}"
        )
