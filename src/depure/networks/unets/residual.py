"""The residual block that a UNet consists of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from depure.networks.unets.resample import RESAMPLE
from depure.networks.unets.settings import UNetSettings

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of one residual block.

    Args:
        channels: in.
        out: channels out.
        groups: of the first norm.
        groups_out: of the second norm.
        resample: a key of `RESAMPLE`, or None.
        scale: the sum of input and result is divided by it.
    """

    channels: int
    out: int
    groups: int
    groups_out: int
    resample: str | None = None
    scale: float = 1.0


class Residual(nn.Module):
    """Norm, activation, convolution; time; norm, activation, dropout, convolution; the sum.

    Args:
        shape: of this block.
        settings: of the whole network.
    """

    def __init__(self, shape: Shape, settings: UNetSettings) -> None:
        super().__init__()
        self.scale = shape.scale
        self.scales_by_time = settings.resnet_time_scale_shift == "scale_shift"
        self.resample = shape.resample or ""
        told = 2 * shape.out if self.scales_by_time else shape.out
        self.norm1 = nn.GroupNorm(shape.groups, shape.channels, settings.norm_eps)
        self.conv1 = nn.Conv2d(shape.channels, shape.out, 3, padding=1)
        self.time_emb_proj = nn.Linear(settings.time_features, told)
        self.norm2 = nn.GroupNorm(shape.groups_out, shape.out, settings.norm_eps)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv2 = nn.Conv2d(shape.out, shape.out, 3, padding=1)
        self.nonlinearity = ACTIVATIONS[settings.act_fn]()
        filtered = self.resample.startswith("filtered")
        self.conv_shortcut = (
            nn.Conv2d(shape.channels, shape.out, 1)
            if filtered or shape.channels != shape.out
            else None
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """From x (B, C, H, W) and time (B, F) to (B, out, H', W')."""
        h = self.nonlinearity(self.norm1(x))
        if self.resample:
            resample = RESAMPLE[self.resample]
            x, h = resample(x), resample(h)
        h = self.conv1(h)
        told = self.time_emb_proj(self.nonlinearity(time))[:, :, None, None]
        if self.scales_by_time:
            factor, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + factor) + shift
        else:
            h = self.norm2(h + told)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        if self.conv_shortcut is not None:
            # As diffusers does: the layout decides how a convolution rounds.
            x = self.conv_shortcut(x.contiguous() if self.training else x)
        out: Tensor = x + h
        return out if self.scale == 1 else out / self.scale
