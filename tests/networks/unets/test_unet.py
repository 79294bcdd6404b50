"""Our UNet against diffusers' `UNet2DModel`, to the bit, and against numbers it gave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from depure.networks.unets import UNet, UNetSettings, current_names
from depure.weights import read_config
from depure.zoo.classifier import BUNDLED

DIGITS = BUNDLED / "digits" / "denoiser" / "unet"
SMALL = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
ATTENTION = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
RESIDUAL = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
    "layers_per_block": 2,
}
SKIP = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "block_out_channels": (32, 32, 64),
    "norm_num_groups": None,
    "norm_eps": 1e-6,
}
DDPM = {  # google/ddpm-cifar10-32, but for the widths
    "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CELEBA = {  # google/ddpm-celebahq-256, but for the widths
    **DDPM,
    "block_out_channels": (8, 8, 16, 16, 32, 32),
    "norm_num_groups": 8,
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
}
# The bundled network in float64, as diffusers 0.42.1 ran it: see the test that uses them.
FIRST = (
    -2.543941498495917, -2.166996512238292, -1.7287811578359307, -1.342353072211274,
    -0.8988811086150135, -0.3002007677296748, -0.06511460029629379, 0.2978088319476593,
)  # fmt: skip
LAST = (
    1.2224504030819427, 1.2020565515724435, 1.0043539200747849, 0.7754417163230164,
    0.7709597542078431, 0.9364020728966241, 1.1513933744475766, 1.3032013238826106,
)  # fmt: skip
SUM, SQUARES = 77.05615400070212, 149.60824290405205
# What UNet2DModel is given, and the labels of classes it is called with.
CASES: dict[str, tuple[dict[str, Any], Tensor | None]] = {
    "digits": ({**SMALL, **PLAIN, "in_channels": 1, "out_channels": 1}, None),
    "ddpm": ({**DDPM, "block_out_channels": (32, 64, 64, 64)}, None),
    "celeba": (CELEBA, None),
    "several heads": ({**SMALL, **ATTENTION, "attention_head_dim": 4}, None),
    "dropout": ({**SMALL, **ATTENTION, "dropout": 0.2}, None),
    "residual": ({**RESIDUAL, "out_channels": 6, "attn_norm_num_groups": 16}, None),
    "classes": ({**RESIDUAL, "num_class_embeds": 10}, torch.tensor([0, 9])),
    "ncsnpp": (
        {
            **SKIP,
            "attention_head_dim": None,
            "time_embedding_type": "fourier",
            "mid_block_scale_factor": 1.41421356237,
        },
        None,
    ),
    "skip, several heads": ({**SKIP, "layers_per_block": 1}, None),
    "skip and plain": (
        {
            **SKIP,
            "norm_num_groups": 8,
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        },
        None,
    ),
    "fourier": ({**SMALL, **ATTENTION, "time_embedding_type": "fourier"}, None),
    "learned": (
        {**SMALL, **PLAIN, "time_embedding_type": "learned", "num_train_timesteps": 50},
        None,
    ),
    "no middle": ({**SMALL, **PLAIN, "mid_block_type": None}, None),
    "gelu, centred": (
        {**SMALL, **PLAIN, "add_attention": False, "act_fn": "gelu", "center_input_sample": True},
        None,
    ),
    "mish, time": ({**SMALL, **PLAIN, "act_fn": "mish", "time_embedding_dim": 50}, None),
    "relu, identity": (
        {**SMALL, **PLAIN, "act_fn": "relu", "class_embed_type": "identity"},
        torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(2, 64),
    ),
    "odd numbers": (
        {
            **PLAIN,
            "block_out_channels": (15, 25),
            "norm_num_groups": 5,
            "attention_head_dim": 7,
            "freq_shift": 0.5,
            "layers_per_block": 3,
        },
        None,
    ),
}


def randomised(network: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, value in network.state_dict().items():
        z = torch.randn(value.shape, generator=generator)
        norm = "norm" in name and name.endswith("weight")
        found[name] = z / value[0].numel() ** 0.5 if value.ndim > 1 else 0.3 * z + norm
    return found


def pair(config: dict[str, Any]) -> tuple[nn.Module, UNet]:
    """diffusers' network and ours with equal random weights."""
    theirs: nn.Module = pytest.importorskip("diffusers").UNet2DModel(**config)
    ours = UNet(UNetSettings.from_config(theirs.config))  # type: ignore[arg-type]
    weights = randomised(theirs)
    theirs.load_state_dict(weights)
    ours.load_state_dict(weights, strict=True)
    return theirs.eval(), ours.eval()


