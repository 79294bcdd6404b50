"""How alike two images look to a network, against the formula as it is written."""

import torch
from torch import nn

from depure.networks.features.distance import FeatureDistance
from depure.rows import Chunk, chunked

DOUBLE = torch.float64


def pictures(n=3, shape=(2, 6, 6), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=g, dtype=DOUBLE)


def network(seed=0, channels=2):
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.Softplus(), nn.Conv2d(6, 4, 3, stride=2),
        nn.Softplus(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5
    return net.double().eval()


def naive(net, names, x, y, weights=None):
    """LPIPS as it is written, and then its root."""
    total = []
    for a, b in zip(x, y, strict=True):
        outs = []
        for image in (a, b):
            h, kept = image[None], {}
            for name, part in net.named_children():
                h = part(h)
                kept[name] = h[0]
            outs.append(kept)
        d = 0.0
        for name in names:
            f, g = outs[0][name], outs[1][name]
            for i in range(f.shape[1]):
                for j in range(f.shape[2]):
                    gap = f[:, i, j] / f[:, i, j].norm() - g[:, i, j] / g[:, i, j].norm()
                    w = 1.0 if weights is None else weights[name]
                    d = d + (w * gap**2).sum() / (f.shape[1] * f.shape[2])
        total.append(d**0.5)
    return torch.stack(total)


def test_the_distance_is_what_it_says():
    net, x, y = network(), pictures(), pictures(seed=1)
    distance = FeatureDistance(net)
    assert distance.layers == ("0", "2")
    torch.testing.assert_close(distance(x, y), naive(net, ["0", "2"], x, y))
    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert torch.equal(distance(x, x), torch.zeros(3, dtype=DOUBLE))
    weights = {"1": torch.arange(6.0, dtype=DOUBLE), "3": torch.ones(4, dtype=DOUBLE) / 2}
    other = FeatureDistance(net, ("1", "3"), weights)
    with chunked(Chunk(2)):
        torch.testing.assert_close(other(x, y), naive(net, ["1", "3"], x, y, weights))
    assert not any(part._forward_hooks for part in net.modules())


def test_convolutions_are_found_evenly():
    net = nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in range(9)]).eval()
    assert FeatureDistance(net).layers == ("0", "2", "4", "6", "8")


def test_slope_is_the_gradient_of_the_distance_chunk_by_chunk():
    x, other = pictures(5), pictures(5, seed=1)
    distance = FeatureDistance(network())
    leaf = x.clone().requires_grad_()
    apart = distance(leaf, other)
    (grad,) = torch.autograd.grad(apart.sum(), leaf)
    for chunk in (128, 2, 5):
        with chunked(Chunk(chunk)):
            found = distance.slope(x, distance.features(other))
        torch.testing.assert_close(found[0], apart.detach())
        torch.testing.assert_close(found[1], grad)
    assert not found[1].requires_grad
    at, none = distance.slope(x, distance.features(x))  # at the image itself there is no slope
    assert not at.any()
    assert not none.any()
