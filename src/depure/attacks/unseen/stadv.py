"""StAdv: images bent by a small flow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from depure.attacks.asking.gradients import Average
from depure.attacks.case import Case
from depure.attacks.unseen.search import Change, Search
from depure.threat.balls import Ball
from depure.threat.unseen import Flow


@dataclass(frozen=True)
class StAdv(Search):
    """StAdv (Xiao et al., 1801.02612): a flow says where each pixel is fetched from.

    The threat is another than that of pixel balls, and one that no defence trained or tuned on
    them has seen: row "StAdv" of DiffPure's table. It is a ball of its own, `Flow(0.05)`. Both
    components of the flow stay within its eps by projection, as Laidlaw et al. (2006.12655) have
    it, where the first paper has a penalty alone; so the image proposed is a flow's, by
    construction, and within the bound. Pixels outside the image take its border's value, where the
    published program fetches black, which its own bound does not see.

    Adam climbs the loss less `smooth` times the flow's total variation (1801.02612, eq. 4, each
    neighbour counted from both sides). The gradient is EoT's at the bent image, pulled back
    through the bending by the chain rule: exact, for any number of draws. The proposal is the
    iterate of lowest mean accuracy (of highest mean loss among equals), or the last, see
    `Case.fresh`. `steps + 1` gradients; 2 x 20 queries to settle, if the defence is random.

    Args:
        steps: iterations.
        lr: learning rate of Adam, in the units of the bound; None takes a fifth of the bound (the
            published 0.01 at 0.05).
        smooth: weight of the total variation. Published is 0.0025 / eps (0.05 at 0.05); here the
            bound alone limits the flow, and 0 is the strongest attack within it.
        eot: draws averaged in every iteration (one, if all noise is known).
        average: average the draws' "gradients" or their "logits".
        loss: "ce", "margin" or "dlr".
        random_start: begin at a random flow of the ball rather than at the image.

    Raises:
        ValueError: a setting is out of range; at the call, for any ball but `Flow`.

    Example:
        >>> StAdv(steps=50).smooth
        0.0
    """

    steps: int = 100
    lr: float | None = None
    smooth: float = 0.0
    eot: int = 20
    average: Average = "gradients"
    loss: str = "margin"
    random_start: bool = False

    def __post_init__(self) -> None:
        self.check()

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """`Flow` alone."""
        return (Flow,)

    def change(self, case: Case) -> Change:
        """A flow (B, 2, H, W) within eps."""
        x, eps = case.x, case.ball.eps
        flow = x.new_zeros(len(x), 2, *x.shape[2:])
        if self.random_start:
            uniform = case.noise.fold("stadv start").uniform("start", 0, flow)
            flow = eps * (2.0 * uniform - 1.0)
        lr = eps / 5.0 if self.lr is None else self.lr
        return Change("stadv", partial(bend, x), lambda f: f.clamp(-eps, eps), flow, lr)


def bend(x: Tensor, flow: Tensor) -> Tensor:
    """The images whose pixels are fetched from elsewhere; differentiable by the flow.

    Args:
        x: images (B, C, H, W).
        flow: (B, 2, H, W), how far down and across each pixel looks, with the image reaching
            from -1 to 1 (0.05 is 0.8 of 32 pixels).

    Values between pixels are interpolated linearly; pixels outside the image take its
    border's value. No flow, no change: exactly.
    """
    height, width = x.shape[2:]
    y0, dy = _split(torch.arange(height, device=x.device)[:, None], flow[:, 0], height)
    x0, dx = _split(torch.arange(width, device=x.device), flow[:, 1], width)
    y1, x1 = (y0 + 1).clamp_max(height - 1), (x0 + 1).clamp_max(width - 1)
    flat = x.flatten(2)

    def at(row: Tensor, column: Tensor) -> Tensor:
        place = (row * width + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return flat.gather(2, place).view_as(x)

    top = at(y0, x0).lerp(at(y0, x1), dx[:, None].expand_as(x))
    bottom = at(y1, x0).lerp(at(y1, x1), dx[:, None].expand_as(x))
    return top.lerp(bottom, dy[:, None].expand_as(x))


def _split(index: Tensor, flow: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Whole and fractional part of the place (B, H, W) that each pixel looks at."""
    place = (index + flow * (size / 2.0)).clamp(0.0, size - 1.0)
    # The last pixel belongs to the interval before it, by which it has a slope inwards.
    whole = place.detach().floor().clamp_max(max(size - 2.0, 0.0))
    return whole.long(), place - whole
