from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from depure.training import mixing, rank_map


def draw(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator).double() for _ in range(2))  # type: ignore[return-value]


def naive(gradient: Tensor, normal: Tensor, within: str) -> Tensor:
    """Every value by itself: how many come before it, then the value of that rank."""
    b, c, h, w = gradient.shape
    out = np.zeros((b, c * h * w))
    channels = np.arange(c * h * w) // (h * w) if within == "channel" else np.zeros(c * h * w)
    g, z = gradient.reshape(b, -1).numpy(), normal.reshape(b, -1).numpy()
    for i in range(b):
        for j in range(c * h * w):
            group = [k for k in range(c * h * w) if channels[k] == channels[j]]
            rank = sum((g[i, k], k) < (g[i, j], j) for k in group)
            out[i, j] = sorted(z[i, k] for k in group)[rank]
    return torch.from_numpy(out).view(b, c, h, w)


@pytest.mark.parametrize("within", ["channel", "image"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 6, 6), (3, 2, 1, 1)])
def test_equals_the_loop(shape: tuple[int, ...], within: Any) -> None:
    gradient, normal = draw(*shape)
    assert torch.equal(rank_map(gradient, normal, within), naive(gradient, normal, within))
    tied = gradient.round()
    assert torch.equal(rank_map(tied, normal, within), naive(tied, normal, within))


def test_permutes_the_draw_into_the_order_of_the_gradient() -> None:
    gradient, normal = draw(4, 3, 8, 8)
    mapped = rank_map(gradient, normal)
    for i in range(4):
        for c in range(3):
            assert torch.equal(mapped[i, c].flatten().sort()[0], normal[i, c].flatten().sort()[0])
            order = gradient[i, c].flatten().argsort()
            assert bool((mapped[i, c].flatten()[order].diff() > 0).all())


def test_channels_keep_their_own_values_only_per_channel() -> None:
    gradient, normal = draw(2, 3, 8, 8)
    gradient[:, 0] += 100.0  # the first channel outranks the others
    channel, image = rank_map(gradient, normal), rank_map(gradient, normal, "image")
    for i in range(2):
        whole = image[i].flatten().sort()[0]
        assert torch.equal(whole, normal[i].flatten().sort()[0])
        assert float(image[i, 0].min()) > float(image[i, 1:].max())
        assert abs(float(channel[i, 0].mean())) < 0.5


def test_the_marginal_is_standard_normal() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.linspace(-1, 1, 8).pow(3).view(1, 1, 8, 1).expand(500, 3, 8, 8)
    gradient = rows + 1e-3 * torch.randn(rows.shape, generator=generator)  # far from normal
    normal = torch.randn(rows.shape, generator=generator)
    mapped = rank_map(gradient, normal)
    # All values of an image together, which are the draw's; and each row is far from normal.
    assert stats.kstest(mapped.flatten().numpy(), "norm").pvalue > 0.01
    assert float(mapped[:, :, 0].mean()) < -1.0
    # Where the gradient's order is random, so is each pixel by itself.
    mapped = rank_map(torch.randn(rows.shape, generator=generator), normal)
    assert stats.kstest(mapped[:, :, 2, 5].flatten().numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("within", ["channel", "image"])
def test_only_the_order_counts(within: Any) -> None:
    gradient, normal = draw(2, 3, 6, 6)
    mapped = rank_map(gradient, normal, within)
    assert torch.equal(rank_map(1e-12 * gradient, normal, within), mapped)
    assert torch.equal(rank_map(gradient.exp() + 5.0, normal, within), mapped)
    scale = torch.tensor([1e-3, 1e3]).view(2, 1, 1, 1)
    assert torch.equal(rank_map(scale * gradient, normal, within), mapped)
    assert torch.equal(rank_map(gradient[1:], normal[1:], within), mapped[1:])


def test_the_order_of_the_draw_does_not_count() -> None:
    gradient, normal = draw(2, 3, 6, 6)
    assert torch.equal(rank_map(gradient, normal.flip(3)), rank_map(gradient, normal))


def test_ties_are_ranked_by_position() -> None:
    _, normal = draw(1, 2, 4, 4)
    mapped = rank_map(torch.zeros_like(normal), normal)
    for c in range(2):
        assert torch.equal(mapped[0, c].flatten(), normal[0, c].flatten().sort()[0])


def test_carries_no_graph_and_changes_nothing() -> None:
    gradient, normal = draw(1, 1, 3, 3)
    kept = gradient.clone(), normal.clone()
    gradient.requires_grad_()
    assert not rank_map(gradient, normal.requires_grad_()).requires_grad
    assert torch.equal(gradient, kept[0])
    assert torch.equal(normal, kept[1])


def test_memory_format_and_dtype() -> None:
    gradient, normal = draw(2, 3, 4, 4)
    mapped = rank_map(gradient, normal)
    last = torch.channels_last
    strided = rank_map(gradient.to(memory_format=last), normal.to(memory_format=last))
    assert torch.equal(strided, mapped)
    assert rank_map(gradient, normal.float()).dtype == torch.float32


def test_refusals() -> None:
    gradient, normal = draw(2, 1, 3, 3)
    with pytest.raises(ValueError, match="within must be one of channel, image; got 'pixel'"):
        rank_map(gradient, normal, "pixel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must have one shape"):
        rank_map(gradient, normal[:1])
    with pytest.raises(ValueError, match="must have one shape"):
        rank_map(gradient[0], normal[0])


def test_mixing() -> None:
    gamma = torch.tensor([100.0, 10.0, 5.0, 1.0, 0.0], dtype=torch.float64)
    expected = torch.tensor([0.3, 0.3, 0.15, 0.03, 0.0], dtype=torch.float64)
    torch.testing.assert_close(mixing(gamma), expected)
    expected = torch.tensor([1.0, 1.0, 1.0, 0.2, 0.1], dtype=torch.float64)
    torch.testing.assert_close(mixing(gamma, 0.2, 0.1, 1.0), expected)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lambda_unit": -0.1}, "lambda_unit must be a finite number"),
        ({"lambda_unit": float("nan")}, "lambda_unit must be a finite number"),
        ({"lambda_min": -0.1}, "0 <= lambda_min <= lambda_max <= 1"),
        ({"lambda_min": 0.5}, "0 <= lambda_min <= lambda_max <= 1"),
        ({"lambda_max": 1.1}, "0 <= lambda_min <= lambda_max <= 1"),
    ],
)
def test_mixing_refuses(settings: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mixing(torch.ones(1), **settings)