def answers(
    network: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients for the input and all weights, dropout drawn from the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = network(x, t) if labels is None else network(x, t, labels)
    out = getattr(out, "sample", out)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    inputs = [x, *(p for p in network.parameters() if p.requires_grad)]
    found = torch.autograd.grad(out, inputs, upstream, allow_unused=True)
    return out, [torch.zeros(()) if g is None else g for g in found]


def assert_equal_to_the_bit(
    theirs: nn.Module,
    ours: nn.Module,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    fourier: bool = False,
) -> None:
    nn.Module.to(theirs, x.dtype)  # not diffusers' own, which warns
    ours.to(x.dtype)
    t = torch.arange(len(x)) * 7 + 1
    t = t.to(x.dtype) / 3 if fourier else t
    if labels is not None and labels.is_floating_point():
        labels = labels.to(x.dtype)
    (out, gradients), (expected, known) = answers(ours, x, t, labels), answers(theirs, x, t, labels)
    assert torch.equal(out, expected)
    assert out.abs().max() > 0.01
    assert len(gradients) == len(known)
    assert all(torch.equal(g, k) for g, k in zip(gradients, known, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_diffusers_to_the_bit(case: str, dtype: torch.dtype) -> None:
    config, labels = CASES[case]
    theirs, ours = pair(config)
    size = 32 if case == "celeba" else 8
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config.get("in_channels", 3), size, size, generator=generator).to(dtype)
    fourier = config.get("time_embedding_type") == "fourier"
    assert_equal_to_the_bit(theirs, ours, x, labels, fourier=fourier)
    for part in (*theirs.modules(), *ours.modules()):
        if isinstance(part, nn.Dropout):
            part.p = 0.3  # as training sets it, in attention too
    assert_equal_to_the_bit(theirs.train(), ours.train(), x, labels, fourier=fourier)


def test_class_embedding_of_times_equals_diffusers() -> None:
    """In float32 only: in float64 diffusers' own fails."""
    theirs, ours = pair({**SMALL, **PLAIN, "class_embed_type": "timestep"})
    assert_equal_to_the_bit(theirs, ours, torch.rand(2, 3, 8, 8), torch.tensor([1, 40]))


@pytest.mark.parametrize("case", ["several heads", "residual", "skip, several heads"])
@pytest.mark.parametrize("batch", [3, 65])
def test_channels_last_and_large_batches_equal_diffusers(case: str, batch: int) -> None:
    theirs, ours = pair(CASES[case][0])
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 8, 8, generator=generator)
    assert_equal_to_the_bit(theirs, ours, x)
    for training in (False, True):
        theirs.train(training)
        ours.train(training)
        assert_equal_to_the_bit(theirs, ours, x.to(memory_format=torch.channels_last))


def test_the_published_cifar_network_in_full_size() -> None:
    config = {**DDPM, "block_out_channels": (128, 256, 256, 256), "sample_size": 32}
    theirs, ours = pair(config)
    x, t = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([75])
    with torch.no_grad():
        assert torch.equal(ours(x, t), theirs(x, t).sample)
    assert sum(p.numel() for p in ours.parameters()) == 35_746_307  # 35.7 M in 2006.11239


@pytest.mark.parametrize("case", CASES)
def test_fresh_weights_and_their_order_are_those_of_diffusers(case: str) -> None:
    """So a training from a seed gives the same weights: an optimiser sums in this order."""
    diffusers = pytest.importorskip("diffusers")
    config, _ = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = diffusers.UNet2DModel(**config)
        torch.manual_seed(0)
        ours = UNet(UNetSettings.from_config(theirs.config))
    known, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(known)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    trained = [n for n, p in ours.named_parameters() if p.requires_grad]
    assert trained == [n for n, p in theirs.named_parameters() if p.requires_grad]
    if config.get("time_embedding_type") != "fourier":
        assert all(torch.equal(found[name], known[name]) for name in known)


def digits_network() -> UNet:
    network = UNet(UNetSettings.from_config(read_config(DIGITS / "config.json")))
    network.load_state_dict(load_file(DIGITS / "diffusion_pytorch_model.safetensors"))
    return network.eval()


def test_the_bundled_network_gives_the_numbers_that_diffusers_gave() -> None:
    x = torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(2, 1, 8, 8)
    with torch.no_grad():
        out = digits_network().double()(x, torch.tensor([0, 500]))
    first = torch.tensor(FIRST, dtype=torch.float64)
    last = torch.tensor(LAST, dtype=torch.float64)
    torch.testing.assert_close(out[0, 0, 0], first, rtol=0, atol=1e-6)
    torch.testing.assert_close(out[1, 0, 7], last, rtol=0, atol=1e-6)
    assert out.sum().item() == pytest.approx(SUM, abs=1e-5)
    assert (out * out).sum().item() == pytest.approx(SQUARES, abs=1e-5)


def test_one_time_for_all_images() -> None:
    network, x = digits_network(), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        each = network(x, torch.full((3,), 40))
        assert torch.equal(network(x, torch.tensor(40)), each)
        assert torch.equal(network(x, torch.tensor([40])), each)
        assert torch.equal(network(x, 40), each)


def test_each_image_has_its_own_time() -> None:
    network, x = digits_network().double(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        both = network(x, torch.tensor([3, 700]))
        apart = [network(x[i : i + 1], torch.tensor([t])) for i, t in enumerate((3, 700))]
    torch.testing.assert_close(both, torch.cat(apart), rtol=0, atol=1e-12)
    assert not torch.allclose(both[0], network(x[:1], torch.tensor([700]))[0], atol=1e-3)


def test_early_names_of_attention_weights() -> None:
    settings = UNetSettings.from_config({**SMALL, **ATTENTION})
    weights = randomised(UNet(settings))
    early = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for new, old in early.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    old = {renamed(name): value for name, value in weights.items()}
    assert sum(name not in weights for name in old) == 8 * 4  # 4 places, weight and bias
    found = current_names(old)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("shape", [(1, 3, 7, 8), (1, 3, 8, 6), (1, 3, 2, 2)])
def test_sizes_that_cannot_be_halved(shape: tuple[int, ...]) -> None:
    network = UNet(UNetSettings.from_config({**RESIDUAL, **{"layers_per_block": 1}}))
    with pytest.raises(ValueError, match=r"height and width must be multiples of 4 .* got \(1, 3,"):
        network(torch.zeros(shape), 0)


def test_classes_must_be_given_to_those_that_take_them() -> None:
    settings = {**SMALL, **PLAIN}
    x, t = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    with pytest.raises(ValueError, match="needs classes"):
        UNet(UNetSettings.from_config({**settings, "num_class_embeds": 3}))(x, t)
    with pytest.raises(ValueError, match="without classes"):
        UNet(UNetSettings.from_config(settings))(x, t, torch.zeros(1, dtype=torch.int64))
