"""Adversarial denoising diffusion training (ADDT; Liu et al., ICLR 2025, arXiv 2404.14309)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from depure.noise import Noise
from depure.training.family import Family, per_image
from depure.training.guide import Guide, Guided, check_batch
from depure.training.rbgm import Scope, check_choice, check_mixing, mixing, rank_map

Perturbation = Literal["rbgm", "pgd", "none"]
Accumulate = Literal["sum", "last"]
_MOST_RATIO = 10.0  # of the perturbation in the noise to that in the image, variant "pgd"


@dataclass(frozen=True)
class ADDT:
    """How the noise of a training step is made adversarial; ADDT's published settings by default.

    Args:
        perturbation: ``"rbgm"`` for ADDT; ``"pgd"`` for ADDT without RBGM, which is also the
            classifier-guided adversarial training of "Stochasticity and Smoothness" (the
            published ``*_linf.py``); ``"none"`` for plain fine-tuning, the control.
        iterations: gradients per training step.
        accumulate: rank the ``"sum"`` of all iterations' gradients, or the ``"last"`` one.
        guide: raise the classifier's cross-entropy ``"ce"``, or the denoiser's own squared error
            ``"eps"`` of the raw noise (the ablation without a classifier).
        unit, low, high: share of adversarial noise, see :func:`~depure.training.rbgm.mixing`.
        scope: where gradients are ranked, see :func:`~depure.training.rbgm.rank_map`.
        eps, step: radius and step of ``"pgd"``, for images in ``[0, 1]``.

    ``"pgd"`` ignores accumulate, unit, low, high and scope; ``"rbgm"`` ignores eps and step.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    perturbation: Perturbation = "rbgm"
    iterations: int = 5
    accumulate: Accumulate = "sum"
    guide: Guide = "ce"
    unit: float = 0.03
    low: float = 0.0
    high: float = 0.3
    scope: Scope = "channel"
    eps: float = 8 / 255
    step: float = 4 / 255

    def __post_init__(self) -> None:
        check_choice("perturbation", self.perturbation, get_args(Perturbation))
        check_choice("scope", self.scope, get_args(Scope))
        _check_search(self.iterations, self.guide, self.accumulate)
        check_mixing(self.unit, self.low, self.high)
        _check_ball(self.eps, self.step)


def addt_loss(
    network: nn.Module,
    classifier: nn.Module | None,
    family: Family,
    x0: Tensor,
    y: Tensor,
    t: Tensor,
    noise: Noise,
    settings: ADDT,
) -> Tensor:
    """The loss of one ADDT step: predict the perturbed noise from the image it perturbs.

    A pure function of weights, batch and noise, but for layers such as dropout, which draw from
    torch's generator: see :func:`~depure.training.loop.seeded`. It uses the network in the mode
    it is in (ADDT: train mode, dropout 0.1) and leaves the search's gradients in no weight.

    Args:
        network: the raw network of the family, ``(x, labels) -> images``.
        classifier: images ``(B, C, H, W)`` in ``[0, 1]`` to logits, frozen and in eval mode;
            may be ``None`` where no classifier guides.
        family: the kind of diffusion model.
        x0: images ``(B, C, H, W)`` in ``[-1, 1]``.
        y: int64 ``(B,)`` labels.
        t: ``(B,)`` times, from ``family.times``.
        noise: one row for each image; a new ``fold`` for each training step.
        settings: the perturbation.

    Returns:
        A scalar, the mean over images: of (eps_hat - noise)**2 where the noise is
        ``sqrt(1 - lambda**2) eps + lambda e_d`` ("rbgm"), ``eps + ratio * delta`` ("pgd") or
        ``eps`` ("none"); EDM weighs it, see :class:`~depure.training.family.EDM`.

    Raises:
        ValueError: see :func:`cgpo`.
        FloatingPointError: see :func:`cgpo`.
    """
    check_batch(x0, y, t)
    s = settings
    target = noise.normal("forward", 0, x0)
    if s.perturbation == "rbgm":
        e_d = cgpo(
            network, classifier, family, x0, y, t, noise,
            iterations=s.iterations, accumulate=s.accumulate, loss=s.guide,
            unit=s.unit, low=s.low, high=s.high, scope=s.scope,
        )  # fmt: skip
        share = mixing(family.gamma(t, x0), s.unit, s.low, s.high)
        target = adversarial_noise(target, e_d, share)
    elif s.perturbation == "pgd":
        delta = classifier_guided_pgd(
            network, classifier, family, x0, y, t, noise,
            iterations=s.iterations, loss=s.guide, eps=s.eps, step=s.step,
        )  # fmt: skip
        target = target + _ratio(family, t, x0) * delta
    return family.loss(network, x0, t, target).mean()


