"""What an attacker may do (a ball around each image) and what he knows (the defence's noise)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from depure.noise import Noise


class Ball(ABC):
    """Perturbations of norm at most `eps` that keep the image in [0, 1]; norms are per image."""

    eps: float

    @property
    @abstractmethod
    def default_step(self) -> float:
        """Step size of ADDT's PGD for this eps."""

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation (B, ...), shape (B,)."""

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


def _check_eps(eps: float) -> None:
    if not (eps > 0.0 and math.isfinite(eps)):
        raise ValueError(f"eps must be positive and finite, for images in [0, 1]; got {eps}")


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Linf(Ball):
    """Every pixel changes by at most eps."""

    eps: float = 8 / 255

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    @property
    def default_step(self) -> float:
        """eps / 4 (2/255 at 8/255)."""
        return self.eps / 4.0

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
class L2(Ball):
    """The Euclidean norm of the change is at most eps."""

    eps: float = 0.5

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    @property
    def default_step(self) -> float:
        """eps / 5 (0.1 at 0.5)."""
        return self.eps / 5.0

    def size(self, delta: Tensor) -> Tensor:
        """Euclidean norm, (B,)."""
        return delta.flatten(1).square().sum(1).sqrt()

    def ascend(self, grad: Tensor) -> Tensor:
        """The gradient over its own norm; rescaled first, so tiny gradients do not vanish."""
        largest = grad.flatten(1).abs().amax(1)
        scaled = grad / _per_image(torch.where(largest > 0, largest, 1.0), grad)
        norm = self.size(scaled)
        return scaled / _per_image(torch.where(norm > 0, norm, 1.0), grad)

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """Uniform in the ball: a normal direction at radius eps * u**(1/d)."""
        direction = self.ascend(noise.normal("start", 0, x))
        u = noise.uniform("radius", 0, x[:, :1, :1, :1])
        return self.project(x + self.eps * u ** (1.0 / x[0].numel()) * direction, x)

    def _into(self, delta: Tensor) -> Tensor:
        norm = self.size(delta)
        factor = torch.where(norm > self.eps, self.eps / norm.clamp_min(1e-30), 1.0)
        return delta * _per_image(factor, delta)


@dataclass(frozen=True)
class Threat:
    """A ball, and the noise stages whose numbers the attacker knows.

    At the known stages, attacker and judge share exactly the same numbers, per image: knowing
    all stages is the deterministic white-box setting (DW-box), "forward" alone DW-forward,
    "reverse" alone DW-reverse; knowing none is the ordinary white-box with EoT.

    Args:
        ball: what the attacker may change.
        knows: the stages known.
        pool: fixed draws an image has at the known stages; the attacker knows them all, but not
            which one comes next (DW-semi-128 of ADDT: 128).
        mix: share of fresh noise at the known stages, ``sqrt(1 - mix**2) known + mix fresh``: 0
            is DW-box, 1 the ordinary white-box.

    Raises:
        ValueError: a setting is out of range, both pool and mix are set, or neither has a stage
            to act on.

    Example:
        >>> Threat(Linf(8 / 255), knows=("forward", "reverse"))
        Threat(ball=Linf(eps=0.03137254901960784), knows=('forward', 'reverse'), pool=1, mix=0.0)
    """

    ball: Ball
    knows: tuple[str, ...] = ()
    pool: int = 1
    mix: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.knows, str):
            raise ValueError(f"knows must be a tuple of stage names; got {self.knows!r}")
        if not isinstance(self.pool, int) or self.pool < 1:
            raise ValueError(f"pool must be at least 1 draw, a whole number; got {self.pool}")
        if not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"mix must lie in [0, 1]; got {self.mix}")
        if self.pool > 1 and self.mix > 0.0:
            raise ValueError(f"pool and mix exclude each other; got {self.pool} and {self.mix}")
        if (self.pool > 1 or self.mix > 0.0) and not self.knows:
            raise ValueError(
                "pool and mix act on known noise: name stages in knows, e.g. ('forward',)"
            )

    def hold(self, noise: Noise) -> Noise:
        """The noise with the known stages held as this threat says."""
        if self.mix > 0.0:
            return noise.mix(self.mix, *self.knows)
        return noise.pool(self.pool, *self.knows)
