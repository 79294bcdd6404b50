"""Rank-based Gaussian mapping: a gradient becomes noise that still looks Gaussian (ADDT)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Scope = Literal["channel", "image"]
"""Whether values are ranked within each channel of an image, or within the whole image."""


@torch.no_grad()
def rank_map(gradient: Tensor, normal: Tensor, scope: Scope = "channel") -> Tensor:
    """The values of ``normal``, placed in the rank order of ``gradient`` (RBGM, arXiv 2404.14309).

    The smallest value goes where the gradient is smallest, and so on up. Only the order of the
    gradient counts: not its scale, nor its mean. The result is a permutation of ``normal``, so
    each of its values alone is standard normal, while together they are structured in space.

    Equal gradients are ranked by position, first row first. An all-zero gradient therefore gives
    the values of ``normal`` in ascending order, a ramp from top left to bottom right: a
    deterministic picture, not a random one. The published code leaves that case to its sort.

    The mapping is straight-through: the result carries no graph, and a gradient with respect to
    it serves as the gradient with respect to what was mapped.

    Args:
        gradient: ``(B, C, H, W)``, any real values.
        normal: fresh standard normal noise of the same shape.
        scope: rank within each image and ``"channel"`` (ADDT's code), or each whole ``"image"``
            (one reading of the paper's figure).

    Returns:
        ``(B, C, H, W)`` of the dtype of ``normal``.

    Raises:
        ValueError: the shapes disagree, or the scope is unknown.

    Example:
        >>> rank_map(torch.tensor([[[[3.0, -1.0]]]]), torch.tensor([[[[0.4, 0.8]]]]))
        tensor([[[[0.8000, 0.4000]]]])
    """
    check_choice("scope", scope, get_args(Scope))
    if gradient.ndim != 4 or gradient.shape != normal.shape:
        raise ValueError(
            f"gradient and normal must have one shape (B, C, H, W); "
            f"got {tuple(gradient.shape)} and {tuple(normal.shape)}"
        )
    first = 2 if scope == "channel" else 1
    values = normal.flatten(first).sort(dim=-1).values
    order = gradient.flatten(first).argsort(dim=-1, stable=True)
    return torch.empty_like(values).scatter_(-1, order, values).view(normal.shape)


def mixing(gamma: Tensor, unit: float = 0.03, low: float = 0.0, high: float = 0.3) -> Tensor:
    """ADDT's share of adversarial noise, ``lambda = clip(unit * gamma, low, high)``.

    Where the clip does not bind, ``lambda / gamma = unit``: the perturbation has that amplitude
    in units of the image, in ``[-1, 1]``, whatever the time (arXiv 2404.14309).

    Args:
        gamma: ``(B,)``, signal over noise ``alpha / sigma`` of each image's time.
        unit: amplitude in units of the image, at least 0.
        low, high: bounds of lambda, ``0 <= low <= high <= 1``.

    Returns:
        ``(B,)`` in ``[low, high]``.

    Raises:
        ValueError: a number is out of range.
    """
    check_mixing(unit, low, high)
    return (unit * gamma).clamp(low, high)


def check_mixing(unit: float, low: float, high: float) -> None:
    """Refuse numbers that :func:`mixing` cannot use.

    Raises:
        ValueError: says which.
    """
    if not 0.0 <= unit < float("inf"):
        raise ValueError(f"unit must be a finite number, at least 0; got {unit}")
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"low and high must satisfy 0 <= low <= high <= 1; got {low} and {high}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        ValueError: names the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
