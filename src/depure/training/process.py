"""The noising that a diffusion model is trained with: each image has a time of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from depure.diffusion.prediction import EDM, Denoised, Epsilon, Prediction, as_images
from depure.diffusion.schedules import VPSDE, VPDiscrete
from depure.rows import per_image

Network = Callable[[Tensor, Tensor], object]
"""`(images, labels) -> images`, or a tuple or object with `.sample` that holds them."""


class Scales(NamedTuple):
    """`x_t = alpha x0 + sigma eps`, each (B,)."""

    alpha: Tensor
    sigma: Tensor


class Process(ABC):
    """Times, scales and labels of one kind of diffusion model, and what its network predicts.

    The scales are float32 tensors, one per image, where a schedule's are float64 numbers.
    """

    @property
    @abstractmethod
    def prediction(self) -> Prediction:
        """What the network predicts."""

    @abstractmethod
    def times(self, u: Tensor) -> Tensor:
        """Training times (B,) from uniform numbers `u` (B,) inside (0, 1).

        Raises:
            ValueError: u is no flat list of numbers inside (0, 1).
        """

    @abstractmethod
    def scales(self, t: Tensor, like: Tensor) -> Scales:
        """Scales of the times t, each (B,), with the dtype and device of `like`.

        Raises:
            ValueError: a time is out of range.
        """

    @abstractmethod
    def labels(self, t: Tensor, like: Tensor) -> Tensor:
        """What the network is told of the times, (B,)."""

    def weight(self, t: Tensor, like: Tensor) -> Tensor:
        """Factor (B,) of the squared error of eps in the loss: 1 for all t by default."""
        return torch.ones(t.shape, dtype=like.dtype, device=like.device)

    def gamma(self, t: Tensor, like: Tensor) -> Tensor:
        """Signal over noise, `alpha / sigma` (B,)."""
        alpha, sigma = self.scales(t, like)
        return alpha / sigma

    def diffuse(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """`x_t = alpha x0 + sigma noise`, (B, C, H, W)."""
        alpha, sigma = self.scales(t, x0)
        return per_image(alpha, x0) * x0 + per_image(sigma, x0) * noise

    def denoised(self, network: Network, x_t: Tensor, t: Tensor) -> Denoised:
        """The network's one-step estimates (x0, eps), each (B, C, H, W), nothing clamped.

        Raises:
            ValueError: a time is out of range, or the network gives another shape than x_t's.
        """
        alpha, sigma = (per_image(scale, x_t) for scale in self.scales(t, x_t))
        given = self.prediction.network_input(x_t, alpha, sigma)
        raw = as_images(network(given, self.labels(t, x_t)), x_t)
        if raw.shape != x_t.shape:
            raise ValueError(
                f"the network must predict a tensor of shape {tuple(x_t.shape)}; got "
                f"{tuple(raw.shape)}: a network with learned variance needs its first half"
            )
        return self.prediction.denoised(raw, x_t, alpha, sigma)

    def loss(self, network: Network, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Denoising loss (B,): the weighted squared error of eps, averaged over pixels.

        `noise` (B, C, H, W) both makes x_t from x0 (in [-1, 1]) and is the target.
        """
        denoised = self.denoised(network, self.diffuse(x0, t, noise), t)
        return self.weight(t, x0) * (denoised.eps - noise).square().flatten(1).mean(1)


@dataclass(frozen=True)
class DiscreteProcess(Process):
    """DDPM and DDIM (2006.11239): t int64, uniform over the indices below `t_max` T.

    Args:
        schedule: the betas. The network is called as `network(x_t, t)`.
        t_max: share of the chain to train, in (0, 1]; a small network that only purifies can
            spend itself on the times that purification visits (ADDT: 1).

    Raises:
        ValueError: `t_max` is out of range.
    """

    schedule: VPDiscrete
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_share(self.t_max)

    @property
    def prediction(self) -> Prediction:
        """The noise."""
        return Epsilon()

    def times(self, u: Tensor) -> Tensor:
        """`floor(u t_max T)`."""
        reach = max(1, round(self.t_max * len(self.schedule)))
        return (_uniforms(u) * reach).long()

    def scales(self, t: Tensor, like: Tensor) -> Scales:
        """Square roots of alpha_bar and of 1 - alpha_bar, taken in float64."""
        steps = len(self.schedule)
        if t.is_floating_point() or _outside(t, 0, steps - 1):
            raise ValueError(f"t must hold integer indices in 0 .. {steps - 1}; got {t.tolist()}")
        alpha, sigma = self._tables
        return Scales(alpha.to(like)[t], sigma.to(like)[t])

    def labels(self, t: Tensor, like: Tensor) -> Tensor:
        """The indices themselves."""
        return t

    @cached_property
    def _tables(self) -> Scales:
        alpha_bar = torch.tensor(self.schedule.alpha_bar, dtype=torch.float64)
        return Scales(alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())


