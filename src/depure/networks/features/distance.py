"""How alike two images look to a network: a distance of its features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depure.rows import parts, rows_at_once
from depure.weights import fingerprint

_LAYERS = 5  # as many as the published LPIPS takes
_TINY = 1e-10


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
    ) -> None:
        super().__init__()
        self.network = network
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
        return parts(len(x), rows_at_once(x))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Distances (B,) of images (B, C, H, W), on whatever device they are."""
        return self.distance(x, self.features(other))

    def distance(self, x: Tensor, reference: Tensor) -> Tensor:
        """Distances (B,) of images from precomputed features (B, D)."""
        distances: Tensor = (self.features(x) - reference).norm(dim=1)
        return distances.to(x.device)

    @torch.enable_grad()
    def slope(self, x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (B,) from features (B, D), and their gradients by the images, 0 if not finite.

        Detached; one chunk of rows at a time holds a graph.
        """
        pairs = []
        for part in self.parts(x):
            leaf = x[part].detach().requires_grad_()
            gap = self.distance(leaf, reference[part].detach())
            (slope,) = torch.autograd.grad(gap.sum(), leaf)
            pairs.append((gap.detach(), torch.where(slope.isfinite(), slope, 0.0)))
        distances, slopes = zip(*pairs, strict=True)
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
