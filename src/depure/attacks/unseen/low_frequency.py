"""The low-frequency attack: optimised smoothing filters over an optimised image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from depure.attacks.ascent import Adam, Best
from depure.attacks.asking.gradients import Average
from depure.attacks.base import TraceOf, Watch
from depure.attacks.case import Case
from depure.attacks.settings import check_rate
from depure.attacks.unseen.search import UnseenAttack, pull_back
from depure.rows import per_image, where_rows
from depure.threat.balls import Ball, Linf
from depure.threat.unseen import Perceptual

_SHARP = 0.2  # spread in pixels of the filters at the start: next to none
_COLOUR = 0.1  # spread of the colours that a filter mixes
_EDGE = 0.999999  # black and white are that far out on the tanh curve
_LEAST = 1e-5  # of a filter's starting weights, so that each can grow


@dataclass(frozen=True)
class LowFrequency(UnseenAttack):
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
    last (see `Case.fresh`), and the `Linf` ball, to which images are cut as they are made. Pixels
    of 0 and 1 lie far out on the curve of tanh, where z hardly moves them: on images that have
    many, such as the digits, the attack is weak.

    Args:
        steps: iterations.
        lr: learning rate of z.
        filter_lr: learning rate of the filters.
        kernels: widths of the filters, odd, in order; a half must be less than the image.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr".

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

    def __post_init__(self) -> None:
        self.check()
        check_rate("lr", self.lr)
        check_rate("filter_lr", self.filter_lr)
        if not isinstance(self.kernels, tuple) or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels must be a tuple of odd widths; got {self.kernels}")

    @property
    def trace_of(self) -> TraceOf:
        """Iterates in the bound or not."""
        return "other model"

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """`Perceptual`, and `Linf`, to which images are cut as they are made."""
        return (Perceptual, Linf)

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        x, ball = case.x, case.ball
        form = _form(self, x, ball)
        best = Best(x, self.measured(case, x, "lf image"))
        params, adam = form.start, Adam.like(form.start)
        with torch.no_grad():
            reference = ball.metric.features(x) if isinstance(ball, Perceptual) else x
        for i in range(self.steps):
            with torch.no_grad():
                point = form.make(params).clamp(0.0, 1.0)
            seen = self.measured(case, point, "lf", i)
            watch.iteration(seen)
            inwards, inside = _inwards(ball, point, reference)
            best = best.or_better(point, seen, inside)
            grad = pull_back(form.make, params, where_rows(inside, seen.grad, inwards))
            moves = seen.finite & grad.flatten(1).isfinite().all(1)
            unit = grad / per_image(grad.norm(dim=1).clamp_min(1e-12), grad)
            adam = adam.updated(unit, moves)
            params = where_rows(moves, params + form.lr * adam.step(), params)
        with torch.no_grad():
            last = ball.project(form.make(params), x)
        best = best.or_better(last, self.measured(case, last, "lf last"))
        return case.fresh(best.x, last, self.eot)


def _inwards(ball: Ball, point: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient that reduces the distance, and whether images (B,) are in the bound."""
    if not isinstance(ball, Perceptual):
        return torch.zeros_like(point), torch.ones_like(point[:, 0, 0, 0], dtype=torch.bool)
    distance, slope = ball.metric.slope(point, reference)
    return -slope, distance <= ball.eps


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
