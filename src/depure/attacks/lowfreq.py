"""The low-frequency attack: optimised smoothing filters over an optimised image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from depure.attacks.base import Attack, Heard, Watch
from depure.attacks.climb import pick, wide
from depure.attacks.expected import Average
from depure.attacks.features import Perceptual
from depure.attacks.model import Model
from depure.attacks.queries import check_ball
from depure.attacks.search import Adam, Best, check_search, measured, pull_back, settled
from depure.noise import Noise
from depure.threat import Ball, Linf

_SHARP = 0.2  # spread in pixels of the filters at the start: next to none
_COLOUR = 0.1  # spread of the colours that a filter mixes
_EDGE = 0.999999  # black and white are that far out on the tanh curve
_LEAST = 1e-5  # of a filter's starting weights, so that each can grow


@dataclass(frozen=True)
class LowFrequency(Attack):
    """The LF attack of DiffBreak (2411.16598; after Kassis & Hengartner's UnMarker) with EoT.

    The image is (1 + tanh(z)) / 2 for free z, then goes through a chain of smoothing filters.
    Each pixel has its own weights in each filter: a softmax of free numbers that are mirrored
    about the pixel, times a Gaussian (spread 0.1) of the difference in colour from that pixel in
    the original image, so that edges stay. Adam climbs the loss in z and the filters together.
    What this changes is structure that noising does not drown: most of it is of low frequency,
    though nothing enforces that (nor does it there).

    As in DiffBreak's code: the form of filters and image, kernel sizes and learning rates for
    CIFAR-10, the margin loss, steps that reduce the distance as soon as the bound is crossed
    (there by a factor of 1e8 on the distance and a clipped gradient; here by the distance's
    gradient alone, and all gradients have norm 1). The colour spread is its filters' default, 0.1;
    its settings for CIFAR-10 have 0.05. Its distance is LPIPS on VGG, of 0.05 at
    most, without the root that `FeatureDistance` takes (0.22, were the weights equal). Left out:
    its loss on differences to local medians (of weight 0 in its settings), its optional norm
    penalty, its search over the factor. Added: EoT at each step, the choice between the iterate
    within the bound that has the lowest mean accuracy (highest mean loss among equals) and the
    last (see `settled`), and the `Linf` ball, to which images are cut as they are made. Pixels of
    0 and 1 lie far out on the curve of tanh, where z hardly moves them: on images that have many,
    such as the digits, the attack is weak.

    Args:
        steps: iterations.
        lr: learning rate of z.
        filter_lr: learning rate of the filters.
        kernels: widths of the filters, odd, in order; a half must be less than the image.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr".
        chunk: rows per forward pass of the model, by the size of the images if None; affects
            speed and memory only. The filters run on all images at once.

    Raises:
        ValueError: a setting is out of range; at the call, for a ball other than `Perceptual`
            and `Linf`, or images too small for the kernels.
    """

    steps: int = 100
    lr: float = 0.008
    filter_lr: float = 0.05
    kernels: tuple[int, ...] = (5, 7, 5, 3)
    eot: int = 20
    average: Average = "gradients"
    loss: str = "margin"
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_search(self)
        if not 0.0 < self.filter_lr < math.inf:
            raise ValueError(f"filter_lr must be positive and finite; got {self.filter_lr}")
        if not isinstance(self.kernels, tuple) or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels must be a tuple of odd widths; got {self.kernels}")

    @property
    def heard(self) -> Heard:
        """Iterates in the bound or not."""
        return "search"

    @property
    def iterations(self) -> int:
        """How often `watch` is called."""
        return self.steps

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        ball: Ball,
        noise: Noise,
        watch: Watch | None = None,
    ) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        check_ball(self, ball, (Perceptual, Linf))
        form = _form(self, x, ball)
        best = Best(x, measured(self, model, x, y, noise.fold("lf image")))
        params, adam = form.start, Adam.like(form.start)
        with torch.no_grad():
            known = ball.between.features(x) if isinstance(ball, Perceptual) else x
        for i in range(self.steps):
            with torch.no_grad():
                here = form.make(params).clamp(0.0, 1.0)
            seen = measured(self, model, here, y, noise.fold("lf", i))
            if watch is not None:
                watch(i, seen)
            back, inside = _way_back(ball, here, known)
            best = best.improved(here, seen, inside)
            grad = pull_back(form.make, params, pick(inside, seen.grad, back))
            moves = seen.finite & grad.flatten(1).isfinite().all(1)
            adam = adam.heard(grad / wide(grad.norm(dim=1).clamp_min(1e-12), grad), moves)
            params = pick(moves, params + form.lr * adam.step(), params)
        with torch.no_grad():
            last = ball.project(form.make(params), x)
        best = best.improved(last, measured(self, model, last, y, noise.fold("lf last")))
        return settled(self, model, best.x, last, y, noise)


def _way_back(ball: Ball, here: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient that reduces the distance, and whether images (B,) are in the bound."""
    if not isinstance(ball, Perceptual):
        return torch.zeros_like(here), torch.ones_like(here[:, 0, 0, 0], dtype=torch.bool)
    apart, slope = ball.between.slope(here, known)
    return -slope, apart <= ball.eps


class _Form(NamedTuple):
    """What the attack moves: one row of numbers (B, P) for each image."""

    make: Callable[[Tensor], Tensor]  # (B, P) to images
    start: Tensor  # (B, P), the images themselves but for rounding
    lr: Tensor  # (P,)


def _form(attack: LowFrequency, x: Tensor, ball: Ball) -> _Form:
    images, _, height, width = x.shape
    if attack.kernels and max(attack.kernels) // 2 >= min(height, width):
        raise ValueError(
            f"kernels of {max(attack.kernels)} pixels do not fit images of {height} x {width}: "
            f"pass smaller kernels"
        )
    filters = [Filter(x, k) for k in attack.kernels]
    logits = [f.start.expand(images, -1, height * width).flatten(1) for f in filters]
    z = torch.atanh((2.0 * x - 1.0) * _EDGE).flatten(1)
    start = torch.cat([z, *logits], 1)
    sizes = [z.shape[1], *(part.shape[1] for part in logits)]
    rates = [torch.full_like(start[0, :n], r) for n, r in zip(
        sizes, [attack.lr, *[attack.filter_lr] * len(filters)], strict=True
    )]  # fmt: skip

    def make(params: Tensor) -> Tensor:
        free, *rest = torch.split(params, sizes, 1)
        image = (1.0 + torch.tanh(free).view_as(x)) / 2.0
        for f, weights in zip(filters, rest, strict=True):
            image = f(image, weights.view(images, -1, height * width))
        return x + (image - x).clamp(-ball.eps, ball.eps) if isinstance(ball, Linf) else image

    return _Form(make, start, torch.cat(rates))


class Filter:
    """A smoothing filter with free weights at each pixel, which spares edges of a guide image.

    Args:
        guide: images (B, C, H, W).
        kernel: width, odd.
    """

    def __init__(self, guide: Tensor, kernel: int) -> None:
        self.kernel, self.half = kernel, kernel // 2
        gap = (self._windows(guide) - guide.flatten(2)[:, :, None]).abs().sum(1)
        self.alike = (-0.5 * (gap / _COLOUR).square()).exp()  # (B, K K, H W)
        offset = torch.arange(kernel, device=guide.device).sub(self.half).abs()
        self.mirror = (offset[:, None] * (self.half + 1) + offset).flatten()
        line = torch.arange(self.half + 1, device=guide.device, dtype=guide.dtype)
        bell = (-0.5 * (line[:, None].square() + line.square()) / _SHARP**2).exp()
        self.start = bell.clamp_min(_LEAST).log().view(1, -1, 1)  # (1, quarter of weights, 1)

    def __call__(self, x: Tensor, logits: Tensor) -> Tensor:
        """Filtered images (B, C, H, W), given logits of a quarter of the weights (B, Q, H W)."""
        weight = logits.index_select(1, self.mirror).softmax(1) * self.alike
        weight = weight / weight.sum(1, keepdim=True)
        return (self._windows(x) * weight[:, None]).sum(2).view_as(x)

    def _windows(self, x: Tensor) -> Tensor:
        """The pixels about each pixel, (B, C, K K, H W); the image is mirrored at its border."""
        padded = functional.pad(x, [self.half] * 4, mode="reflect")
        windows = functional.unfold(padded, self.kernel)
        return windows.view(len(x), x.shape[1], self.kernel**2, -1)
