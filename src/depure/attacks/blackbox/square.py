"""Square: random search over square patches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from depure.attacks.asking.queries import QueryResult, as_measurement
from depure.attacks.base import Iterated, Watch
from depure.attacks.case import Case
from depure.attacks.settings import check_count, check_share
from depure.noise import Noise
from depure.rows import where_rows
from depure.threat.balls import L2, Ball, Linf

# The share of the image that a square covers is halved after these of 10,000 iterations, as in
# AutoAttack.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE = 10_000
_REST = 100  # draws in a row that must go wrong before an image of a random defence rests


@dataclass(frozen=True)
class Square(Iterated):
    """Square attack (Andriushchenko et al., 1912.00049; L-inf algorithms 1 and 2, L2 1 and 3).

    Each iteration changes one square of the best point so far and keeps the change if the margin
    grows. Settings and L2 details are those of AutoAttack's version; squares are placed per
    image and may touch all four edges, as in the paper.

    Against a random defence the margins are means over `eot` draws, and the best point so far
    and its rival are both asked under the same fresh draws in every iteration. No lucky draw is
    thus kept, at twice the queries: 2 x eot x steps instead of steps. An image rests once its
    point is wrong: on its one draw if nothing is random, else on 100 draws in a row.

    Args:
        steps: iterations; each asks one candidate per image.
        eot: draws averaged in every query (one, if all noise is known).
        p_init: share of the image that the first squares cover.
        rescale: stretch the published schedule of sizes, made for 10,000 iterations, to `steps`.

    Example:
        >>> Square(steps=1000, eot=1)
        Square(steps=1000, eot=1, p_init=0.8, rescale=True)
    """

    steps: int = 5000
    eot: int = 10
    p_init: float = 0.8
    rescale: bool = True

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("eot", self.eot)
        check_share("p_init", self.p_init)

    def side(self, iteration: int, ball: Ball, height: int, width: int) -> int:
        """Side of the squares in pixels at an iteration (from 0); L2 squares are odd, from 3."""
        at = iteration * _SCHEDULE // self.steps if self.rescale else iteration
        share = self.p_init * 0.5 ** sum(at > halving for halving in _HALVINGS)
        side = max(round(math.sqrt(share * height * width)), 1)
        if isinstance(ball, L2):
            side = max(side, 3) // 2 * 2 + 1
        return min(side, height, width)

    @property
    def balls(self) -> tuple[type[Ball], ...]:
        """Those with a square of steepest change."""
        return (Linf, L2)

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks for gradients: it asks for answers only."""
        return False

    def propose(self, case: Case, watch: Watch) -> Tensor:
        """Adversarial images (B, C, H, W); an image wrong from the start stays as it is.

        The watch hears the mean margin as loss.

        Raises:
            ValueError: for a model with one class.
        """
        search = _Search(self, case.fold("square"))
        for i in range(self.steps):
            watch.iteration(as_measurement(case.x, *search.step(i)))
        return search.best


@dataclass(eq=False)
class _Search:
    """The best points so far, (B, C, H, W), and their last answers, (B,)."""

    attack: Square
    case: Case
    best: Tensor = field(init=False)
    margin: Tensor = field(init=False)
    accuracy: Tensor = field(init=False)
    wrong: Tensor = field(init=False)  # draws in a row on which the best point went wrong
    draws: int = field(init=False)

    def __post_init__(self) -> None:
        case, x = self.case, self.case.x
        self.draws = case.draws(self.attack.eot)
        start = _stripes if isinstance(case.ball, Linf) else _tiles
        first = start(x, case.ball.eps, case.noise.fold("start"))
        everyone = torch.arange(len(x), device=x.device)
        answer = self._ask("start", 0, everyone, torch.stack([x, first], 1))
        stay = answer.accuracy[:, 0] == 0
        self.best = where_rows(stay, x, first)
        self.margin, self.accuracy = (torch.where(stay, a[:, 0], a[:, 1]) for a in answer)
        self.wrong = torch.where(self.accuracy == 0, self.draws, 0)

    def _ask(self, name: str, i: int, rows: Tensor, points: Tensor) -> QueryResult:
        key = (name, i) if self.case.random else ()
        return self.case.rows(rows).margins(points, self.attack.eot, key)

    def step(self, i: int) -> tuple[Tensor, Tensor]:
        """Try one square per image; margin and accuracy (B,) of the points before it."""
        random = self.case.random
        rows = (self.wrong < (_REST if random else 1)).nonzero()[:, 0]
        if not len(rows):
            return self.margin, self.accuracy
        best = self.best[rows]
        rival = self._propose(i, rows, best)
        if random:
            answer = self._ask("query", i, rows, torch.stack([best, rival], 1))
            self.margin[rows], self.accuracy[rows] = answer.margin[:, 0], answer.accuracy[:, 0]
        else:
            answer = self._ask("query", i, rows, rival[:, None])
        before = self.margin.clone(), self.accuracy.clone()
        better = answer.margin[:, -1] > self.margin[rows]
        self.best[rows] = where_rows(better, rival, best)
        self.margin[rows] = torch.where(better, answer.margin[:, -1], self.margin[rows])
        self.accuracy[rows] = torch.where(better, answer.accuracy[:, -1], self.accuracy[rows])
        streak = torch.where(better, 0, self.wrong[rows]) + self.draws
        self.wrong[rows] = torch.where(self.accuracy[rows] == 0, streak, 0)
        return before

    def _propose(self, i: int, rows: Tensor, best: Tensor) -> Tensor:
        ball, x, noise = self.case.ball, self.case.x[rows], self.case.noise[rows]
        side = self.attack.side(i, ball, *x.shape[2:])
        # Places of two squares, which of two patterns, and one sign per channel.
        u = noise.uniform("square", i, x.new_empty(len(x), 5 + x.shape[1]))
        first = _window(u[:, 0], u[:, 1], side, x)
        sign = _sign(u[:, 5:])[:, :, None, None]
        if isinstance(ball, Linf):
            return torch.where(first[0], (x + ball.eps * sign).clamp(0.0, 1.0), best)
        second = _window(u[:, 2], u[:, 3], side, x)[0]
        pattern = sign * _placed(_eta(side).to(x), u[:, 4], first)
        return _move_mass(x, best - x, pattern, first[0], second, ball.eps)


