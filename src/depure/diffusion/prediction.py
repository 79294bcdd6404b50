"""What a diffusion network predicts, and the clean image and noise that follow from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from depure.diffusion.schedules import PredictionName

Scale = float | Tensor
"""alpha or sigma: a number for all images, or one for each, shaped (B, 1, 1, 1)."""


class Denoised(NamedTuple):
    """What a network knows at x_t = alpha x0 + sigma eps, each (B, C, H, W)."""

    x0: Tensor
    eps: Tensor
    log_variance: Tensor | None = None  # of a reverse step, where a network learned it


class Prediction(ABC):
    """From the raw output of a network to the clean image and the noise.

    One formula for purification, where all images have one time, and for training, where each has
    its own. x0 and eps satisfy `x = alpha x0 + sigma eps`; nothing is clamped.
    """

    def network_input(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """What the network is given for x (B, C, H, W)."""
        return x

    @abstractmethod
    def denoised(self, raw: Tensor, x: Tensor, alpha: Scale, sigma: Scale) -> Denoised:
        """From its answer `raw` (B, C, H, W)."""


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise (DDPM, 2006.11239, equation 15)."""

    def denoised(self, raw: Tensor, x: Tensor, alpha: Scale, sigma: Scale) -> Denoised:
        """`x0 = (x - sigma eps) / alpha`."""
        return Denoised((x - sigma * raw) / alpha, raw)


@dataclass(frozen=True)
class X0(Prediction):
    """The clean image."""

    def denoised(self, raw: Tensor, x: Tensor, alpha: Scale, sigma: Scale) -> Denoised:
        """`eps = (x - alpha x0) / sigma`."""
        return Denoised(raw, (x - alpha * raw) / sigma)


@dataclass(frozen=True)
class V(Prediction):
    """`v = alpha eps - sigma x0` of a variance-preserving schedule (2202.00512)."""

    def denoised(self, raw: Tensor, x: Tensor, alpha: Scale, sigma: Scale) -> Denoised:
        """x0 and eps by the inverse rotation."""
        return Denoised(alpha * x - sigma * raw, sigma * x + alpha * raw)


@dataclass(frozen=True)
class EDM(Prediction):
    """The raw F of EDM's preconditioning (Karras et al., 2206.00364, equation 7 and table 1).

    `D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)` estimates x0; alpha is 1.

    Args:
        sigma_data: standard deviation of the images in [-1, 1] space.
        negative: the network gives -F, which diffusers calls the v-prediction of EDM.
    """

    sigma_data: float = 0.5
    negative: bool = False

    def network_input(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """`c_in x`."""
        return self._c_in(sigma) * x

    def denoised(self, raw: Tensor, x: Tensor, alpha: Scale, sigma: Scale) -> Denoised:
        """`x0 = D(x; sigma)`, and `eps = (x - x0) / sigma` written out, free of cancellation."""
        total = sigma**2 + self.sigma_data**2
        data = -self.sigma_data if self.negative else self.sigma_data
        slope = data * self._c_in(sigma) * raw  # c_out F / sigma
        return Denoised(self.sigma_data**2 / total * x + sigma * slope, sigma / total * x - slope)

    def _c_in(self, sigma: Scale) -> Scale:
        result: Scale = (sigma**2 + self.sigma_data**2) ** -0.5
        return result


def named_prediction(name: PredictionName, data_scale: float | None) -> Prediction:
    """What a name means on a schedule.

    Args:
        name: "epsilon", "x0", "v" or "edm".
        data_scale: sigma_data of a schedule whose networks are preconditioned as EDM's are: there
            "v" is -F.
    """
    if data_scale is not None:
        return EDM(data_scale, negative=name == "v")
    plain: dict[str, Prediction] = {"epsilon": Epsilon(), "x0": X0(), "v": V()}
    return plain[name]


def as_images(raw: object, x: Tensor) -> Tensor:
    """The tensor that a network gave, shaped as x (B, C, H, W) or with twice its channels.

    Args:
        raw: a tensor, a tuple that begins with one, or an object with `.sample` (diffusers).
        x: what the network was given.

    Raises:
        ValueError: it is something else.
    """
    raw = getattr(raw, "sample", raw)
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    if not isinstance(raw, Tensor):
        raise ValueError(
            f"the denoising network returned {type(raw).__name__}: it must return a tensor, "
            f"a tuple that begins with one, or an object with .sample"
        )
    double = (x.shape[0], 2 * x.shape[1], *x.shape[2:])
    if raw.shape not in (x.shape, double):
        raise ValueError(
            f"the denoising network returned shape {tuple(raw.shape)} for images of shape "
            f"{tuple(x.shape)}: it must keep the shape (or double the channels)"
        )
    return raw
