"""What an adversarial training noise climbs: a guiding loss of the one-step denoised image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from depure.diffusion.denoiser import Estimate
from depure.training.family import Family

Guide = Literal["ce", "eps"]
"""The classifier's cross-entropy, or the denoiser's own squared error of the raw noise."""

Mix = Callable[[Tensor, Tensor], Tensor]
"""Raw noise eps and a perturbation to the noise that goes into the image."""


@dataclass(frozen=True)
class Guided:
    """A batch, and the loss of each of its images that a perturbation of its noise raises.

    Args:
        network: the raw network of the family.
        classifier: images in ``[0, 1]`` to logits, frozen and in eval mode; ``None`` if the guide
            is ``"eps"``.
        family: the kind of diffusion model.
        x0: images ``(B, C, H, W)`` in ``[-1, 1]``.
        y: int64 ``(B,)`` labels.
        t: ``(B,)`` times.
        guide: which loss.

    Raises:
        ValueError: shapes or ranges are wrong, or the classifier is not frozen in eval mode.
    """

    network: nn.Module
    classifier: nn.Module | None
    family: Family
    x0: Tensor
    y: Tensor
    t: Tensor
    guide: Guide = "ce"

    def __post_init__(self) -> None:
        check_batch(self.x0, self.y, self.t)
        if self.guide == "ce":
            _check_classifier(self.classifier)

    @torch.enable_grad()
    def gradient(self, mix: Mix, eps: Tensor, point: Tensor) -> Tensor:
        """Gradient of the guiding loss at ``point``, ``(B, C, H, W)``, for noise mix(eps, point).

        Of the summed, not the mean, loss of the images: the same ranks and signs, whatever the
        batch. No other gradient is computed, and none is left behind.

        Raises:
            ValueError: the logits do not cover the labels, or pass no gradient.
            FloatingPointError: the gradient is not finite.
        """
        point = point.detach().requires_grad_()
        with frozen(self.network):
            x_t = self.family.diffuse(self.x0, self.t, mix(eps, point))
            estimate = self.family.predict(self.network, x_t, self.t)
            (gradient,) = torch.autograd.grad(self._losses(estimate, eps).sum(), point)
        if not bool(gradient.isfinite().all()):
            raise FloatingPointError(
                "the gradient of the guiding loss is not finite: train in float32, or lower the "
                "learning rate"
            )
        return gradient

    def _losses(self, estimate: Estimate, eps: Tensor) -> Tensor:
        if self.guide == "eps" or self.classifier is None:
            return (estimate.eps - eps).square().flatten(1).mean(1)
        logits: Tensor = self.classifier(estimate.x0 / 2.0 + 0.5)
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


def check_batch(x0: Tensor, y: Tensor, t: Tensor) -> None:
    """Refuse a batch whose parts do not fit, or whose images are not in ``[-1, 1]``.

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


def _check_classifier(classifier: nn.Module | None) -> None:
    if classifier is None:
        raise ValueError('guide "ce" needs a classifier: pass one, or take guide "eps"')
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
