"""What an attacker may do to an image: norms of the pixel change."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from depure.noise import Noise
from depure.records import came
from depure.rows import per_image


class Ball(ABC):
    """The images that an attacker may turn an image into: those in [0, 1] within `eps` of it."""

    eps: float
    attacked_by: ClassVar[str] = "PGD or APGD"  # for the error message of other attacks

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """Size of each change (B, C, H, W), shape (B,)."""

    @abstractmethod
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """x_adv moved into the ball around x and into [0, 1], both (B, C, H, W)."""

    @abstractmethod
    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each image (B,) is in the ball and in [0, 1], up to float32 rounding."""

    def diameter(self, pixels: int) -> float:
        """The largest size of a change between two images of so many pixels and channels."""
        return math.inf

    def check_images(self, x: Tensor) -> None:
        """Refuse an eps that lets every image (B, C, H, W) become every other.

        Raises:
            ValueError: says how large the change between two such images can be.
        """
        most = self.diameter(x[0].numel())
        if self.eps > most:
            raise ValueError(
                f"eps must be at most {most:g}, the largest {type(self).__name__} change between "
                f"two images of {'x'.join(str(n) for n in x.shape[1:])}; got {self.eps:g}: choose "
                f"a smaller one"
            )


class Norm(Ball):
    """A norm of the change of pixels is at most `eps`; norms are per image."""

    @property
    @abstractmethod
    def default_step(self) -> float:
        """Step size of ADDT's PGD for this eps."""

    @abstractmethod
    def ascend(self, grad: Tensor) -> Tensor:
        """The step of norm 1 that raises a linear loss most, (B, ...); 0 where the gradient is."""

    @abstractmethod
    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """A uniformly random point of the ball around each image, cut to [0, 1]."""

    @abstractmethod
    def _into(self, delta: Tensor) -> Tensor:
        """The nearest perturbation (in L2) of norm at most eps."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """x_adv moved into the ball around x and into [0, 1].

        Cutting to [0, 1] after the projection stays in the ball, as x itself lies in [0, 1].
        """
        return (x + self._into(x_adv - x)).clamp(0.0, 1.0)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each image (B,) is in the ball and in [0, 1], up to float32 rounding."""
        inside = self.size(x_adv - x) <= self.eps * (1.0 + 1e-5) + 1e-6
        low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
        return inside & (low >= 0.0) & (high <= 1.0)


def as_norm(ball: Ball) -> Norm:
    """The ball, for what works in norms of the pixel change only.

    Raises:
        ValueError: it bounds something else.
    """
    if not isinstance(ball, Norm):
        raise ValueError(f"this works in the balls Linf, L2 and L1; got {ball}: choose one of them")
    return ball


def check_eps(eps: float, most: float = math.inf, cure: str = "choose a smaller one") -> float:
    """eps as a float (NumPy's become one); ValueError unless 0 < eps <= most."""
    huge = isinstance(eps, int) and abs(eps) >= 2**63  # too large for a float, perhaps
    real = isinstance(eps, Real) and not isinstance(eps, bool) and not huge
    if not (real and 0.0 < float(eps) < math.inf):
        raise ValueError(
            f"eps must be positive and finite, a number for images in [0, 1]; got {came(eps)}"
        )
    if eps > most:
        raise ValueError(
            f"eps must be at most {most:g}, for images in [0, 1]; got {eps}: "
            + cure.format(eps=eps)
        )
    return float(eps)


@dataclass(frozen=True)
class Linf(Norm):
    """Every pixel changes by at most eps, which is at most 1."""

    eps: float = 8 / 255

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_eps(self.eps, 1.0, "did you mean {eps:g}/255?"))

    @property
    def default_step(self) -> float:
        """eps / 4 (2/255 at 8/255)."""
        return self.eps / 4.0

    def diameter(self, pixels: int) -> float:
        """1: a pixel from black to white."""
        return 1.0

    def size(self, delta: Tensor) -> Tensor:
        """Largest absolute change, (B,)."""
        return delta.flatten(1).abs().amax(1)

    def ascend(self, grad: Tensor) -> Tensor:
        """The gradient's signs."""
        return grad.sign()

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """Uniform in the cube."""
        return self.project(x + self.eps * (2.0 * noise.uniform("start", 0, x) - 1.0), x)

    def _into(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps)