@dataclass(frozen=True)
class ContinuousProcess(Process):
    """The variance-preserving SDE (2011.13456): t uniform in (first, t_max).

    Args:
        schedule: the rates. The network is called as `network(x_t, t * label_scale)`.
        first: the shortest time, in (0, t_max).
        t_max: share of the chain to train, in (0, 1], see `DiscreteProcess`.

    Raises:
        ValueError: `first` or `t_max` is out of range.
    """

    schedule: VPSDE
    first: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_share(self.t_max)
        if not 0.0 < self.first < self.t_max:
            raise ValueError(f"first must lie in (0, {self.t_max:g}), t_max; got {self.first}")

    @property
    def prediction(self) -> Prediction:
        """The noise."""
        return Epsilon()

    def times(self, u: Tensor) -> Tensor:
        """`first + u (t_max - first)`."""
        return self.first + _uniforms(u) * (self.t_max - self.first)

    def scales(self, t: Tensor, like: Tensor) -> Scales:
        """As `VPSDE`, without cancellation near t = 0."""
        if not t.is_floating_point() or _outside(t, 0.0, 1.0) or bool((t == 0).any()):
            raise ValueError(f"t must hold real times in (0, 1]; got {t.tolist()}")
        low, high = self.schedule.beta_min, self.schedule.beta_max
        t = t.to(like)
        log_squared = -(0.5 * (high - low) * t + low) * t
        return Scales((0.5 * log_squared).exp(), (-torch.expm1(log_squared)).sqrt())

    def labels(self, t: Tensor, like: Tensor) -> Tensor:
        """`t * label_scale`."""
        return t.to(like) * self.schedule.label_scale


@dataclass(frozen=True)
class EDMProcess(Process):
    """EDM (Karras et al., 2206.00364, table 1): t is sigma itself, alpha is 1.

    The network is the raw F, called as `network(c_in * x, c_noise)`, c_noise (B,). A network that
    also takes class labels needs a wrapper. The loss is the paper's `w(sigma) (D - x0)**2`,
    averaged over pixels (the published code sums them: C H W times as much).

    Args:
        sigma_data: standard deviation of the images.
        p_mean, p_std: log sigma is normal with this mean and deviation in training.

    Raises:
        ValueError: `sigma_data` or `p_std` is not above 0.
    """

    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2

    def __post_init__(self) -> None:
        if not (self.sigma_data > 0.0 and self.p_std > 0.0):
            raise ValueError(
                f"sigma_data and p_std must be above 0; got {self.sigma_data} and {self.p_std}"
            )

    @property
    def prediction(self) -> Prediction:
        """F of the preconditioning."""
        return EDM(self.sigma_data)

    def times(self, u: Tensor) -> Tensor:
        """`exp(p_mean + p_std n)` with n the normal quantile of u."""
        normal: Tensor = torch.special.ndtri(_uniforms(u))
        return (self.p_mean + self.p_std * normal).exp()

    def scales(self, t: Tensor, like: Tensor) -> Scales:
        """`(1, t)`."""
        if not t.is_floating_point() or not bool(((t > 0) & t.isfinite()).all()):
            raise ValueError(f"t must hold noise levels sigma above 0; got {t.tolist()}")
        sigma = t.to(like)
        return Scales(torch.ones_like(sigma), sigma)

    def labels(self, t: Tensor, like: Tensor) -> Tensor:
        """`c_noise = log(sigma) / 4`."""
        return self.scales(t, like).sigma.log() / 4.0

    def weight(self, t: Tensor, like: Tensor) -> Tensor:
        """`w(sigma) sigma**2 = 1 + (sigma / sigma_data)**2`, for `D - x0 = sigma (n - eps)`."""
        return 1.0 + (self.scales(t, like).sigma / self.sigma_data).square()


def _check_share(t_max: float) -> None:
    if not 0.0 < t_max <= 1.0:
        raise ValueError(f"t_max must lie in (0, 1], a share of the chain; got {t_max}")


def _uniforms(u: Tensor) -> Tensor:
    inside = u.is_floating_point() and u.ndim == 1 and bool(((u > 0) & (u < 1)).all())
    if not inside:
        raise ValueError(
            f"u must be a flat list of numbers inside (0, 1), one for each image; "
            f"got shape {tuple(u.shape)}, dtype {u.dtype}: pass noise.uniform(...)"
        )
    return u


def _outside(t: Tensor, low: float, high: float) -> bool:
    return not bool(((t >= low) & (t <= high)).all())
