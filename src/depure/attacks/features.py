"""What looks alike to a network: a distance of features, and the threat that it bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from depure.attacks.climb import pick, wide
from depure.rows import parts, rows_at_once
from depure.threat import NonPixel
from depure.weights import fingerprint

_LAYERS = 5  # as many as the published LPIPS takes
_TINY = 1e-10
_PROJECTIONS = 10  # Newton's steps before bisection
_OVERSHOOT = 0.1  # share by which Newton's steps aim inside
_HALVINGS = 20


class FeatureDistance(nn.Module):
    """How far apart two images look to a network: the Euclidean distance of its features.

    Features are the outputs of some layers, scaled at each place to norm 1 over the channels
    and divided by the square root of the number of places: Laidlaw et al. (2006.12655, section
    3), the root of LPIPS (Zhang et al., 1801.03924) with equal weights. It is the published
    LPIPS, up to that root, only for its network, its layers (after their ReLU) and its weights,
    which you have to load yourself; for any other network it is another distance, and bounds in
    one say nothing about bounds in the other.

    Args:
        network: images (B, C, H, W) in [0, 1] to anything, in eval mode; any classifier.
        layers: names of submodules with outputs (B, C, H, W), each run once; None takes up to 5
            convolutions spread evenly over the network in the order of their definition.
        weights: of the channels of layers (C,), at least 0; 1 where none are given.
        chunk: rows per forward pass, by the size of the images if None.

    Raises:
        ValueError: there is no such layer, no convolution, or a negative weight; at the call, if
            the network is in train mode or a layer gives no (B, C, H, W).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
        >>> distance = FeatureDistance(net)
        >>> distance(torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.chunk = network, chunk
        self.layers = _convolutions(network) if layers is None else tuple(layers)
        self.weights = dict(weights or {})
        self.training = network.training
        known = dict(network.named_modules())
        missing = [name for name in self.layers if name not in known or not name]
        if missing or not self.layers:
            raise ValueError(
                f"the network has no layer {missing[0] if missing else 'to compare'!r}: name "
                f"submodules that give (B, C, H, W), such as {', '.join(list(known)[1:4])}"
            )
        strange = [name for name in self.weights if name not in self.layers]
        if strange or any(bool((w < 0).any()) for w in self.weights.values()):
            raise ValueError(f"weights must be at least 0, for {self.layers}; got {self.weights}")

    def features(self, x: Tensor) -> Tensor:
        """Scaled features (B, D) of images (B, C, H, W), whose distances are meant."""
        if any(part.training for part in self.network.modules()):
            raise ValueError("the network that compares is in train mode: call .eval() on it")
        device = next((p.device for p in self.network.parameters()), x.device)
        return torch.cat([self._features(x[part].to(device)) for part in self.parts(x)])

    def parts(self, x: Tensor) -> list[slice]:
        """The rows of each forward pass."""
        return parts(len(x), rows_at_once(x, self.chunk))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Distances (B,) of images (B, C, H, W), on whatever device they are."""
        return self.apart(x, self.features(other))

    def apart(self, x: Tensor, known: Tensor) -> Tensor:
        """Distances (B,) of images from features (B, D) that are at hand."""
        apart: Tensor = (self.features(x) - known).norm(dim=1)
        return apart.to(x.device)

    @torch.enable_grad()
    def slope(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (B,) from features (B, D), and their gradients by the images, 0 if not finite.

        Detached; one chunk of rows at a time holds a graph.
        """
        found = []
        for part in self.parts(x):
            leaf = x[part].detach().requires_grad_()
            apart = self.apart(leaf, known[part].detach())
            (slope,) = torch.autograd.grad(apart.sum(), leaf)
            found.append((apart.detach(), torch.where(slope.isfinite(), slope, 0.0)))
        distances, slopes = zip(*found, strict=True)
        return torch.cat(distances), torch.cat(slopes)

    def _features(self, x: Tensor) -> Tensor:
        outputs: dict[str, Tensor] = {}
        parts = dict(self.network.named_modules())

        def keeping(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                outputs[name] = out

            return hook

        handles = [parts[name].register_forward_hook(keeping(name)) for name in self.layers]
        try:
            self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat([self._scaled(name, outputs.get(name)) for name in self.layers], 1)

    def _scaled(self, name: str, out: Tensor | None) -> Tensor:
        if not isinstance(out, Tensor) or out.ndim != 4:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"layer {name!r} must give (B, C, H, W); got {got}: choose others")
        norm = (out.square().sum(1, keepdim=True) + _TINY).sqrt()
        scaled = out / (norm * math.sqrt(out.shape[2] * out.shape[3]))
        if name in self.weights:
            scaled = scaled * self.weights[name].to(out).sqrt().view(1, -1, 1, 1)
        return scaled.flatten(1)

    def __repr__(self) -> str:
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        weights = f", weights={fingerprint(self.weights)}" if self.weights else ""
        return (
            f"FeatureDistance({type(self.network).__name__} {fingerprint(tensors)}, "
            f"layers={self.layers}{weights})"
        )


def _convolutions(network: nn.Module) -> tuple[str, ...]:
    """Names of up to 5 convolutions, the first and the last among them."""
    found = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    if "" in found or not found:
        raise ValueError(
            "the network has no convolutions inside to compare images by: name the layers"
        )
    count = min(_LAYERS, len(found))
    last = len(found) - 1
    return tuple(found[round(i * last / max(count - 1, 1))] for i in range(count))


@dataclass(frozen=True)
class Perceptual(NonPixel):
    """Images that look alike to a network: a `FeatureDistance` of at most eps.

    Laidlaw et al. (2006.12655) and DiffBreak attack with eps = 0.5 in the distance of AlexNet's
    features; with other networks 0.5 means another thing.

    Args:
        distance: what is bounded; the record has its `repr`, a fingerprint included.
        eps: the bound.

    Raises:
        ValueError: eps is not positive and finite.
    """

    distance: InitVar[FeatureDistance]
    eps: float = 0.5
    features: str = field(init=False, default="")
    made_for = "PPGD, LPA or LowFrequency"

    def __post_init__(self, distance: FeatureDistance) -> None:
        object.__setattr__(self, "_distance", distance)  # not a field: the record is plain data
        object.__setattr__(self, "features", repr(distance))
        if not (self.eps > 0.0 and math.isfinite(self.eps)):
            raise ValueError(f"eps must be positive and finite; got {self.eps}")

    @property
    def between(self) -> FeatureDistance:
        """What is bounded."""
        distance: FeatureDistance = vars(self)["_distance"]
        return distance

    @torch.no_grad()
    def apart(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distances (B,) of images from theirs."""
        apart: Tensor = self.between(x_adv, x)
        return apart

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each image (B,) is within eps and in [0, 1], up to float32 rounding."""
        low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
        near = self.apart(x_adv, x) <= self.eps * (1.0 + 1e-4) + 1e-6
        return near & (low >= 0.0) & (high <= 1.0)

    @torch.no_grad()
    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Images within eps near x_adv: Newton's steps down the distance, then bisection.

        Not the nearest (nobody knows it), but never outside: what Newton's steps do not bring
        in is moved on the straight line to x, and x itself is inside.
        """
        near = x_adv = x_adv.clamp(0.0, 1.0)
        known, rows = self.between.features(x), torch.arange(len(x), device=x.device)
        for _ in range(_PROJECTIONS):
            apart, slope = self.between.slope(near[rows], known[rows])
            outside = apart > self.eps
            rows, apart, slope = rows[outside], apart[outside], slope[outside]
            if not len(rows):
                return near
            near = near.index_copy(0, rows, self._stepped(near[rows], apart, slope))
        rows = rows[self.between.apart(near[rows], known[rows]) > self.eps]
        if not len(rows):
            return near
        line = self._on_the_line(x_adv[rows], x[rows], known[rows])
        return near.index_copy(0, rows, line)

    def _stepped(self, x_adv: Tensor, apart: Tensor, slope: Tensor) -> Tensor:
        """One step of Newton's method down to a little less than eps."""
        excess = apart - (1.0 - _OVERSHOOT) * self.eps
        length = excess / slope.flatten(1).square().sum(1).clamp_min(_TINY**2)
        there = (x_adv - wide(length, x_adv) * slope).clamp(0.0, 1.0)
        return torch.where(there.isfinite(), there, x_adv)

    def _on_the_line(self, x_adv: Tensor, x: Tensor, known: Tensor) -> Tensor:
        low, high = torch.zeros_like(x[:, 0, 0, 0]), torch.ones_like(x[:, 0, 0, 0])
        best = x
        for _ in range(_HALVINGS):
            middle = (low + high) / 2.0
            there = (x + wide(middle, x) * (x_adv - x)).clamp(0.0, 1.0)
            inside = self.between.apart(there, known) <= self.eps
            best = pick(inside, there, best)
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return best
