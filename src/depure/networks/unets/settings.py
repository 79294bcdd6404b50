"""Settings of a UNet, under the names that a published `config.json` uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from depure.records import came

_LARGEST = 2**20  # of any number: larger ones take all memory to build
_LONGEST = 64  # of any list, and layers of one block


class Kind(NamedTuple):
    """What sets one kind of block apart from the others."""

    attention: bool
    resample: str  # "conv", "residual" (a residual block), "choice" (as the settings say), "skip"


DOWN_KINDS = {
    "DownBlock2D": Kind(False, "conv"),
    "AttnDownBlock2D": Kind(True, "choice"),
    "ResnetDownsampleBlock2D": Kind(False, "residual"),
    "SkipDownBlock2D": Kind(False, "skip"),
    "AttnSkipDownBlock2D": Kind(True, "skip"),
}
UP_KINDS = {
    "UpBlock2D": Kind(False, "conv"),
    "AttnUpBlock2D": Kind(True, "choice"),
    "ResnetUpsampleBlock2D": Kind(False, "residual"),
    "SkipUpBlock2D": Kind(False, "skip"),
    "AttnSkipUpBlock2D": Kind(True, "skip"),
}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_type": ("conv", "resnet", None),
    "upsample_type": ("conv", "resnet", None),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": ("timestep", "identity", None),
}
_WHOLE = (
    "in_channels", "out_channels", "layers_per_block", "time_embedding_dim", "attention_head_dim",
    "norm_num_groups", "attn_norm_num_groups", "num_class_embeds", "num_train_timesteps",
)  # fmt: skip
_MAY_LACK = (*_WHOLE[3:], "freq_shift")
_SWITCHES = ("center_input_sample", "flip_sin_to_cos", "add_attention")


@dataclass(frozen=True)
class UNetSettings:
    """Settings of a `UNet`: names, meanings and defaults are those of diffusers' `UNet2DModel`.

    Args:
        sample_size: height and width of the images it was trained on; not used.
        in_channels: of the images.
        out_channels: twice `in_channels` where a variance is predicted, too.
        center_input_sample: map images from [0, 1] to [-1, 1] first.
        time_embedding_type: "positional" (sines and cosines), "fourier" (of the logarithm, at
            random frequencies; the output is divided by the time) or "learned" (one row a time).
        time_embedding_dim: features of the time; None means four times the first width.
        freq_shift: the frequencies are 10000^(-i / (half - freq_shift)), i = 0 .. half - 1.
        flip_sin_to_cos: cosines before sines.
        down_block_types: a name for each resolution, highest first; `UNetRes` may stand before it.
        mid_block_type: "UNetMidBlock2D", or None for no block in the middle.
        up_block_types: a name for each resolution, lowest first.
        block_out_channels: features of each resolution, highest first.
        layers_per_block: residual blocks of a down block; an up block has one more.
        mid_block_scale_factor: residual sums in the middle block are divided by it.
        downsample_padding: of the convolutions that halve; 0 pads right and bottom only.
        downsample_type: "conv" or "resnet", how `AttnDownBlock2D` halves.
        upsample_type: "conv" or "resnet", how `AttnUpBlock2D` doubles.
        dropout: probability in every residual block.
        act_fn: "silu" (or "swish"), "mish", "gelu" or "relu".
        attention_head_dim: features of one attention head; None means a single head.
        norm_num_groups: of the group norms; None only where all blocks are Skip blocks.
        attn_norm_num_groups: of the norm of the middle block's attention; None means
            `norm_num_groups`, and no norm under "scale_shift".
        norm_eps: of the group norms.
        resnet_time_scale_shift: "default" (the time is added) or "scale_shift" (it scales, too).
        add_attention: attend in the middle block.
        class_embed_type: "timestep", "identity", or None for `num_class_embeds` learned rows.
        num_class_embeds: number of classes; None for a network that takes none.
        num_train_timesteps: rows of the "learned" time embedding.

    Raises:
        ValueError: names the setting, what came and what was expected.

    Example:
        >>> UNetSettings.from_config({"block_out_channels": [32, 64], "norm_num_groups": 8,
        ...     "down_block_types": ["DownBlock2D"] * 2,
        ...     "up_block_types": ["UpBlock2D"] * 2}).widths
        (32, 64)
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float | None = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", *("AttnDownBlock2D",) * 3)
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (*("AttnUpBlock2D",) * 3, "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str | None = "conv"
    upsample_type: str | None = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(map(str, known))}")
        _check_blocks(self)
        _check_groups(self)
        _check_embeddings(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> UNetSettings:
        """Settings from a `config.json`; names that begin with an underscore are left out.

        Raises:
            ValueError: a setting is not known, or has a value that it cannot have.
        """
        public = {name: value for name, value in config.items() if not name.startswith("_")}
        known = {field.name for field in fields(cls)}
        for name in public:
            if name not in known:
                raise ValueError(
                    f"{name:.60} is no setting of this UNet (it came with {public[name]!r:.40}); "
                    f"known are {', '.join(sorted(known))}: leave it out if nothing hangs on it"
                )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in public.items()
        }
        return cls(**values)

    def to_config(self) -> dict[str, Any]:
        """What `from_config` reads, and diffusers, too."""
        settings = {"_class_name": "UNet2DModel", **asdict(self)}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in settings.items()}

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each resolution, highest first."""
        return self.block_out_channels

    @property
    def time_features(self) -> int:
        """Features that the residual blocks are told the time in."""
        return self.time_embedding_dim or self.widths[0] * 4

    @property
    def kinds(self) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
        """The kinds of the down blocks and of the up blocks."""
        down = (DOWN_KINDS[name.removeprefix("UNetRes")] for name in self.down_block_types)
        up = (UP_KINDS[name.removeprefix("UNetRes")] for name in self.up_block_types)
        return tuple(down), tuple(up)

    def head_size(self, width: int) -> int:
        """Features of one attention head in a block of that width."""
        return width if self.attention_head_dim is None else self.attention_head_dim


def _wrong(name: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{name} must be {expected}; got {came(value)}")


def _is_whole(value: object, least: int = 1) -> bool:
    plain = isinstance(value, int) and not isinstance(value, bool)
    return plain and least <= value <= _LARGEST  # type: ignore[operator]


def _is_real(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) <= _LARGEST  # type: ignore[arg-type]


def _check_numbers(settings: UNetSettings) -> None:
    for name in _WHOLE:
        value = getattr(settings, name)
        if not (_is_whole(value) or (value is None and name in _MAY_LACK)):
            raise _wrong(name, value, f"a whole number from 1 to {_LARGEST:,}")
    for name in _SWITCHES:
        if not isinstance(getattr(settings, name), bool):
            raise _wrong(name, getattr(settings, name), "true or false")
    reals = {
        "freq_shift": settings.freq_shift if settings.freq_shift is not None else 0,
        "mid_block_scale_factor": settings.mid_block_scale_factor,
        "norm_eps": settings.norm_eps,
        "dropout": settings.dropout,
    }
    for name, value in reals.items():
        if not _is_real(value):
            raise _wrong(name, value, f"a number within {_LARGEST:,}")
    if settings.layers_per_block > _LONGEST:
        raise _wrong(
            "layers_per_block", settings.layers_per_block, f"a whole number from 1 to {_LONGEST}"
        )
    if not _is_whole(settings.downsample_padding, 0) or settings.downsample_padding > 1:
        raise _wrong("downsample_padding", settings.downsample_padding, "0 or 1")
    if not 0 <= settings.dropout <= 1:
        raise _wrong("dropout", settings.dropout, "a probability")
    if settings.norm_eps < 0 or settings.mid_block_scale_factor == 0:
        raise ValueError(
            f"norm_eps must be at least 0 and mid_block_scale_factor not 0; got "
            f"{settings.norm_eps!r} and {settings.mid_block_scale_factor!r}"
        )
    size = settings.sample_size
    sizes = size if isinstance(size, tuple) else (1 if size is None else size,)
    if len(sizes) > 2 or not all(_is_whole(s) for s in sizes):
        raise _wrong("sample_size", size, "a whole number, or a pair of them")


def _check_blocks(settings: UNetSettings) -> None:
    widths = settings.widths
    if not _is_list(widths) or not all(_is_whole(width) for width in widths):
        raise _wrong("block_out_channels", widths, f"a list of whole numbers up to {_LARGEST:,}")
    for name, known in (("down_block_types", DOWN_KINDS), ("up_block_types", UP_KINDS)):
        types = getattr(settings, name)
        if not _is_list(types) or len(types) != len(widths):
            raise _wrong(name, types, f"a list as long as block_out_channels ({len(widths)})")
        for found in types:
            if not isinstance(found, str) or found.removeprefix("UNetRes") not in known:
                raise _wrong(name, found, f"a list of {', '.join(known)}")
    down, up = settings.kinds
    skips = [kind.resample == "skip" for kind in (*down, *up)]
    if any(skips) and not settings.in_channels == settings.out_channels == 3:
        raise ValueError(
            f"Skip blocks take and give images of 3 channels; got in_channels "
            f"{settings.in_channels} and out_channels {settings.out_channels}"
        )
    down_skips, up_skips = skips[: len(down)], skips[len(down) :]
    if sorted(down_skips, reverse=True) != down_skips or sorted(up_skips) != up_skips:
        raise ValueError(
            f"Skip blocks must come first among down_block_types and last among up_block_types; "
            f"got {settings.down_block_types} and {settings.up_block_types}"
        )
    least = 4 if any(skips) else 1  # Skip blocks have a quarter as many groups as features
    if min(widths) < least or (settings.norm_num_groups is None and not all(skips)):
        raise ValueError(
            f"norm_num_groups must be a whole number unless all blocks are Skip blocks, whose "
            f"widths are at least 4; got {settings.norm_num_groups!r} and widths {widths}"
        )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and 0 < len(value) <= _LONGEST


def _check_groups(settings: UNetSettings) -> None:
    widths, groups, head = settings.widths, settings.norm_num_groups, settings.attention_head_dim
    wrong = [w for w in widths if groups is not None and w % groups]
    if wrong:
        raise _wrong("norm_num_groups", groups, f"a divisor of each width in {widths}")
    down, up = settings.kinds
    attends = {w for w, kind in zip(widths, down, strict=True) if kind.attention}
    attends |= {w for w, kind in zip(reversed(widths), up, strict=True) if kind.attention}
    middle = settings.mid_block_type is not None and settings.add_attention
    attends |= {widths[-1]} if middle else set()
    if head is not None and attends and head > min(attends):
        raise _wrong("attention_head_dim", head, f"at most the width that attends, {min(attends)}")
    apart = settings.attn_norm_num_groups
    if middle and apart is not None and widths[-1] % apart:
        raise _wrong("attn_norm_num_groups", apart, f"a divisor of the last width, {widths[-1]}")


def _check_embeddings(settings: UNetSettings) -> None:
    kind, half = settings.time_embedding_type, settings.widths[0] // 2
    if kind == "learned" and settings.num_train_timesteps is None:
        raise _wrong("num_train_timesteps", None, "given with a learned time embedding")
    if kind == "positional":
        shift = settings.freq_shift
        if shift is None or half < 1 or math.isclose(half, shift):
            raise _wrong("freq_shift", shift, f"a number other than half the first width ({half})")
