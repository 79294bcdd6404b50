"""WRN: the public names and shapes, and the network written out."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from depure.zoo import WideResNet, load_classifier
from depure.zoo.build import new_classifier


def public_shapes(depth, width, classes=10):
    """Keys and shapes of TRADES' and RobustBench's files, spelt out without the network."""

    def bn(name, n):
        return {f"{name}.{k}": (n,) for k in ("weight", "bias", "running_mean", "running_var")}

    shapes, before = {"conv1.weight": (16, 3, 3, 3)}, 16
    for stage, channels in ((1, 16 * width), (2, 32 * width), (3, 64 * width)):
        for i in range((depth - 4) // 6):
            name = f"block{stage}.layer.{i}"
            shapes |= bn(f"{name}.bn1", before) | bn(f"{name}.bn2", channels)
            shapes[f"{name}.conv1.weight"] = (channels, before, 3, 3)
            shapes[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            if before != channels:
                shapes[f"{name}.convShortcut.weight"] = (channels, before, 1, 1)
            before = channels
    shapes |= bn("bn1", before)
    return {**shapes, "fc.weight": (classes, before), "fc.bias": (classes,)}


@pytest.mark.parametrize(("depth", "width"), [(28, 10), (16, 1), (10, 4)])
def test_public_keys_and_shapes(depth, width):
    with torch.device("meta"):
        state = WideResNet(depth, width).state_dict()
    found = {k: tuple(v.shape) for k, v in state.items() if not k.endswith("batches_tracked")}
    assert found == public_shapes(depth, width)


def test_size_of_the_paper():
    with torch.device("meta"):  # 1605.07146, table 4: 36.5 M
        assert sum(p.numel() for p in WideResNet(28, 10).parameters()) == 36_479_194


def random_weights(depth, width, classes=10):
    generator = torch.Generator().manual_seed(0)
    shapes = public_shapes(depth, width, classes)
    return {
        k: torch.rand(shape, generator=generator) + (0.5 if k.endswith("_var") else -0.5)
        for k, shape in shapes.items()
    }


def written_out(weights, x, depth):
    def norm(h, name):
        terms = (weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(h, *terms, eps=1e-5))

    h = F.conv2d(x, weights["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for i in range((depth - 4) // 6):
            name = f"block{stage}.layer.{i}"
            stride = 2 if stage > 1 and i == 0 else 1
            first = norm(h, f"{name}.bn1")
            inner = F.conv2d(first, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(norm(inner, f"{name}.bn2"), weights[f"{name}.conv2.weight"], padding=1)
            shortcut = weights.get(f"{name}.convShortcut.weight")
            h = inner + (h if shortcut is None else F.conv2d(first, shortcut, stride=stride))
    h = F.avg_pool2d(norm(h, "bn1"), 8).flatten(1)
    return h @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize(("depth", "width"), [(10, 2), (16, 1)])
def test_a_file_loads_and_gives_the_logits_written_out(tmp_path, depth, width):
    weights = random_weights(depth, width, 7)
    save_file(weights, tmp_path / "w.safetensors")
    network = load_classifier(f"wrn-{depth}-{width}:{tmp_path / 'w.safetensors'}").double()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = written_out({k: v.double() for k, v in weights.items()}, x, depth)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-10)


def test_bad_input(tmp_path):
    for depth in (4, 27):
        with pytest.raises(ValueError, match=f"depth must be 6n \\+ 4.* got {depth}"):
            WideResNet(depth)
    with pytest.raises(ValueError, match="width must be at least 1; got 0"):
        WideResNet(10, 0)
    with pytest.raises(ValueError, match="takes images"):
        WideResNet(10, 1)(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match="wrn-10-1 takes 3 channels; the images have 1"):
        new_classifier("wrn-10-1", 1, 10)
    assert isinstance(new_classifier("wrn-10-1", 3, 10), WideResNet)
    save_file(random_weights(10, 1), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit WideResNet"):
        load_classifier(f"wrn-10-2:{tmp_path / 'w.safetensors'}")
