"""Starting points along the diffusion model's score; they use neither labels nor classifier."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from depure.attacks.base import Attack, Watch
from depure.attacks.case import Case
from depure.attacks.settings import check_count
from depure.diffusion.denoiser import Denoiser
from depure.diffusion.grid import Grid
from depure.noise import Noise
from depure.rows import parts, rows_at_once
from depure.types import Time


@dataclass(frozen=True)
class ScoreStart(Attack):
    """To the edge of the ball, along the score or against it: a start for other attacks.

    The image is noised as the purifier noises it, `x_t = alpha x + sigma z`, and the network's
    mean estimate of the clean image E[x0 | x_t] is averaged over draws of z. By Tweedie's formula
    `E[x0 | x_t] - x = (sigma^2 score(x_t) + sigma z) / alpha`: but for the noise, which averages
    out, the way from the image to that mean is the smoothed score. Against it lie images that the
    model finds less likely, which the purifier has to move most; along it, those that it leaves
    alone. The step is the ball's steepest, of full length.

    It breaks nothing by itself: it tells whether an attack depends on where it starts.

    Args:
        denoiser: the diffusion model.
        alpha: what is left of the image where the purifier begins, in [-1, 1] space.
        sigma: of the noise there.
        time: of the diffusion model there; `ScoreStart.of` finds all three.
        along: up the score, to likelier images, rather than down.
        draws: of the noise.

    Raises:
        ValueError: a setting is out of range; at the call, for a ball without steps.
    """

    denoiser: Denoiser = field(repr=False)
    alpha: float
    sigma: float
    time: Time
    along: bool = False
    draws: int = 10

    def __post_init__(self) -> None:
        check_count("draws", self.draws)

    @staticmethod
    def of(denoiser: Denoiser, grid: Grid, *, along: bool = False, draws: int = 10) -> ScoreStart:
        """At the time to which a purifier noises: `of(purifier.denoiser, purifier.grid)`."""
        path = grid.path(denoiser.schedule)
        return ScoreStart(denoiser, path.alpha, path.sigma, path.times[0], along=along, draws=draws)

    def trace_length(self, case: Case) -> int:
        """0: nothing is measured of the defence."""
        return 0

    @torch.no_grad()
    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Images (B, C, H, W) on the edge of the ball; neither the defence nor y is asked."""
        x, ball = case.x, case.norm
        score = self.direction(x, Noise(case.noise.keys))
        finite = score.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
        away = torch.where(finite, score if self.along else -score, 0.0)
        return ball.project(x + ball.eps * ball.ascend(away), x)

    def direction(self, x: Tensor, noise: Noise) -> Tensor:
        """From images in [0, 1] to the mean estimates of the clean image, (B, C, H, W)."""
        rows, image = noise.fold("score").draws(self.draws), x.repeat_interleave(self.draws, 0)
        total = []
        for block in parts(len(image), rows_at_once(x)):
            part = 2.0 * image[block] - 1.0
            z = rows[block].normal("score", 0, part)
            noised = self.alpha * part + self.sigma * z
            total.append((self.denoiser(noised, self.time).x0 - part) / 2.0)
        return torch.cat(total).view(len(x), self.draws, *x.shape[1:]).mean(1)
