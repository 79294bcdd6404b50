"""The blocks of one resolution: on the way down, in the middle, on the way up.

Layers are made in the order in which diffusers makes them, so that fresh weights from the same
seed are the same, and stand in its order, so that an optimiser sums over them alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, cat, nn

from depure.networks.unets.attention import Attention
from depure.networks.unets.resample import Downsample, Upsample, filtered_double, filtered_half
from depure.networks.unets.residual import Residual, Shape
from depure.networks.unets.settings import Kind, UNetSettings

_SKIP_SCALE = math.sqrt(2.0)


def _plain(
    settings: UNetSettings, channels: int, out: int, resample: str | None = None
) -> Residual:
    groups = settings.norm_num_groups or 1  # checked: it is given where plain blocks are
    return Residual(Shape(channels, out, groups, groups, resample), settings)


def _quarter(channels: int) -> int:
    return min(channels // 4, 32)


def _attention(settings: UNetSettings, width: int, groups: int | None, scale: float) -> Attention:
    return Attention(width, settings.head_size(width), groups, settings.norm_eps, scale)


class Down(nn.Module):
    """Residual blocks, each with attention after it where the kind says so; then halving.

    Args:
        kind: of the block.
        settings: of the whole network.
        channels: in.
        out: channels out.
        halves: whether it ends with halving.
    """

    def __init__(
        self, kind: Kind, settings: UNetSettings, channels: int, out: int, halves: bool
    ) -> None:
        super().__init__()
        resnets, attentions = nn.ModuleList(), nn.ModuleList()
        for layer in range(settings.layers_per_block):
            resnets.append(_plain(settings, out if layer else channels, out))
            if kind.attention:
                attentions.append(_attention(settings, out, settings.norm_num_groups, 1.0))
        if kind.attention:
            self.attentions = attentions
        self.resnets = resnets
        how = settings.downsample_type if kind.resample == "choice" else kind.resample
        if halves and how in ("resnet", "residual"):
            self.downsamplers = nn.ModuleList([_plain(settings, out, out, "down")])
        elif halves:
            self.downsamplers = nn.ModuleList([Downsample(out, settings.downsample_padding)])
        self.halves, self.attends = halves, kind.attention

    def forward(self, x: Tensor, time: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """All results, the last of which goes on, and the image as it came."""
        results = _layers(self, x, time)
        if self.halves:
            results.append(_sampled(self.downsamplers[0], results[-1], time))
        return results, image


def _layers(block: Down | SkipDown, x: Tensor, time: Tensor) -> list[Tensor]:
    """The result of every residual block, with its attention where there is one."""
    results = []
    for layer, resnet in enumerate(block.resnets):
        x = resnet(x, time)
        x = block.attentions[layer](x) if block.attends else x
        results.append(x)
    return results


def _sampled(sampler: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    out: Tensor = sampler(x, time) if isinstance(sampler, Residual) else sampler(x)
    return out


class SkipDown(nn.Module):
    """A down block to which the image itself, halved alike, is added (2011.13456, NCSN++).

    Args: as `Down`.
    """

    def __init__(
        self, kind: Kind, settings: UNetSettings, channels: int, out: int, halves: bool
    ) -> None:
        super().__init__()
        self.attentions, self.resnets = nn.ModuleList(), nn.ModuleList()
        for layer in range(settings.layers_per_block):
            first = out if layer else channels
            shape = Shape(first, out, _quarter(first), _quarter(out), scale=_SKIP_SCALE)
            self.resnets.append(Residual(shape, settings))
            if kind.attention:
                self.attentions.append(_attention(settings, out, 32, _SKIP_SCALE))
        if halves:
            self.resnet_down = _filtered(settings, out, "filtered down")
            self.skip_conv = nn.Conv2d(3, out, 1)
        self.halves, self.attends = halves, kind.attention

    def forward(self, x: Tensor, time: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """All results, the last of which goes on, and the image at their resolution."""
        results = _layers(self, x, time)
        if self.halves:
            x, image = self.resnet_down(results[-1], time), filtered_half(image)
            results.append(self.skip_conv(image) + x)
        return results, image


def _filtered(settings: UNetSettings, width: int, resample: str) -> Residual:
    groups = _quarter(width)
    return Residual(Shape(width, width, groups, groups, resample, _SKIP_SCALE), settings)


class Middle(nn.Module):
    """A residual block, attention where wanted, a residual block.

    Args:
        settings: of the whole network.
    """

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        width, scale = settings.widths[-1], settings.mid_block_scale_factor
        groups = settings.norm_num_groups or _quarter(width)
        normed = groups if settings.resnet_time_scale_shift == "default" else None
        shape = Shape(width, width, groups, groups, scale=scale)
        resnets, attentions = nn.ModuleList([Residual(shape, settings)]), nn.ModuleList()
        if settings.add_attention:
            normed = settings.attn_norm_num_groups or normed
            attentions.append(_attention(settings, width, normed, scale))
        resnets.append(Residual(shape, settings))
        self.attentions, self.resnets = attentions, resnets

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """From (B, C, H, W) to the same shape."""
        x = self.resnets[0](x, time)
        for attention in self.attentions:
            x = attention(x)
        out: Tensor = self.resnets[1](x, time)
        return out


class Up(nn.Module):
    """Residual blocks over the results of the way down, attention, doubling.

    Args:
        kind: of the block.
        settings: of the whole network.
        sides: channels of the result of the way down that each residual block takes beside it.
        channels: in.
        out: channels out.
        doubles: whether it ends with doubling.
    """

    def __init__(
        self,
        kind: Kind,
        settings: UNetSettings,
        sides: Sequence[int],
        channels: int,
        out: int,
        doubles: bool,
    ) -> None:
        super().__init__()
        resnets, attentions = nn.ModuleList(), nn.ModuleList()
        for layer, side in enumerate(sides):
            resnets.append(_plain(settings, (out if layer else channels) + side, out))
            if kind.attention:
                attentions.append(_attention(settings, out, settings.norm_num_groups, 1.0))
        if kind.attention:
            self.attentions = attentions
        self.resnets = resnets
        how = settings.upsample_type if kind.resample == "choice" else kind.resample
        if doubles and how in ("resnet", "residual"):
            self.upsamplers = nn.ModuleList([_plain(settings, out, out, "up")])
        elif doubles:
            self.upsamplers = nn.ModuleList([Upsample(out)])
        self.doubles, self.attends = doubles, kind.attention

    def forward(
        self, x: Tensor, time: Tensor, sides: Sequence[Tensor], image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The result, and the image as it came.

        Args:
            x: (B, C, H, W).
            time: (B, F).
            sides: one a residual block, in their order.
            image: what Skip blocks have made so far.
        """
        for layer, (resnet, side) in enumerate(zip(self.resnets, sides, strict=True)):
            x = resnet(cat([x, side], dim=1), time)
            x = self.attentions[layer](x) if self.attends else x
        return _sampled(self.upsamplers[0], x, time) if self.doubles else x, image


