"""Queries without gradients: what a black-box attack asks of a defence."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from depure.answers import answered, mean_of, right
from depure.attacks.asking.gradients import Expected, distinct_draws
from depure.attacks.asking.journal import cached
from depure.attacks.asking.losses import margin
from depure.attacks.asking.model import Model
from depure.noise import Noise
from depure.rows import parts, rows_at_once

_BITS = 16  # signs made of one random number


class QueryResult(NamedTuple):
    """Averages over the draws, for every image and candidate."""

    margin: Tensor  # (B, N), of the best wrong logit over the label's: positive when wrong;
    # over the draws that were answered, and infinite where none was
    accuracy: Tensor  # (B, N), share of draws with the right label


@torch.no_grad()
def query_margins(model: Model, points: Tensor, y: Tensor, noise: Noise, draws: int) -> QueryResult:
    """Mean margin and accuracy of N candidates of each image, all under the same draws.

    The N candidates of an image meet the same random numbers, so that their differences are not
    those of the draws. Neither the rows of a pass nor the other images change an answer beyond
    float rounding. An open `journal` records it.

    Args:
        model: the defence.
        points: candidates (B, N, C, H, W) in [0, 1], B at least 1.
        y: labels (B,).
        noise: one row per image; draw j of image i is row j of `noise.draws(draws)`.
        draws: draws averaged (one, if all would coincide).

    Raises:
        ValueError: if the model has one class only.
    """
    draws = distinct_draws(model.stages, noise, draws)
    asked = f"ask {draws} {type(model).__qualname__}"

    def answer() -> QueryResult:
        return _query(model, points, y, noise, draws)

    return QueryResult(*cached(asked, noise, (points, y), answer))


def _query(model: Model, points: Tensor, y: Tensor, noise: Noise, draws: int) -> QueryResult:
    images, candidates = points.shape[:2]
    flat = points.flatten(0, 1)
    rows = noise.draws(draws) if draws > 1 else noise
    place = torch.arange(images * candidates).view(images, 1, candidates)
    place = place.expand(-1, draws, -1).flatten().to(flat.device)
    draw = torch.arange(images * draws).repeat_interleave(candidates)
    truth = y.repeat_interleave(draws * candidates)
    found = []
    for part in parts(len(place), rows_at_once(flat)):
        logits = model(flat[place[part]], rows[draw[part]])
        _check_classes(logits)
        numbers = (margin(logits, truth[part]), right(logits, truth[part]), answered(logits))
        found.append(torch.stack(numbers).to(points.dtype))
    ahead, correct, known = torch.cat(found, 1).view(3, images, draws, candidates)
    ahead = mean_of(ahead, known.bool()).masked_fill(~known.bool().any(1), torch.inf)
    return QueryResult(ahead, correct.mean(1))


def random_signs(noise: Noise, stage: str, like: Tensor) -> Tensor:
    """Independent signs -1 and +1 (Rademacher) of the shape, dtype and device of `like`."""
    elements = math.prod(like.shape[1:])
    shape = (len(noise), -(-elements // _BITS))
    u = noise.uniform(stage, 0, torch.empty(shape, device=like.device, dtype=torch.float32))
    bits = (u * 2.0**_BITS).long()[:, :, None] >> torch.arange(_BITS, device=like.device)
    plain = bits.bitwise_and_(1).mul_(2).sub_(1).flatten(1)[:, :elements]
    return plain.to(like.dtype).view(like.shape)


def as_measurement(x: Tensor, loss: Tensor, accuracy: Tensor) -> Expected:
    """Loss and accuracy (B,) as an attack without gradients reports them; values are copied."""
    everywhere = torch.ones(len(x), dtype=torch.bool, device=x.device)
    nothing = x.new_zeros(()).expand(x.shape)
    followed = torch.zeros_like(accuracy)
    return Expected(nothing, loss.clone(), accuracy.clone(), everywhere, followed, ~everywhere)


def _check_classes(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise ValueError(
            "a black-box attack needs at least 2 classes to tell right from wrong; the model "
            "has 1: give it data and a classifier with more classes"
        )
