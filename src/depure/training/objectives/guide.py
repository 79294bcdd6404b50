"""What an adversarial training noise climbs: a guiding loss of the one-step denoised image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from depure.diffusion.prediction import Denoised
from depure.training.objectives.denoising import check_batch
from depure.training.process import Process

GuideLoss = Literal["ce", "eps"]
"""The classifier's cross-entropy, or the denoiser's own squared error of the raw noise."""

Mix = Callable[[Tensor, Tensor], Tensor]
"""Raw noise eps and a perturbation to the noise that goes into the image."""


@dataclass(frozen=True)
class Guided:
    """A batch, and the loss of each of its images that a perturbation of its noise raises.

    Args:
        network: the raw network of the process.
        classifier: images in `[0, 1]` to logits, frozen and in eval mode; `None` if
            `loss` is "eps".
        process: the kind of diffusion model.
        x0: images `(B, C, H, W)` in `[-1, 1]`.
        y: int64 `(B,)` labels.
        t: `(B,)` times.
        loss: which one guides.

    Raises:
        ValueError: shapes or ranges are wrong, or the classifier is not frozen in eval mode.
    """

    network: nn.Module
    classifier: nn.Module | None
    process: Process
    x0: Tensor
    y: Tensor
    t: Tensor
    loss: GuideLoss = "ce"

    def __post_init__(self) -> None:
        check_batch(self.x0, self.y, self.t)
        if self.loss == "ce":
            _check_classifier(self.classifier)

    @torch.enable_grad()
    def gradient(self, mix: Mix, eps: Tensor, point: Tensor) -> Tensor:
        """Gradient of the guiding loss at `point`, `(B, C, H, W)`, for noise mix(eps, point).

        Of the summed, not the mean, loss of the images: the same ranks and signs, whatever the
        batch. No other gradient is computed, and none is left behind.

        Raises:
            ValueError: the logits do not cover the labels, or pass no gradient.
            FloatingPointError: the gradient is not finite.
        """
        point = point.detach().requires_grad_()
        with frozen(self.network):
            x_t = self.process.diffuse(self.x0, self.t, mix(eps, point))
            denoised = self.process.denoised(self.network, x_t, self.t)
            (gradient,) = torch.autograd.grad(self._losses(denoised, eps).sum(), point)
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError(
                "the gradient of the guiding loss is not finite: train in float32, or lower the "
                "learning rate"
            )
        return gradient

    def _losses(self, denoised: Denoised, eps: Tensor) -> Tensor:
        if self.loss == "eps" or self.classifier is None:
            return (denoised.eps - eps).square().flatten(1).mean(1)
        logits: Tensor = self.classifier(denoised.x0 / 2.0 + 0.5)
        _check_logits(logits, self.y)
        return functional.cross_entropy(logits, self.y, reduction="none")


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside the block no weight asks for a gradient; afterwards each does that did before."""
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _check_classifier(classifier: nn.Module | None) -> None:
    if classifier is None:
        raise ValueError('guide_loss "ce" needs a classifier: pass one, or take guide_loss "eps"')
    training = any(m.training for m in classifier.modules())
    if training or any(p.requires_grad for p in classifier.parameters()):
        state = "in training mode" if training else "not frozen"
        raise ValueError(
            f"the guiding classifier is {state}: pass classifier.eval().requires_grad_(False)"
        )


def _check_logits(logits: Tensor, y: Tensor) -> None:
    low, high = (int(v) for v in y.aminmax())
    if logits.ndim != 2 or len(logits) != len(y) or low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"the guiding classifier's logits must have shape ({len(y)}, K) and cover the labels "
            f"{low} .. {high}; got {tuple(logits.shape)}: take one trained on these classes"
        )
    if not logits.requires_grad:
        raise ValueError(
            "the guiding classifier gives logits without a graph back to the image (it runs under "
            "no_grad or detaches them): it cannot guide"
        )
