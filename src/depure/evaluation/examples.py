"""Purified pictures of a run, for its page."""

from __future__ import annotations

import torch
from torch import Tensor

from depure.attacks.asking.gradients import distinct_draws
from depure.defences.defended import Defended
from depure.evaluation.checks import Trial
from depure.evaluation.shards import Shard, base_noise
from depure.noise import Noise
from depure.pieces import Pieces
from depure.rows import parts, rows_at_once

EXAMPLES = "examples.safetensors"


def write_examples(pieces: Pieces, trial: Trial, shard: Shard, count: int = 8) -> None:
    """Purified versions of the first images, under the judge's first draw, into one file."""
    if (pieces.folder / EXAMPLES).exists():
        pieces.read_tensors(EXAMPLES)  # a damaged file is refused here
        return
    some = trial.images[slice(0, count)]
    noise = base_noise(trial.model, some.index, trial.threat, trial.seed).fold("judge")
    draws = distinct_draws(trial.model.stages, noise, trial.draws)
    first = noise.draws(draws)[list(range(0, len(some) * draws, draws))] if draws > 1 else noise
    pair = (some.x.to(trial.device), shard.x_adv[:count].to(trial.device))
    clean, adversarial = (_purified(trial.model, x, first) for x in pair)
    pieces.write_tensors(EXAMPLES, {"clean": clean, "adversarial": adversarial})


@torch.no_grad()
def _purified(model: Defended, x: Tensor, noise: Noise) -> Tensor:
    blocks = parts(len(x), rows_at_once(x))
    return torch.cat([model.purifier(x[p], noise[p]).cpu() for p in blocks]).contiguous()
