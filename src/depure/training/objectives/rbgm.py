"""Rank-based Gaussian mapping: a gradient becomes noise that still looks Gaussian (ADDT)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

RankWithin = Literal["channel", "image"]
"""Whether values are ranked within each channel of an image, or within the whole image."""


@torch.no_grad()
def rank_map(gradient: Tensor, normal: Tensor, within: RankWithin = "channel") -> Tensor:
    """The values of `normal`, placed in the rank order of `gradient` (RBGM, arXiv 2404.14309).

    The smallest value goes where the gradient is smallest, and so on up. Only the order of the
    gradient counts: not its scale, nor its mean. The result is a permutation of `normal`, so
    each of its values alone is standard normal, while together they are structured in space.

    Equal gradients are ranked by position, first row first. An all-zero gradient therefore gives
    the values of `normal` in ascending order, a ramp from top left to bottom right: a
    deterministic picture, not a random one. The published code leaves that case to its sort.

    The mapping is straight-through: the result carries no graph, and a gradient with respect to
    it serves as the gradient with respect to what was mapped.

    Args:
        gradient: `(B, C, H, W)`, any real values.
        normal: fresh standard normal noise of the same shape.
        within: rank within each image and "channel" (ADDT's code), or each whole "image"
            (one reading of the paper's figure).

    Returns:
        `(B, C, H, W)` of the dtype of `normal`.

    Raises:
        ValueError: the shapes disagree, or `within` is unknown.

    Example:
        >>> rank_map(torch.tensor([[[[3.0, -1.0]]]]), torch.tensor([[[[0.4, 0.8]]]]))
        tensor([[[[0.8000, 0.4000]]]])
    """
    check_choice("within", within, get_args(RankWithin))
    if gradient.ndim != 4 or gradient.shape != normal.shape:
        raise ValueError(
            f"gradient and normal must have one shape (B, C, H, W); "
            f"got {tuple(gradient.shape)} and {tuple(normal.shape)}"
        )
    first = 2 if within == "channel" else 1
    values = normal.flatten(first).sort(dim=-1).values
    order = gradient.flatten(first).argsort(dim=-1, stable=True)
    return torch.empty_like(values).scatter_(-1, order, values).view(normal.shape)


def mixing(
    gamma: Tensor, lambda_unit: float = 0.03, lambda_min: float = 0.0, lambda_max: float = 0.3
) -> Tensor:
    """ADDT's share of adversarial noise, `lambda = clip(lambda_unit * gamma, min, max)`.

    Where the clip does not bind, `lambda / gamma = lambda_unit`: the perturbation has that
    amplitude in units of the image, in [-1, 1], whatever the time (2404.14309).

    Args:
        gamma: (B,), signal over noise `alpha / sigma` of each image's time.
        lambda_unit: amplitude in units of the image, at least 0.
        lambda_min, lambda_max: bounds of lambda, 0 <= lambda_min <= lambda_max <= 1.

    Returns:
        (B,) in [lambda_min, lambda_max].

    Raises:
        ValueError: a number is out of range.
    """
    check_mixing(lambda_unit, lambda_min, lambda_max)
    return (lambda_unit * gamma).clamp(lambda_min, lambda_max)


def check_mixing(lambda_unit: float, lambda_min: float, lambda_max: float) -> None:
    """Refuse numbers that `mixing` cannot use.

    Raises:
        ValueError: says which.
    """
    if not 0.0 <= lambda_unit < float("inf"):
        raise ValueError(f"lambda_unit must be a finite number, at least 0; got {lambda_unit}")
    if not 0.0 <= lambda_min <= lambda_max <= 1.0:
        raise ValueError(
            f"lambda_min and lambda_max must satisfy 0 <= lambda_min <= lambda_max <= 1; got "
            f"{lambda_min} and {lambda_max}"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        ValueError: names the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
