"""Settings of a UNet: what is read, and what is refused with its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from depure.networks.unets import UNet, UNetSettings
from depure.weights import read_config
from depure.zoo.classifier import BUNDLED

PLAIN = {
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
}
SKIP = {
    "norm_num_groups": None,
    "down_block_types": ["SkipDownBlock2D"] * 2,
    "up_block_types": ["SkipUpBlock2D"] * 2,
}


def test_defaults_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(block_out_channels=(32, 32, 32, 32))
    theirs = {k: v for k, v in network.config.items() if not k.startswith("_")}
    ours = UNetSettings(block_out_channels=(32, 32, 32, 32)).to_config()
    assert ours.pop("_class_name") == "UNet2DModel"
    assert ours == {k: list(v) if isinstance(v, tuple) else v for k, v in theirs.items()}
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize("name", ["digits/denoiser", "digits-addt", "digits-control"])
def test_bundled_settings_come_back_as_they_were(name: str) -> None:
    config = read_config(BUNDLED / name / "unet" / "config.json")
    settings = UNetSettings.from_config(config)
    del config["_diffusers_version"]
    assert settings.to_config() == config
    assert UNetSettings.from_config(json.loads(json.dumps(settings.to_config()))) == settings


def test_what_is_missing_has_its_default_and_private_names_are_left_out() -> None:
    settings = UNetSettings.from_config({**PLAIN, "_name_or_path": "x", "_anything": [object()]})
    assert settings.layers_per_block == 2
    assert settings.widths == (16, 32)
    assert settings.time_features == 64


def test_early_names_of_blocks() -> None:
    early = {
        "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
        "up_block_types": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
    }
    plain = {
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    }
    found, known = (UNet(UNetSettings.from_config({**PLAIN, **s})) for s in (early, plain))
    assert [(k, v.shape) for k, v in found.state_dict().items()] == [
        (k, v.shape) for k, v in known.state_dict().items()
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": [8]}, r"widths is no setting .* came with \[8\]\); known are act_fn, add_att"),
        ({"down_block_types": ["DownBlock2D", "KDownBlock2D"]}, "down_block_types .*'KDownBlock"),
        ({"down_block_types": ["DownBlock2D", "UpBlock2D"]}, "a list of DownBlock2D, Attn.*'UpB"),
        ({"up_block_types": ["UpBlock2D", 3]}, "up_block_types must be a list of UpBlock2D"),
        ({"up_block_types": ["UpBlock2D"]}, r"up_block_types .* block_out_channels \(2\)"),
        ({"down_block_types": "DownBlock2D"}, "down_block_types must be a list"),
        ({"block_out_channels": 16}, "block_out_channels must be a list of whole numbers"),
        ({"block_out_channels": []}, "block_out_channels must be a list"),
        ({"block_out_channels": [16, 0]}, "block_out_channels must be a list"),
        ({"block_out_channels": [16, 1 << 60]}, "block_out_channels must be a list"),
        ({"block_out_channels": [8] * 65}, "block_out_channels must be a list"),
        ({"block_out_channels": [16, 36]}, r"norm_num_groups .* each width in \(16, 36\); got 8"),
        ({"norm_num_groups": None}, "norm_num_groups must be a whole number unless all blocks"),
        ({"norm_num_groups": 2.0}, "norm_num_groups must be a whole number"),
        ({"attn_norm_num_groups": 5}, "attn_norm_num_groups must be a divisor .* 32; got 5"),
        ({"in_channels": True}, "in_channels must be a whole number from 1 .* got True"),
        ({"out_channels": None}, "out_channels must be a whole number"),
        ({"layers_per_block": 0}, "layers_per_block must be a whole number"),
        ({"layers_per_block": 65}, "layers_per_block must be a whole number from 1 to 64; got 65"),
        ({"attention_head_dim": 64}, "attention_head_dim must be at most .* 32; got 64"),
        ({"act_fn": "tanh"}, "act_fn must be one of silu, .* got 'tanh'"),
        ({"act_fn": ["silu"]}, r"act_fn must be one of silu, .* got \('silu',\)"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift must be .* 'spatial'"),
        ({"time_embedding_type": None}, "time_embedding_type must be one of positional, fourier"),
        ({"time_embedding_type": "learned"}, "num_train_timesteps must be given"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type must be one of .* None"),
        ({"downsample_type": "fir"}, "downsample_type must be one of conv, resnet"),
        ({"class_embed_type": "projection"}, "class_embed_type must be one of timestep"),
        ({"downsample_padding": 2}, "downsample_padding must be 0 or 1; got 2"),
        ({"dropout": 1.5}, "dropout must be a probability; got 1.5"),
        ({"dropout": float("nan")}, "dropout must be a number"),
        ({"norm_eps": "small"}, "norm_eps must be a number .* got 'small'"),
        ({"norm_eps": -1.0}, "norm_eps must be at least 0"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor not 0"),
        ({"freq_shift": None}, "freq_shift must be a number"),
        ({"freq_shift": 8}, "freq_shift must be a number other than .* 8"),
        ({"flip_sin_to_cos": 1}, "flip_sin_to_cos must be true or false; got 1"),
        ({"sample_size": [8, 8, 8]}, "sample_size must be a whole number, or a pair"),
        ({"sample_size": 0.5}, "sample_size must be a whole number"),
        ({**SKIP, "in_channels": 1}, "Skip blocks take and give images of 3 channels; got"),
        ({**SKIP, "block_out_channels": [16, 2]}, "widths are at least 4"),
        ({**SKIP, "norm_num_groups": 8, "down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
         "Skip blocks must come first among down_block_types"),
        ({**SKIP, "norm_num_groups": 8, "up_block_types": ["SkipUpBlock2D", "UpBlock2D"]},
         "last among up_block_types"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetSettings.from_config({**PLAIN, **wrong})
