"""LPIPS from files: the published formula written out, and refusals."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from depure.cli.attacks import build_threat
from depure.cli.evaluate import command
from depure.networks.features.distance import FeatureDistance
from depure.zoo.lpips import load_lpips

WIDTHS = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}


def alexnet():
    shapes = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    g = torch.Generator().manual_seed(0)
    weights = {}
    for i, (outputs, inputs, kernel) in shapes.items():
        weight = torch.randn(outputs, inputs, kernel, kernel, generator=g)
        weights[f"features.{i}.weight"] = weight * (2 / (inputs * kernel**2)) ** 0.5
        weights[f"features.{i}.bias"] = 0.1 * torch.randn(outputs, generator=g)
    return weights


def linear(name):
    g = torch.Generator().manual_seed(1)
    return {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=g)
        for i, width in enumerate(WIDTHS[name])
    }


def written_out(weights, heads, x, other):
    """1801.03924, equation 1, on AlexNet."""

    def stages(x):
        shift = torch.tensor([-0.030, -0.088, -0.188], dtype=x.dtype).view(3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450], dtype=x.dtype).view(3, 1, 1)
        h, found = (2 * x - 1 - shift) / scale, []
        for i, (place, stride, padding) in enumerate(
            ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))
        ):
            h = F.max_pool2d(h, 3, 2) if i in (1, 2) else h
            weight, bias = (weights[f"features.{place}.{k}"].to(x) for k in ("weight", "bias"))
            h = F.conv2d(h, weight, bias, stride, padding).relu()
            found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    total = 0.0
    for i, (a, b) in enumerate(zip(stages(x), stages(other), strict=True)):
        total += F.conv2d((a - b) ** 2, heads[f"lin{i}.model.1.weight"].to(x)).mean((1, 2, 3))
    return total


def test_its_square_is_the_published_distance(tmp_path):
    weights, heads = alexnet(), linear("alexnet")
    save_file({**weights, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "net.safetensors")
    save_file(heads, tmp_path / "lin.safetensors")
    found = load_lpips("alexnet", tmp_path / "net.safetensors", tmp_path / "lin.safetensors")
    distance = FeatureDistance(found.network.double(), found.layers, found.weights)
    g = torch.Generator().manual_seed(2)
    x, other = torch.rand(2, 3, 3, 40, 40, dtype=torch.float64, generator=g)
    expected = written_out(weights, heads, x, other)
    assert expected.min() > 0.01
    torch.testing.assert_close(distance(x, other) ** 2, expected, rtol=1e-6, atol=0)
    grey = x[:, :1]
    assert torch.equal(distance(grey, other), distance(grey.expand(-1, 3, -1, -1), other))


def test_vgg_has_the_public_names(tmp_path):
    plan = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
    place, before, weights = 0, 3, {}
    for width in plan:
        if width:
            weights[f"features.{place}.weight"] = torch.zeros(width, before, 3, 3)
            weights[f"features.{place}.bias"] = torch.zeros(width)
            before = width
        place += 2 if width else 1
    save_file(weights, tmp_path / "net.safetensors")
    save_file(linear("vgg16"), tmp_path / "lin.safetensors")
    found = load_lpips("vgg16", tmp_path / "net.safetensors", tmp_path / "lin.safetensors")
    assert [len(found.weights[layer]) for layer in found.layers] == list(WIDTHS["vgg16"])
    features = FeatureDistance(found.network, found.layers, found.weights).features
    assert features(torch.rand(1, 3, 16, 16)).shape == (1, 64 * 256 + 128 * 64 + 256 * 16 + 2560)


def test_on_the_command_line(tmp_path):
    net, lin = tmp_path / "net.safetensors", tmp_path / "lin.safetensors"
    save_file(alexnet(), net)
    save_file(linear("alexnet"), lin)
    for spec, weighted in ((f"alexnet:{net}", 0), (f"alexnet:{net},{lin}", 5)):
        line = f"--attack lpa --perceptual-net {spec}".split()
        ball = build_threat(command.make_context("evaluate", line).params).ball
        assert ball.metric.layers[-1] == "features.11"
        assert len(ball.metric.weights) == weighted


def test_bad_files(tmp_path):
    net, lin = tmp_path / "net.safetensors", tmp_path / "lin.safetensors"
    save_file(alexnet(), net)
    save_file(linear("vgg16"), lin)
    with pytest.raises(ValueError, match="name must be one of alexnet, vgg16; got 'squeeze'"):
        load_lpips("squeeze", net)
    with pytest.raises(ValueError, match=r"lin1.model.1.weight is of shape .* not of 192 channels"):
        load_lpips("alexnet", net, lin)
    with pytest.raises(ValueError, match="does not fit"):
        load_lpips("vgg16", net)
    found = load_lpips("alexnet", net)
    with pytest.raises(ValueError, match="images of 31 pixels or more"):
        FeatureDistance(found.network, found.layers)(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
