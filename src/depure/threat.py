"""What an attacker may do (a ball around each image) and what he knows (the defence's noise)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional

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


def _check_eps(eps: float, most: float = math.inf, cure: str = "choose a smaller one") -> None:
    real = isinstance(eps, Real) and not isinstance(eps, bool) and abs(eps) < 1e300  # no huge int
    if not (real and 0.0 < eps < math.inf):
        raise ValueError(
            f"eps must be positive and finite, a number for images in [0, 1]; got {eps!r:.60}"
        )
    if eps > most:
        raise ValueError(
            f"eps must be at most {most:g}, for images in [0, 1]; got {eps}: "
            + cure.format(eps=eps)
        )


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Linf(Ball):
    """Every pixel changes by at most eps, which is at most 1."""

    eps: float = 8 / 255

    def __post_init__(self) -> None:
        _check_eps(self.eps, 1.0, "did you mean {eps:g}/255?")

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
class L2(Ball):
    """The Euclidean norm of the change is at most eps."""

    eps: float = 0.5

    def __post_init__(self) -> None:
        _check_eps(self.eps)

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
class L1(Ball):
    """The absolute changes add up to at most eps.

    `project` is the exact projection onto the ball and the box together: projecting onto one and
    then the other leaves part of the budget unused (Croce & Hein, 2103.01208, section 2).

    The steepest step moves one pixel, and moves it on when it has reached 0 or 1 already: attack
    this ball with `APGD`, whose steps are sparse but not that sparse, rather than with `PGD`.
    """

    eps: float = 12.0

    def __post_init__(self) -> None:
        _check_eps(self.eps)

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
        return self.project(x + radius * laplace / _per_image(norm, x), x)

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


class NonPixel(Ball):
    """A threat that is no norm of pixel changes; only attacks that are made for it work in it.

    `size` tells the largest pixel change, for the record; it is not what `eps` bounds.
    """

    made_for: str  # the attacks that work in it, for the error message

    @property
    def default_step(self) -> float:
        """Refused, like `ascend` and `start`: there is no step of pixels to take."""
        raise self._refusal()

    def size(self, delta: Tensor) -> Tensor:
        """Largest absolute pixel change, (B,); not bounded by eps."""
        return delta.flatten(1).abs().amax(1)

    def ascend(self, grad: Tensor) -> Tensor:
        """Refused."""
        raise self._refusal()

    def start(self, x: Tensor, noise: Noise) -> Tensor:
        """Refused."""
        raise self._refusal()

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Refused, unless the threat says otherwise."""
        raise self._refusal()

    def _into(self, delta: Tensor) -> Tensor:
        raise self._refusal()

    def _refusal(self) -> ValueError:
        return ValueError(
            f"{self!r} does not bound pixel changes: attack it with {self.made_for}, or choose "
            f"the ball Linf, L2 or L1"
        )


@dataclass(frozen=True)
class Flow(NonPixel):
    """Every pixel is fetched from at most eps away (Xiao et al., 1801.02612).

    Distances are measured along each axis, with the image reaching from -1 to 1: eps = 0.05 is
    0.8 pixels of an image of 32 x 32, the bound of Laidlaw et al. (2006.12655) and DiffPure.
    Values between pixels are interpolated linearly, and beyond the border the border goes on.

    A flow cannot be told from the image that it leads to, so `contains` checks what follows
    from the bound: a pixel lies between the least and the largest of the pixels within reach.
    That shows up any attack that paints; whether the image really is *one* flow's is the word of
    `StAdv`, which bounds its flow itself.
    """

    eps: float = 0.05
    made_for = "StAdv"

    def __post_init__(self) -> None:
        _check_eps(self.eps, 2.0, "the whole image reaches from -1 to 1")

    def reach(self, x: Tensor) -> tuple[float, float]:
        """How many pixels eps is, down and across, for images (B, C, H, W)."""
        return self.eps * x.shape[2] / 2.0, self.eps * x.shape[3] / 2.0

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each pixel of each image (B,) lies between those within reach of it."""
        down, across = (math.ceil(r * (1.0 - 1e-6)) for r in self.reach(x))
        window, edge = (2 * down + 1, 2 * across + 1), (down, across)
        high: Tensor = functional.max_pool2d(x, window, 1, edge)
        low: Tensor = -functional.max_pool2d(-x, window, 1, edge)
        inside = (x_adv >= low - 1e-5) & (x_adv <= high + 1e-5)
        inside &= (x_adv >= 0.0) & (x_adv <= 1.0)
        return inside.flatten(1).all(1)


@dataclass(frozen=True)
class Threat:
    """A ball, and the noise stages whose numbers the attacker knows.

    At the known stages, attacker and judge share exactly the same numbers, per image: knowing
    all stages is the deterministic white-box setting (DW-box), "forward" alone DW-forward,
    "reverse" alone DW-reverse; knowing none is the ordinary white-box with EoT.

    Args:
        ball: what the attacker may change.
        knows: the stages known.
        pool: fixed draws an image has, each a set of numbers for all known stages together; the
            attacker knows them all, but not which one comes next (DW-semi-128 of ADDT: 128).
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
        named = isinstance(self.knows, tuple | list) and all(isinstance(n, str) for n in self.knows)
        if not named:
            raise ValueError(f"knows must be a tuple of stage names; got {self.knows!r:.60}")
        if not isinstance(self.ball, Ball):
            raise ValueError(f"ball must be a Ball such as Linf(8 / 255); got {self.ball!r:.60}")
        if not isinstance(self.pool, int) or self.pool < 1:
            raise ValueError(f"pool must be at least 1 draw, a whole number; got {self.pool!r:.60}")
        if not isinstance(self.mix, Real) or not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"mix must lie in [0, 1]; got {self.mix!r:.60}")
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
