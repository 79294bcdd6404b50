"""The UNet of DDPM (2006.11239) and its kin, down to NCSN++ (2011.13456)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from depure.networks.unets.blocks import Down, Middle, SkipDown, SkipUp, Up
from depure.networks.unets.embedding import Perceptron, class_embedding, time_projection
from depure.networks.unets.settings import UNetSettings

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class UNet(nn.Module):
    """`(x, t) -> prediction`, with the weight names and the results of diffusers' `UNet2DModel`.

    On a CPU the results and gradients are equal to the bit, and so are fresh weights from the same
    state of torch's generator (but for the random frequencies of a "fourier" time embedding).

    Args:
        settings: widths, kinds of blocks and the rest; kept as `config`, as diffusers calls it.

    Example:
        >>> network = UNet(UNetSettings(block_out_channels=(32, 64), norm_num_groups=8,
        ...     down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2))
        >>> network(torch.zeros(2, 3, 8, 8), torch.tensor([0, 999])).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        self.config = settings
        self.centres = settings.center_input_sample
        self.divides = settings.time_embedding_type == "fourier"
        widths = settings.widths
        self.conv_in = nn.Conv2d(settings.in_channels, widths[0], 3, padding=1)
        self.time_proj, features = time_projection(settings)
        self.time_embedding = Perceptron(features, settings.time_features)
        self.class_embedding = class_embedding(settings, features)
        down = _down_blocks(settings)
        middle = None if settings.mid_block_type is None else Middle(settings)
        # Made in one order, listed in another: both are diffusers', see `blocks`.
        self.down_blocks, self.up_blocks = down, _up_blocks(settings)
        self.mid_block = middle
        groups = settings.norm_num_groups or min(widths[0] // 4, 32)
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], settings.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], settings.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor | float, classes: Tensor | None = None) -> Tensor:
        """The raw prediction (B, out_channels, H, W).

        Args:
            x: images (B, in_channels, H, W); each halving must divide H and W.
            t: times (B,), or one for all.
            classes: labels (B,), for a network with classes only.

        Raises:
            ValueError: the size cannot be halved, or the classes are missing or unexpected.
        """
        factor = 2 ** (len(self.config.widths) - 1)
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"height and width must be multiples of {factor} for this UNet; got "
                f"{tuple(x.shape)}: pad or resize the images"
            )
        x = 2 * x - 1.0 if self.centres else x
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        time = self._embedded(times, classes)
        out = self._through_blocks(x, time)
        return out / times[:, None, None, None] if self.divides else out

    def _embedded(self, times: Tensor, classes: Tensor | None) -> Tensor:
        dtype = self.conv_in.weight.dtype
        time: Tensor = self.time_embedding(self.time_proj(times).to(dtype))
        if self.class_embedding is None:
            if classes is not None:
                raise ValueError("classes were given to a UNet without classes: leave them out")
            return time
        if classes is None:
            raise ValueError("this UNet needs classes, one label an image: pass classes=")
        if self.config.class_embed_type == "timestep":
            classes = self.time_proj(classes).to(dtype)
        told: Tensor = self.class_embedding(classes)
        return time + told.to(dtype)

    def _through_blocks(self, x: Tensor, time: Tensor) -> Tensor:
        image, x = x, self.conv_in(x)
        kept = [x]
        for block in self.down_blocks:
            results, image = block(x, time, image)
            kept += results
            x = results[-1]
        x = x if self.mid_block is None else self.mid_block(x, time)
        made = None
        for block in self.up_blocks:
            sides = [kept.pop() for _ in range(self.config.layers_per_block + 1)]
            x, made = block(x, time, sides, made)
        out: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return out if made is None else out + made

    def extra_repr(self) -> str:
        """The settings."""
        return repr(self.config)


def _down_blocks(settings: UNetSettings) -> nn.ModuleList:
    blocks, widths = nn.ModuleList(), settings.widths
    for i, kind in enumerate(settings.kinds[0]):
        made = SkipDown if kind.resample == "skip" else Down
        blocks.append(made(kind, settings, widths[max(i - 1, 0)], widths[i], i < len(widths) - 1))
    return blocks


def _up_blocks(settings: UNetSettings) -> nn.ModuleList:
    blocks, widths = nn.ModuleList(), settings.widths[::-1]
    last = len(widths) - 1
    for i, kind in enumerate(settings.kinds[1]):
        made = SkipUp if kind.resample == "skip" else Up
        sides = [widths[i]] * settings.layers_per_block + [widths[min(i + 1, last)]]
        blocks.append(made(kind, settings, sides, widths[max(i - 1, 0)], widths[i], i < last))
    return blocks


def current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under today's names: files from before diffusers 0.15 call attention's otherwise."""
    renamed = {}
    for name, tensor in tensors.items():
        block, _, end = name.rpartition(".")
        parent, _, part = block.rpartition(".")
        old = "attentions." in parent and part in _OLD_NAMES
        renamed[f"{parent}.{_OLD_NAMES[part]}.{end}" if old else name] = tensor
    return renamed
