"""Adversarial denoising diffusion training (ADDT; Liu et al., ICLR 2025, 2404.14309)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from depure.data.images import Images
from depure.noise import Noise
from depure.rows import per_image
from depure.training.objectives.base import Objective
from depure.training.objectives.denoising import check_batch, draw_times
from depure.training.objectives.guide import Guided, GuideLoss
from depure.training.objectives.rbgm import (
    RankWithin,
    check_choice,
    check_mixing,
    mixing,
    rank_map,
)
from depure.training.process import Process
from depure.weights import fingerprint

Perturbation = Literal["rbgm", "pgd"]
Accumulate = Literal["sum", "last"]
_MOST_RATIO = 10.0  # of the perturbation in the noise to that in the image, perturbation "pgd"


@dataclass(frozen=True)
class ADDT(Objective):
    """Predict the noise of an image, where the noise is made to mislead a classifier.

    The published settings by default. One update, for images x0 at times t (algorithm 1):

        1. e_d = a standard normal start
        2. repeat `iterations` times (CGPO):
               x_t = alpha x0 + sigma (sqrt(1 - lambda^2) eps + lambda e_d), eps fresh
               gradient = d CE(classifier(x0_hat(x_t)), y) / d e_d, summed over the repetitions
               e_d = a fresh normal in the rank order of the gradient (RBGM)
        3. minimise |eps_hat(x_t) - noise|^2 for noise = sqrt(1 - lambda^2) eps + lambda e_d

    Args:
        process: how images are noised, and what the network predicts.
        classifier: images (B, C, H, W) in [0, 1] to logits, frozen and in eval mode; None where
            no classifier guides.
        perturbation: "rbgm" for ADDT; "pgd" for ADDT without RBGM, which is also the
            classifier-guided adversarial training of "Stochasticity and Smoothness" (the
            published `*_linf.py`). For neither, the control, there is `Denoising`.
        iterations: gradients per training step.
        accumulate: rank the "sum" of all iterations' gradients, or the "last" one.
        guide_loss: raise the classifier's cross-entropy "ce", or the denoiser's own squared error
            "eps" of the raw noise (the ablation without a classifier).
        lambda_unit, lambda_min, lambda_max: share of adversarial noise, see `mixing`.
        rank_within: where gradients are ranked, see `rank_map`.
        eps, step: radius and step of "pgd", for images in [0, 1].

    "pgd" ignores accumulate, the lambdas and rank_within; "rbgm" ignores eps and step.

    Raises:
        ValueError: a setting is unknown or out of range; at the call, shapes or ranges are wrong,
            the classifier is not frozen or not in eval mode, its logits do not cover the labels,
            or it passes no gradient.
        FloatingPointError: at the call, a gradient is not finite.
    """

    process: Process
    classifier: nn.Module | None = field(default=None, repr=False)
    perturbation: Perturbation = "rbgm"
    iterations: int = 5
    accumulate: Accumulate = "sum"
    guide_loss: GuideLoss = "ce"
    lambda_unit: float = 0.03
    lambda_min: float = 0.0
    lambda_max: float = 0.3
    rank_within: RankWithin = "channel"
    eps: float = 8 / 255
    step: float = 4 / 255

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise ValueError(
                f"iterations must be a whole number, at least 1; got {self.iterations!r}"
            )
        check_choice("perturbation", self.perturbation, get_args(Perturbation))
        check_choice("accumulate", self.accumulate, get_args(Accumulate))
        check_choice("guide_loss", self.guide_loss, get_args(GuideLoss))
        check_choice("rank_within", self.rank_within, get_args(RankWithin))
        check_mixing(self.lambda_unit, self.lambda_min, self.lambda_max)
        if not (0.0 < self.eps <= 1.0 and 0.0 < self.step <= 1.0):
            raise ValueError(
                f"eps and step must lie in (0, 1], for images in [0, 1]; got {self.eps} and "
                f"{self.step}"
            )

    def __call__(self, network: nn.Module, batch: Images, noise: Noise) -> Tensor:
        """The adversarial denoising loss, images scaled to [-1, 1]."""
        x0 = 2.0 * batch.x - 1.0
        return self.loss(network, x0, batch.y, draw_times(self.process, x0, noise), noise)

    def describe(self) -> str:
        """Settings, and the classifier's weights."""
        known = "none" if self.classifier is None else fingerprint(self.classifier.state_dict())
        return f"{self!r}, classifier {known}"

    def loss(self, network: nn.Module, x0: Tensor, y: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """Predict the perturbed noise from the image it perturbs: a scalar, the mean over images.

        A pure function of weights, batch and noise, but for layers such as dropout, which draw
        from torch's generator: see `seeded`. It uses the network in the mode it is in (ADDT: train
        mode, dropout 0.1) and leaves the search's gradients in no weight.

        Args:
            network: the raw network of the process, `(x, labels) -> images`.
            x0: images (B, C, H, W) in [-1, 1].
            y: int64 (B,) labels.
            t: (B,) times, from `process.times`.
            noise: one row for each image; a new `fold` for each training step.
        """
        check_batch(x0, y, t)
        target = noise.normal("forward", 0, x0)
        if self.perturbation == "rbgm":
            target = adversarial_noise(
                target, self.cgpo(network, x0, y, t, noise), self.share(t, x0)
            )
        else:
            target = target + self._ratio(t, x0) * self.pgd(network, x0, y, t, noise)
        return self.process.loss(network, x0, t, target).mean()

    def cgpo(self, network: nn.Module, x0: Tensor, y: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """Classifier-guided perturbation optimisation: e_d (B, C, H, W), without a graph.

        From a Gaussian start, each iteration draws fresh eps, mixes it with e_d, lets the network
        denoise in one step and takes the gradient of the guiding loss with respect to e_d alone;
        the new e_d is a fresh Gaussian in the rank order of the accumulated gradients, which do
        not include the start. No image's e_d depends on the others. The network's weights are
        frozen meanwhile (its mode stays), so their gradients are neither left behind nor computed.

        Arguments as in `loss`.
        """
        guided = Guided(network, self.classifier, self.process, x0, y, t, self.guide_loss)
        share = self.share(t, x0)
        e_d, total = noise.normal("start", 0, x0), torch.zeros_like(x0)

        def mix(eps: Tensor, e_d: Tensor) -> Tensor:
            return adversarial_noise(eps, e_d, share)

        for fresh in (noise.fold("cgpo", i) for i in range(self.iterations)):
            gradient = guided.gradient(mix, fresh.normal("forward", 0, x0), e_d)
            total = total + gradient if self.accumulate == "sum" else gradient
            e_d = rank_map(total, fresh.normal("rank", 0, x0), self.rank_within)
        return e_d

    def pgd(self, network: nn.Module, x0: Tensor, y: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """ADDT without RBGM: sign steps on the image, seen through the one-step denoising.

        Starts at zero, keeps no gradient from one iteration to the next, and adds
        `clip(gamma, 0, 10) * delta` to fresh noise; where gamma is below 10 that makes x_t from
        the adversarial image. `eps` and `step` are for images in [0, 1] and doubled here.

        Arguments as in `loss`.

        Returns:
            delta (B, C, H, W) in [-2 eps, 2 eps], with x0 + delta in [-1, 1], no graph.
        """
        guided = Guided(network, self.classifier, self.process, x0, y, t, self.guide_loss)
        ratio, delta = self._ratio(t, x0), torch.zeros_like(x0)
        radius, step = 2.0 * self.eps, 2.0 * self.step

        def mix(eps: Tensor, delta: Tensor) -> Tensor:
            return eps + ratio * delta

        for fresh in (noise.fold("cgpo", i) for i in range(self.iterations)):
            gradient = guided.gradient(mix, fresh.normal("forward", 0, x0), delta)
            delta = (delta + step * gradient.sign()).clamp(-radius, radius)
            delta = (x0 + delta).clamp(-1.0, 1.0) - x0
        return delta.detach()

    def share(self, t: Tensor, x0: Tensor) -> Tensor:
        """lambda (B,) of the times."""
        gamma = self.process.gamma(t, x0)
        return mixing(gamma, self.lambda_unit, self.lambda_min, self.lambda_max)

    def _ratio(self, t: Tensor, x0: Tensor) -> Tensor:
        return per_image(self.process.gamma(t, x0).clamp(0.0, _MOST_RATIO), x0)


def adversarial_noise(eps: Tensor, e_d: Tensor, share: Tensor) -> Tensor:
    """`sqrt(1 - lambda**2) eps + lambda e_d`: unit variance for independent standard normals.

    Args:
        eps, e_d: (B, C, H, W).
        share: lambda (B,) in [0, 1], from `mixing`.
    """
    share = per_image(share, eps)
    return (1.0 - share.square()).sqrt() * eps + share * e_d
