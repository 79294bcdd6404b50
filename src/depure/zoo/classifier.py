"""Classifiers by name: bundled or published weights, safetensors only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from depure.weights import fit_weights, read_safetensors
from depure.zoo.nets import CifarResNet, SmallCNN
from depure.zoo.wide import WideResNet, wide_resnet_sizes

BUNDLED = Path(__file__).parent / "weights"
_RESNET_DEPTHS = (20, 32, 44, 56, 110)


def load_classifier(spec: str) -> nn.Module:
    """A classifier of images in `[0, 1]` to logits, frozen and in eval mode.

    Args:
        spec: `"digits"` or `"digits-adversarial"` for the bundled ones (8x8 greyscale; trained
            plainly, and by PGD-AT at Linf 0.2), or `"ARCH:PATH.safetensors"` with
            ARCH one of small-cnn, resnet20, resnet32, resnet44, resnet56, resnet110 (CIFAR) or
            wrn-DEPTH-WIDTH (as in RobustBench: wrn-28-10). The width of a small-cnn and numbers
            of classes are read off the tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the architecture is unknown, the file is damaged or no safetensors file, or
            its tensors do not fit the architecture.

    Example:
        >>> load_classifier("digits")(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if not isinstance(spec, str):
        raise TypeError(f"the name of a classifier must be a text; got {type(spec).__name__}")
    if spec in ("digits", "digits-adversarial"):
        return _load_classifier(small_cnn_of, BUNDLED / spec / "classifier.safetensors")
    arch, _, path = spec.partition(":")
    wide = wide_resnet_sizes(arch)
    builder = _BUILDERS.get(arch) if wide is None else _wide_resnet_of(*wide)
    if builder is None or not path:
        raise ValueError(
            f'no classifier {spec!r}: expected "digits", "digits-adversarial" or '
            f'"ARCH:PATH.safetensors" with ARCH one of {", ".join(_BUILDERS)}, wrn-DEPTH-WIDTH'
        )
    return _load_classifier(builder, Path(path))


def small_cnn_of(tensors: Mapping[str, Tensor]) -> SmallCNN:
    """An untrained `SmallCNN` of the size that the tensors have.

    Raises:
        KeyError: a tensor that tells the size is missing.
    """
    width, channels = tensors["features.0.weight"].shape[:2]
    return SmallCNN(channels, len(tensors["linear.bias"]), width)


def _resnet_of(depth: int) -> Callable[[Mapping[str, Tensor]], nn.Module]:
    return lambda tensors: CifarResNet(depth, len(tensors["linear.bias"]))


def _wide_resnet_of(depth: int, width: int) -> Callable[[Mapping[str, Tensor]], nn.Module]:
    return lambda tensors: WideResNet(depth, width, len(tensors["fc.bias"]))


_BUILDERS: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "small-cnn": small_cnn_of,
    **{f"resnet{depth}": _resnet_of(depth) for depth in _RESNET_DEPTHS},
}


def _load_classifier(build: Callable[[Mapping[str, Tensor]], nn.Module], path: Path) -> nn.Module:
    tensors = read_safetensors(path)
    try:
        network = build(tensors)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold the chosen architecture ({error} is missing): "
            "name the architecture it was trained with"
        ) from error
    fit_weights(network, tensors, path)
    return network.eval().requires_grad_(False)
