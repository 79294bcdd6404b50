"""Untrained networks by name and size."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from torch import nn

from depure.networks.unets import UNet, UNetSettings
from depure.records import came
from depure.zoo.nets import CifarResNet, SmallCNN
from depure.zoo.wide import WideResNet, wide_resnet_sizes


def new_unet(
    size: int,
    channels: int,
    widths: Sequence[int] = (32, 64),
    *,
    layers: int = 1,
    attention: Sequence[int] = (),
    dropout: float = 0.0,
) -> UNet:
    """A UNet with fresh weights from torch's generator.

    Args:
        size: height and width of the images.
        channels: of the images.
        widths: features of each resolution, halving from `size`.
        layers: residual blocks a resolution.
        attention: the resolutions (in pixels) that attend, besides the lowest.
        dropout: probability in every residual block.

    Raises:
        ValueError: the sizes do not fit together.
    """
    if not isinstance(size, Integral) or not isinstance(widths, Sequence) or not widths:
        raise ValueError(
            f"size must be a whole number and widths a list of them; got {came(size)} and "
            f"{came(widths)}"
        )
    if size < 1 or not all(isinstance(w, Integral) and 0 < w <= 2**20 for w in widths):
        raise ValueError(f"size and widths must be above 0; got {size:.40g} and {came(widths)}")
    if size % 2 ** (len(widths) - 1):
        raise ValueError(
            f"images of {size} pixels cannot be halved {len(widths) - 1} times: "
            f"give fewer widths than {tuple(widths)}"
        )
    groups = 32 if min(widths) >= 128 else 8  # DDPM's, or what small networks divide into
    if any(w % groups for w in widths):
        raise ValueError(f"widths must be multiples of {groups}; got {tuple(widths)}")
    attends = [size // 2**i in attention for i in range(len(widths))]
    settings = UNetSettings(
        sample_size=int(size),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(int(w) for w in widths),
        layers_per_block=layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        norm_num_groups=groups,
        dropout=dropout,
    )
    return UNet(settings)


def new_classifier(arch: str, channels: int, classes: int) -> nn.Module:
    """A classifier of images in `[0, 1]` with fresh weights from torch's generator.

    Args:
        arch: `"small-cnn"` or `"small-cnn-WIDTH"` (features of the first half; 32), or
            `"resnetDEPTH"` (CIFAR, three channels; depth 6n + 2), or `"wrn-DEPTH-WIDTH"`
            (three channels; depth 6n + 4).
        channels: of the images.
        classes: number of logits.

    Raises:
        ValueError: the architecture is unknown, or not for such images.
    """
    if not isinstance(arch, str):
        raise TypeError(f"arch must be a text; got {type(arch).__name__}")
    name, _, number = arch.partition("small-cnn")
    if not name and arch.startswith("small-cnn") and (number == "" or number[1:].isdigit()):
        return SmallCNN(channels, classes, int(number[1:] or 32))
    depth, wide = arch.removeprefix("resnet"), wide_resnet_sizes(arch)
    deep = arch.startswith("resnet") and depth.isdigit()
    if (deep or wide) and channels != 3:
        raise ValueError(f"{arch} takes 3 channels; the images have {channels}")
    if wide:
        return WideResNet(*wide, classes)
    if deep:
        return CifarResNet(int(depth), classes)
    raise ValueError(
        f"no architecture {arch!r}: take small-cnn, small-cnn-WIDTH, resnetDEPTH "
        "(resnet20) or wrn-DEPTH-WIDTH (wrn-28-10)"
    )
