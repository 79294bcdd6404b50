from __future__ import annotations

import pytest
import torch
from torch import nn

from depure.zoo import CifarResNet, Normalize, SmallCNN


def public_resnet56_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the public ResNet-56 checkpoint, spelt out without the network."""

    def bn(name: str, n: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{k}": (n,) for k in ("weight", "bias", "running_mean", "running_var")}

    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3), **bn("bn1", 16)}
    for layer, width, first in ((1, 16, 16), (2, 32, 16), (3, 64, 32)):
        for block in range(9):
            name = f"layer{layer}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, width if block else first, 3, 3)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            shapes |= bn(f"{name}.bn1", width) | bn(f"{name}.bn2", width)
    return {**shapes, "linear.weight": (10, 64), "linear.bias": (10,)}


def test_resnet56_has_the_public_keys_and_shapes() -> None:
    state = CifarResNet(56).state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if not k.endswith("batches_tracked")}
    assert len(shapes) == 277
    assert shapes == public_resnet56_shapes()


def test_a_file_without_batch_counters_loads_strictly() -> None:
    tensors = {name: torch.ones(shape) for name, shape in public_resnet56_shapes().items()}
    CifarResNet(56).load_state_dict(tensors, strict=True)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_parameter_counts_of_the_paper(depth: int, parameters: int) -> None:
    # He et al. 2016, table 6: 0.27 M, 0.85 M, 1.7 M
    assert sum(p.numel() for p in CifarResNet(depth).parameters()) == parameters


def test_shortcut_is_option_a() -> None:
    block = CifarResNet(20).eval().layer2[0]
    nn.init.zeros_(block.bn2.weight)  # silences the convolutions: the shortcut is left
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().max() == y[:, 24:].abs().max() == 0


@pytest.mark.parametrize("depth", [2, 18, 57])
def test_impossible_depths(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth must be 6n \\+ 2.* got {depth}"):
        CifarResNet(depth)


@pytest.mark.parametrize(
    ("network", "shape", "classes"),
    [
        (CifarResNet(20, classes=7), (2, 3, 32, 32), 7),
        (SmallCNN(1, 10, 8), (2, 1, 8, 8), 10),
        (SmallCNN(3, 4, 8), (2, 3, 28, 20), 4),
    ],
)
def test_images_in_logits_out(network: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    assert network(torch.rand(shape)).shape == (2, classes)


def test_normalisation_is_inside_and_no_weight() -> None:
    network = CifarResNet(20, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125)).eval()
    assert not any("normalize" in name for name in network.state_dict())
    x = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack([(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 0.25, (x[:, 2] - 0.3) * 8], 1)
    torch.testing.assert_close(network.normalize(x), by_hand)
    plain = CifarResNet(20, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    plain.load_state_dict(network.state_dict())
    torch.testing.assert_close(network(x), plain(by_hand))
    assert not torch.allclose(network(x), plain(x), atol=1e-3)


def test_default_statistics_are_those_of_the_public_checkpoint() -> None:
    normalize = CifarResNet(20).normalize
    assert normalize.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert normalize.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_wrong_channels_are_refused_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"takes images with 3 channels.* got \(2, 1, 8, 8\)"):
        CifarResNet(20)(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"takes images with 1 channels.* got \(2, 3, 8, 8\)"):
        SmallCNN(1, 10, 8)(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((), ())])
def test_bad_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="one number for each channel"):
        Normalize(mean, std)


def test_small_cnn_is_smooth_and_pools_once() -> None:
    network = SmallCNN(1, 3, 4)
    kinks = (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.MaxPool2d)
    assert not any(isinstance(module, kinks) for module in network.modules())
    assert network.features(torch.rand(2, 1, 8, 8)).shape == (2, 8, 4, 4)


def test_small_cnn_takes_float64() -> None:
    torch.manual_seed(0)
    network = SmallCNN(1, 3, 4).double().eval()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (x,))