@dataclass(frozen=True)
class L2(Norm):
    """The Euclidean norm of the change is at most eps."""

    eps: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_eps(self.eps))

    @property
    def default_step(self) -> float:
        """eps / 5 (0.1 at 0.5)."""
        return self.eps / 5.0

    def diameter(self, pixels: int) -> float:
        """The square root of `pixels`: all of them from black to white."""
        return math.sqrt(pixels)

    def size(self, delta: Tensor) -> Tensor:
        """Euclidean norm, (B,)."""
        return delta.flatten(1).square().sum(1).sqrt()

    def ascend(self, grad: Tensor) -> Tensor:
        """The gradient over its own norm; rescaled first, so tiny gradients do not vanish."""
        largest = grad.flatten(1).abs().amax(1)
        scaled = grad / per_image(torch.where(largest > 0, largest, 1.0), grad)
        norm = self.size(scaled)
        return scaled / per_image(torch.where(norm > 0, norm, 1.0), grad)

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """Uniform in the ball: a normal direction at radius eps * u**(1/d)."""
        direction = self.ascend(noise.normal("start", 0, x))
        u = noise.uniform("radius", 0, x[:, :1, :1, :1])
        return self.project(x + self.eps * u ** (1.0 / x[0].numel()) * direction, x)

    def _into(self, delta: Tensor) -> Tensor:
        norm = self.size(delta)
        factor = torch.where(norm > self.eps, self.eps / norm.clamp_min(1e-30), 1.0)
        return delta * per_image(factor, delta)


@dataclass(frozen=True)
class L1(Norm):
    """The absolute changes add up to at most eps.

    `project` is the exact projection onto the ball and the box together: projecting onto one and
    then the other leaves part of the budget unused (Croce & Hein, 2103.01208, section 2).

    The steepest step moves one pixel, and moves it on when it has reached 0 or 1 already: attack
    this ball with `APGD`, whose steps are sparse but not that sparse, rather than with `PGD`.
    """

    eps: float = 12.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", check_eps(self.eps))

    @property
    def default_step(self) -> float:
        """eps / 12 (ADBM's 1 at 12)."""
        return self.eps / 12.0

    def diameter(self, pixels: int) -> float:
        """`pixels`: all of them from black to white."""
        return float(pixels)

    def size(self, delta: Tensor) -> Tensor:
        """Sum of the absolute changes, (B,)."""
        return delta.flatten(1).abs().sum(1)

    def ascend(self, grad: Tensor) -> Tensor:
        """The sign of the largest entry of the gradient, the first of equals; 0 elsewhere."""
        flat = grad.flatten(1)
        place = flat.abs().argmax(1, keepdim=True)
        step = torch.zeros_like(flat).scatter(1, place, flat.gather(1, place).sign())
        return step.view_as(grad)

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """Uniform in the ball: a Laplace direction at radius eps * u**(1/d)."""
        side = 2.0 * noise.uniform("start", 0, x) - 1.0
        laplace = -side.sign() * side.abs().clamp_min(1e-30).log()
        u = noise.uniform("radius", 0, x[:, :1, :1, :1])
        radius = self.eps * u ** (1.0 / x[0].numel())
        norm = self.size(laplace).clamp_min(1e-30)
        return self.project(x + radius * laplace / per_image(norm, x), x)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point nearest to x_adv (in L2) that is in the ball around x and in [0, 1].

        Exact: the change of a pixel is cut down by one number common to all pixels of the image,
        and to the room the pixel has left (2103.01208, section 2).
        """
        delta = x_adv - x
        room = torch.where(delta > 0, 1.0 - x, x).clamp_min(0.0)
        allowed = _shrink(delta, room, self.eps)
        near = (x + allowed).clamp(0.0, 1.0)
        # Thousands of pixels rounded away from x would leave the ball: round those towards it.
        return torch.where((near - x).abs() > allowed.abs(), torch.nextafter(near, x), near)

    def _into(self, delta: Tensor) -> Tensor:
        return _shrink(delta, torch.full_like(delta, torch.inf), self.eps)


def _shrink(delta: Tensor, room: Tensor, eps: float) -> Tensor:
    """The perturbation nearest to delta (B, ...) with |.| <= room and an L1 norm of at most eps.

    It is sign(delta) * min(max(|delta| - cut, 0), room). The norm falls with the cut along
    straight pieces, whose corners are where a pixel leaves its room or reaches 0: sort them,
    find the piece that crosses eps by bisection, and solve it.
    """
    size, space = delta.flatten(1).abs(), room.flatten(1)
    excess = size - space

    def left(cut: Tensor) -> Tensor:
        return torch.minimum((size - cut).clamp_min(0.0), space)

    corners = torch.cat([size, excess.clamp_min(0.0)], 1).sort(1).values
    low = corners.new_zeros(len(corners), 1, dtype=torch.int64)
    high = torch.full_like(low, corners.shape[1] - 1)
    for _ in range(corners.shape[1].bit_length()):
        middle = (low + high) // 2
        over = left(corners.gather(1, middle)).sum(1, keepdim=True) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    start, end = corners.gather(1, low), corners.gather(1, high)
    sloped = ((size >= end) & (excess < end)).sum(1, keepdim=True).clamp_min(1)
    cut = start + (left(start).sum(1, keepdim=True) - eps) / sloped
    fits = left(torch.zeros_like(cut)).sum(1, keepdim=True) <= eps
    cut = torch.where(fits, 0.0, torch.minimum(cut, end))
    kept = left(cut)
    kept = kept * (eps / kept.sum(1, keepdim=True)).clamp_max(1.0)  # what rounding added
    return (delta.flatten(1).sign() * kept).view_as(delta)
