"""ReColorAdv: images recoloured by one small change of all colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from depure.attacks.asking.gradients import Average
from depure.attacks.base import Watch
from depure.attacks.case import Case
from depure.attacks.settings import check_count
from depure.attacks.unseen.search import Change, Search
from depure.threat.balls import Ball, Linf


@dataclass(frozen=True)
class ReColorAdv(Search):
    """ReColorAdv (Laidlaw & Feizi, 1906.00001): equal colours change equally, wherever they are.

    The change is given at the nodes of a grid over the cube of colours (over the greys, for
    images of one channel: a tone curve) and interpolated linearly. It is bounded in each channel
    at each node, so that every pixel stays within the L-inf ball of that bound, in which the
    evaluation can check it; published is `Linf(0.06)`. Unlike there, colours are RGB rather than
    CIE-LUV, whose distances are nearer to perceived ones, and the grid is 16 nodes in each
    channel rather than 16 x 32 x 32. Nodes do not leave [0, 1], so the image does not either.

    Adam climbs the loss less `smooth` times the total variation of the change over the grid, each
    neighbour counted from both sides. The gradient is EoT's at the recoloured image, pulled back
    through the recolouring by the chain rule. The proposal is the iterate of lowest mean
    accuracy (of highest mean loss among equals), or the last, see `Case.fresh`. `steps + 1`
    gradients; 2 x 20 queries to settle, if the defence is random.

    Args:
        steps: iterations.
        lr: learning rate of Adam, in the units of the bound; None takes a sixth of the bound
            (published is 0.001 at 0.06, weaker than 0.01 in 100 steps).
        resolution: nodes in each channel.
        smooth: weight of the total variation. Published is 0.0036 / eps (0.06 at 0.06); here the
            bound alone limits the change, and 0 is the strongest attack within it.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr".
        random_start: begin at random changes of the nodes rather than at the image.

    Raises:
        ValueError: a setting is out of range; at the call, for any ball but `Linf`, and for
            images of more than 3 channels.

    Example:
        >>> ReColorAdv(steps=50).resolution
        16
    """

    steps: int = 100
    lr: float | None = None
    resolution: int = 16
    smooth: float = 0.0
    eot: int = 20
    average: Average = "gradients"
    loss: str = "margin"
    random_start: bool = False

    def __post_init__(self) -> None:
        self.check()
        check_count("resolution", self.resolution)
        if not 2 <= self.resolution <= 64:
            raise ValueError(f"resolution must be 2 to 64 nodes; got {self.resolution}")

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """`Linf` alone."""
        return (Linf,)

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image with a non-finite gradient stays in place."""
        return case.ball.project(super().propose(case, watch), case.x)  # up to rounding: no change

    def change(self, case: Case) -> Change:
        """A change of the colours at the nodes."""
        x, eps = case.x, case.ball.eps
        channels = x.shape[1]
        if channels > 3:
            raise ValueError(
                f"recolouring is for images of 1 to 3 channels; got {channels}: a grid over more "
                f"has too many nodes"
            )
        colours = nodes(channels, self.resolution, x)
        start = x.new_zeros(len(x), *colours.shape)
        if self.random_start:
            uniform = case.noise.fold("recolor start").uniform("start", 0, start)
            start = _bounded(eps * (2.0 * uniform - 1.0), colours, eps)
        lr = eps / 6.0 if self.lr is None else self.lr
        bounded = partial(_bounded, colours=colours, eps=eps)
        return Change("recolor", colouring(x, self.resolution), bounded, start, lr)


def nodes(channels: int, resolution: int, like: Tensor) -> Tensor:
    """The colours at the nodes, (C, R, ..., R) with C axes: entry c is the node's channel c."""
    line = torch.linspace(0.0, 1.0, resolution, device=like.device, dtype=like.dtype)
    return torch.stack(torch.meshgrid(*[line] * channels, indexing="ij"))


def _bounded(change: Tensor, colours: Tensor, eps: float) -> Tensor:
    """Changes (B, C, R, ..., R) cut to eps and to those that lead to colours in [0, 1]."""
    change = change.clamp(-eps, eps)
    return torch.maximum(torch.minimum(change, 1.0 - colours), -colours)


def colouring(x: Tensor, resolution: int) -> Callable[[Tensor], Tensor]:
    """The recolouring of images (B, C, H, W), a function of changes (B, C, R, ..., R).

    Multilinear interpolation; the 2^C nodes about each pixel and their weights are found once.
    No change at the nodes, no change of the image: exactly.
    """
    channels = x.shape[1]
    place = (x * (resolution - 1)).flatten(2)
    below = place.floor().clamp(0, resolution - 2)
    share, below = place - below, below.long()  # (B, C, H W)
    corners = []
    for corner in itertools.product((0, 1), repeat=channels):
        sides = [share[:, c] if up else 1.0 - share[:, c] for c, up in enumerate(corner)]
        steps = [resolution ** (channels - 1 - c) for c in range(channels)]
        index = sum((below[:, c] + corner[c]) * steps[c] for c in range(channels))
        corners.append((torch.as_tensor(index), math.prod(sides[1:], start=sides[0])))

    def recoloured(change: Tensor) -> Tensor:
        flat = change.flatten(2)
        total = torch.zeros_like(place)
        for index, weight in corners:
            found = flat.gather(2, index[:, None].expand(-1, channels, -1))
            total = total + weight[:, None] * found
        return x + total.view_as(x)

    return recoloured