class SkipUp(nn.Module):
    """An up block that adds its share to an image, which is doubled alike (NCSN++).

    Args: as `Up`.
    """

    def __init__(
        self,
        kind: Kind,
        settings: UNetSettings,
        sides: Sequence[int],
        channels: int,
        out: int,
        doubles: bool,
    ) -> None:
        super().__init__()
        self.attentions, self.resnets = nn.ModuleList(), nn.ModuleList()
        for layer, side in enumerate(sides):
            before = out if layer else channels
            # diffusers divides only the side's channels by 4 where a block attends; weights
            # were trained with it.
            groups = min(before + side // 4, 32) if kind.attention else _quarter(before + side)
            shape = Shape(before + side, out, groups, _quarter(out), scale=_SKIP_SCALE)
            self.resnets.append(Residual(shape, settings))
        if kind.attention:
            self.attentions.append(_attention(settings, out, 32, _SKIP_SCALE))
        if doubles:
            self.resnet_up = _filtered(settings, out, "filtered up")
            self.skip_conv = nn.Conv2d(out, 3, 3, padding=1)
            self.skip_norm = nn.GroupNorm(_quarter(out), out, settings.norm_eps)
            self.act = nn.SiLU()
        self.doubles = doubles

    def forward(
        self, x: Tensor, time: Tensor, sides: Sequence[Tensor], image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The result, and the image at its resolution; the arguments are those of `Up`."""
        for resnet, side in zip(self.resnets, sides, strict=True):
            x = resnet(cat([x, side], dim=1), time)
        for attention in self.attentions:
            x = attention(x)
        image = None if image is None else filtered_double(image)
        if self.doubles:
            share = self.skip_conv(self.act(self.skip_norm(x)))
            image = share if image is None else image + share
            x = self.resnet_up(x, time)
        return x, image
