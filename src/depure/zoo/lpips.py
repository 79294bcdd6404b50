"""The networks of LPIPS, from files that you have on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from depure.weights import fit_weights, read_safetensors
from depure.zoo.nets import Normalize

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_Plan = tuple[tuple[int, int, int, int] | None, ...]  # outputs, kernel, stride, padding; or pool
_ALEXNET: _Plan = (
    (64, 11, 4, 2),
    None,
    (192, 5, 1, 2),
    None,
    (384, 3, 1, 1),
    (256, 3, 1, 1),
    (256, 3, 1, 1),
)
_VGG16: _Plan = tuple(
    entry
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
    for entry in (*[(width, 3, 1, 1)] * count, None)
)[:-1]
# The plan, the kernel of its pooling, the ReLUs compared, and the least image in pixels.
NETWORKS: dict[str, tuple[_Plan, int, tuple[int, ...], int]] = {
    "alexnet": (_ALEXNET, 3, (1, 4, 7, 9, 11), 31),
    "vgg16": (_VGG16, 2, (3, 8, 15, 22, 29), 16),
}


class LPIPS(NamedTuple):
    """What `FeatureDistance` takes: with it, its square is the published LPIPS."""

    network: nn.Module
    layers: tuple[str, ...]
    weights: dict[str, Tensor]


def load_lpips(name: str, network: Path, linear: Path | None = None) -> LPIPS:
    """AlexNet or VGG-16 as LPIPS looks at them (Zhang et al., 1801.03924).

    Args:
        name: "alexnet" or "vgg16".
        network: safetensors with torchvision's weights of that network; the classifier in them
            is not needed.
        linear: safetensors with LPIPS' weights of the channels, named as in its release:
            `lin0.model.1.weight` to `lin4.model.1.weight`. Without them all channels count
            alike, as in Laidlaw et al. (2006.12655).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown network, or tensors that do not fit it.
    """
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}; got {name!r}")
    built = _Features(name)
    tensors = {k: v for k, v in read_safetensors(network).items() if k.startswith("features.")}
    fit_weights(built, tensors, network)
    layers = tuple(f"features.{i}" for i in NETWORKS[name][2])
    weights = {} if linear is None else _channel_weights(linear, name)
    return LPIPS(built.eval().requires_grad_(False), layers, weights)


class _Features(nn.Module):
    """The convolutions of one network, under torchvision's names."""

    def __init__(self, name: str) -> None:
        super().__init__()
        plan, pooling, _, self.least = NETWORKS[name]
        self.normalize = Normalize(_MEAN, _STD)
        parts: list[nn.Module] = []
        channels = 3
        for entry in plan:
            if entry is None:
                parts.append(nn.MaxPool2d(pooling, 2))
                continue
            outputs, kernel, stride, padding = entry
            parts += [nn.Conv2d(channels, outputs, kernel, stride, padding), nn.ReLU()]
            channels = outputs
        self.features = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Features of images (B, 3, H, W), or (B, 1, H, W) in grey, in [0, 1].

        Raises:
            ValueError: the images are too small to be pooled so often.
        """
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        if min(x.shape[-2:]) < self.least:
            raise ValueError(
                f"this network pools images of {self.least} pixels or more; got "
                f"{tuple(x.shape[-2:])}: compare by a classifier of such images instead"
            )
        out: Tensor = self.features(self.normalize(x))
        return out


def _channel_weights(path: Path, name: str) -> dict[str, Tensor]:
    """The weights of each layer's channels (C,), known to fit."""
    tensors, plan = read_safetensors(path), [e for e in NETWORKS[name][0] if e is not None]
    places = list(range(5)) if name == "alexnet" else [1, 3, 6, 9, 12]
    found = {}
    for i, (layer, place) in enumerate(zip(NETWORKS[name][2], places, strict=True)):
        weight, channels = tensors.get(f"lin{i}.model.1.weight"), plan[place][0]
        if weight is None or weight.numel() != channels:
            got = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
            raise ValueError(
                f"{path} does not hold LPIPS' weights for {name}: lin{i}.model.1.weight is {got}, "
                f"not of {channels} channels"
            )
        found[f"features.{layer}"] = weight.flatten()
    return found