Window = tuple[Tensor, Tensor, Tensor]  # mask (B, 1, H, W); rows (B, H) and columns (B, W) inside


def _window(u: Tensor, v: Tensor, side: int, x: Tensor) -> Window:
    """A square per image, everywhere inside the image equally likely."""
    height, width = x.shape[2:]
    row = torch.arange(height, device=x.device) - (u * (height - side + 1)).long()[:, None]
    column = torch.arange(width, device=x.device) - (v * (width - side + 1)).long()[:, None]
    inside_rows, inside_columns = ((a >= 0) & (a < side) for a in (row, column))
    mask = inside_rows[:, :, None] & inside_columns[:, None, :]
    return mask[:, None], row.clamp(0, side - 1), column.clamp(0, side - 1)


def _placed(patterns: Tensor, u: Tensor, window: Window) -> Tensor:
    """One of the patterns (2, side, side) in each image's window, zero elsewhere: (B, 1, H, W)."""
    mask, row, column = window
    which = (u < 0.5).long()[:, None, None]
    return patterns[which, row[:, :, None], column[:, None, :]][:, None] * mask


def _move_mass(
    x: Tensor, delta: Tensor, pattern: Tensor, first: Tensor, second: Tensor, eps: float
) -> Tensor:
    """Mass of two windows, and what the ball has left, gathered in one (algorithm 3)."""
    inside = delta * first
    unused = (eps**2 - _norm(delta, (1, 2, 3)) ** 2).clamp_min(0.0) / x.shape[1]
    budget = (unused + _norm(delta * (first | second), (2, 3)) ** 2).sqrt()
    shape = pattern + inside / (_norm(inside, (2, 3)) + 1e-12)
    moved = torch.where(second, 0.0, delta)
    moved = torch.where(first, shape / (_norm(shape, (2, 3)) + 1e-12) * budget, moved)
    return (x + eps * moved / (_norm(moved, (1, 2, 3)) + 1e-12)).clamp(0.0, 1.0)


def _stripes(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """L-inf start: vertical stripes of +-eps, one pixel wide, in each channel."""
    sign = _sign(noise.uniform("square", 0, x[:, :, :1]))
    return (x + eps * sign).clamp(0.0, 1.0)


def _tiles(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """L2 start: a grid of five by five patterns (more on images below 5 pixels a tile)."""
    images, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    u = noise.uniform("square", 0, x.new_empty(images, channels + 1, down, across))
    tiles = _eta(side).to(x)[(u[:, :1] < 0.5).long()] * _sign(u[:, 1:])[..., None, None]
    grid = tiles.transpose(3, 4).reshape(images, channels, down * side, across * side)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    edges = (left, width - across * side - left, top, height - down * side - top)
    delta = functional.pad(grid, edges)
    return (x + eps * delta / _norm(delta, (1, 2, 3))).clamp(0.0, 1.0)


@lru_cache(maxsize=32)
def _eta(side: int) -> Tensor:
    """The L2 pattern of norm 1 and its transpose, (2, side, side): one half up, one half down."""
    half = side // 2
    pattern = torch.cat([_bump(half, side), -_bump(side - half, side)])
    pattern = pattern / _norm(pattern, (0, 1))
    return torch.stack([pattern, pattern.T])


def _bump(height: int, width: int) -> Tensor:
    """A pyramid of norm 1: 1/(k+1)^2 summed over all k from the distance to the centre on."""
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    rings = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** -2.0
    bump = rings.flip(0).cumsum(0).flip(0)[torch.maximum(down[:, None], across)]
    return bump / _norm(bump, (0, 1))


def _norm(values: Tensor, over: tuple[int, ...]) -> Tensor:
    return values.square().sum(over, keepdim=True).sqrt()


def _sign(u: Tensor) -> Tensor:
    return (u < 0.5).to(u.dtype) * 2.0 - 1.0