def cgpo(
    network: nn.Module,
    classifier: nn.Module | None,
    family: Family,
    x0: Tensor,
    y: Tensor,
    t: Tensor,
    noise: Noise,
    *,
    iterations: int = 5,
    accumulate: Accumulate = "sum",
    loss: Guide = "ce",
    unit: float = 0.03,
    low: float = 0.0,
    high: float = 0.3,
    scope: Scope = "channel",
) -> Tensor:
    """Classifier-guided perturbation optimisation: noise that misleads the one-step denoising.

    From a Gaussian start, each iteration draws fresh eps, mixes it with e_d, lets the network
    denoise in one step and takes the gradient of the guiding loss with respect to e_d alone; the
    new e_d is a fresh Gaussian in the rank order of the accumulated gradients, which do not
    include the start. No image's e_d depends on the others. The network's weights are frozen
    meanwhile (its mode stays), so their gradients are neither left behind nor computed.

    Arguments as in :func:`addt_loss` and :class:`ADDT`, where ``loss`` is ``guide``.

    Returns:
        e_d ``(B, C, H, W)``, without a graph.

    Raises:
        ValueError: shapes, ranges or settings are wrong; the classifier is not frozen or not in
            eval mode, its logits do not cover the labels, or it passes no gradient.
        FloatingPointError: a gradient is not finite.
    """
    _check_search(iterations, loss, accumulate)
    guided = Guided(network, classifier, family, x0, y, t, loss)
    share = mixing(family.gamma(t, x0), unit, low, high)
    e_d = noise.normal("start", 0, x0)
    total = torch.zeros_like(x0)

    def mix(eps: Tensor, e_d: Tensor) -> Tensor:
        return adversarial_noise(eps, e_d, share)

    for turn in (noise.fold("cgpo", i) for i in range(iterations)):
        gradient = guided.gradient(mix, turn.normal("forward", 0, x0), e_d)
        total = total + gradient if accumulate == "sum" else gradient
        e_d = rank_map(total, turn.normal("rank", 0, x0), scope)
    return e_d


def adversarial_noise(eps: Tensor, e_d: Tensor, share: Tensor) -> Tensor:
    """``sqrt(1 - lambda**2) eps + lambda e_d``: unit variance for independent standard normals.

    Args:
        eps, e_d: ``(B, C, H, W)``.
        share: lambda ``(B,)`` in ``[0, 1]``, from :func:`~depure.training.rbgm.mixing`.
    """
    share = per_image(share)
    return (1.0 - share.square()).sqrt() * eps + share * e_d


def classifier_guided_pgd(
    network: nn.Module,
    classifier: nn.Module | None,
    family: Family,
    x0: Tensor,
    y: Tensor,
    t: Tensor,
    noise: Noise,
    *,
    iterations: int = 5,
    loss: Guide = "ce",
    eps: float = 8 / 255,
    step: float = 4 / 255,
) -> Tensor:
    """ADDT without RBGM: sign steps on the image, seen through the one-step denoising.

    Starts at zero, keeps no gradient from one iteration to the next, and adds
    ``clip(gamma, 0, 10) * delta`` to fresh noise; where gamma is below 10 that makes x_t from the
    adversarial image. Arguments and errors as in :func:`cgpo`; ``eps`` and ``step`` are for
    images in ``[0, 1]`` and doubled here.

    Returns:
        delta ``(B, C, H, W)`` in ``[-2 eps, 2 eps]``, with x0 + delta in ``[-1, 1]``, no graph.
    """
    _check_search(iterations, loss)
    _check_ball(eps, step)
    guided = Guided(network, classifier, family, x0, y, t, loss)
    ratio = _ratio(family, t, x0)
    delta = torch.zeros_like(x0)

    def mix(eps: Tensor, delta: Tensor) -> Tensor:
        return eps + ratio * delta

    for turn in (noise.fold("cgpo", i) for i in range(iterations)):
        gradient = guided.gradient(mix, turn.normal("forward", 0, x0), delta)
        delta = (delta + 2.0 * step * gradient.sign()).clamp(-2.0 * eps, 2.0 * eps)
        delta = (x0 + delta).clamp(-1.0, 1.0) - x0
    return delta.detach()


def _ratio(family: Family, t: Tensor, x0: Tensor) -> Tensor:
    return per_image(family.gamma(t, x0).clamp(0.0, _MOST_RATIO))


def _check_search(iterations: int, guide: str, accumulate: str = "sum") -> None:
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a whole number, at least 1; got {iterations!r}")
    check_choice("guide", guide, get_args(Guide))
    check_choice("accumulate", accumulate, get_args(Accumulate))


def _check_ball(eps: float, step: float) -> None:
    if not (0.0 < eps <= 1.0 and 0.0 < step <= 1.0):
        raise ValueError(
            f"eps and step must lie in (0, 1], for images in [0, 1]; got {eps} and {step}"
        )
