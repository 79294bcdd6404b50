"""Loss and accuracy between known and fresh noise: how much robustness is mere stochasticity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from depure.analysis.common import check_counts, device_of, expect_cells, join, short_hash, slices
from depure.analysis.store import Array, Arrays, Cells
from depure.analysis.transfer import (
    JUDGE_ROWS,
    Setting,
    accuracy_of,
    as_tuple,
    attacked,
    check_enough,
    mean_of,
    share,
)
from depure.attacks.asking.losses import cross_entropy
from depure.attacks.base import Attack
from depure.attacks.gradient.pgd import PGD
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.evaluation.record import describe
from depure.noise import Noise
from depure.purifiers.base import check_stages
from depure.records import came
from depure.threat import Norm, Threat

BOTH = "both"  # every stage at which a defence draws noise

NOTES = (
    "inference: the paper names clean loss, robustness loss and a Gaussian mix-up of the noise; "
    "that the loss is the mean cross-entropy over draws, robustness loss = J(delta*) - J(0), and "
    "the mix sqrt(1 - m^2) known + m fresh is a reconstruction",
    "inference: a pool of 128 seeds is the natural reading of DW-semi-128, which is unpublished",
    "J(delta*) is the loss that the attack reached: a lower bound of the largest one",
)
_MEASURES = ("accuracy_clean", "accuracy", "clean_loss", "adversarial_loss")


@dataclass(frozen=True, eq=False)
class Curves:
    """Accuracy and loss of n images at M levels; a row is a model and the stages that are held.

    Shares of the judge's draws in [0, 1], and cross-entropies in nats, means over those draws.
    """

    models: tuple[str, ...]  # (rows,)
    stages: tuple[str, ...]  # (rows,), "both" is every stage that the model has
    at: Array  # (M,), mix levels or sizes of the pool
    accuracy_clean: Array  # (rows, M, n), without attack: the null control
    accuracy: Array  # (rows, M, n), under attack
    clean_loss: Array  # (rows, M, n), J(0)
    adversarial_loss: Array  # (rows, M, n), J(delta*)
    draws: Array  # (rows, M), the judge's draws

    @property
    def robustness_loss(self) -> Array:
        """J(delta*) - J(0), (rows, M, n), nats."""
        return np.asarray(self.adversarial_loss - self.clean_loss)

    def estimate(self, name: str) -> Array:
        """(rows, M, 3): mean of a measure over images, and its 95 % interval."""
        found = np.empty((*self.draws.shape, 3))
        for place in np.ndindex(*self.draws.shape):
            values = getattr(self, name)[place]
            draws = int(self.draws[place])
            loss = name.endswith("loss")
            found[place] = as_tuple(mean_of(values) if loss else accuracy_of(values, draws))
        return np.maximum(found, 0.0) if name in _MEASURES else found

    def arrays(self) -> Arrays:
        """All arrays by name, with the estimates."""
        found = {name: np.asarray(value) for name, value in vars(self).items()}
        found["robustness_loss"] = self.robustness_loss
        names = (*_MEASURES, "robustness_loss")
        return found | {f"{name}_estimate": self.estimate(name) for name in names}


@dataclass(frozen=True, eq=False)
class Stochasticity:
    """What `stochasticity` found: curves over the mix level and over the size of the pool."""

    mix: Curves  # m: 0 is DW-box, 1 the ordinary white-box
    pool: Curves  # K fixed draws per image at every stage; 1 is DW-box
    index: Array  # (n,), data-set indices
    settings: dict[str, Any]
    axes: ClassVar[tuple[str, ...]] = ("model and stages", "level", "image")
    notes: ClassVar[tuple[str, ...]] = NOTES

    def arrays(self) -> Arrays:
        """All arrays by name, "mix_accuracy" and so on, with the estimates."""
        parts = {"mix": self.mix, "pool": self.pool}
        found = {f"{k}_{n}": a for k, part in parts.items() for n, a in part.arrays().items()}
        return {**found, "index": self.index}


def stochasticity(
    models: Defended | Mapping[str, Defended],
    images: Images,
    ball: Norm,
    *,
    attack: Attack | None = None,
    levels: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    pools: Sequence[int] = (1, 2, 8, 32, 128),
    stages: Sequence[str] | None = None,
    draws: int = 20,
    seed: int = 0,
    batch: int = 32,
    cells: Cells | None = None,
) -> Stochasticity:
    """Accuracy and loss from known noise (DW-box) to fresh noise (white-box).

    Every point is an evaluation: attacked and judged under its own level, by the same functions
    and draws as `evaluate`. Level 0 equals DW-box and level 1 the white-box evaluation exactly,
    if `batch` is its shard_size.

    Args:
        models: a defence, or several by name.
        images: n >= 2 images.
        ball: what the attack may change.
        attack: PGD-20 with EoT 10 by default.
        levels: mix levels m in [0, 1], rising.
        pools: numbers of fixed draws per image, rising; they act on every stage. May be empty.
        stages: what the mix acts on: stages by name, or "both" for every stage a defence has.
            By default each stage alone, where there are several, and both. A defence without a
            stage that another one has is left out there.
        draws: fresh draws that judge an image; one where all noise is known.
        seed: of all noise.
        batch: images in one cell.
        cells: keeps the pieces, see `Cells`; its `total` grows by the number of cells here.

    Raises:
        ValueError: a defence draws no noise, an unknown stage, levels or pools out of range or
            order, fewer than 2 images.

    Source: "Stochasticity and Smoothness" (AAAI-24 submission 10949); what is inferred stands in
    `notes`.
    """
    attack = PGD() if attack is None else attack
    named = named_models(models)
    check_counts(draws=draws, batch=batch)
    check_enough(images)
    rows = [(name, held) for held in _chosen(named, stages) for name in named
            if _stages(named[name], held)]  # fmt: skip
    check_rising("levels", levels)
    check_rising("pools", pools)
    mixes = [[_mixed(named[m], ball, held, level) for level in levels] for m, held in rows]
    pooled = [[Threat(ball, model.stages, pool=k) for k in pools] for model in named.values()]
    wanted = {(m, t) for (m, _), ts in zip(rows, mixes, strict=True) for t in ts}
    wanted |= {(m, t) for m, ts in zip(named, pooled, strict=True) for t in ts}
    cells = expect_cells(cells, 2 * len(wanted) * len(slices(len(images), batch)))
    work = _Work(named, images, attack, draws, seed, batch, cells, {})
    mix = work.curves(rows, levels, mixes)
    pool = work.curves([(m, BOTH) for m in named], pools, pooled)
    settings = settings_of(named, images, attack, Threat(ball), draws, seed)
    return Stochasticity(mix, pool, images.index.numpy(), settings)


def named_models(models: Defended | Mapping[str, Defended]) -> dict[str, Defended]:
    """Models by name; each must draw noise.

    Raises:
        ValueError: there are none, or one draws no noise.
    """
    named = {"model": models} if isinstance(models, Defended) else dict(models)
    if not named:
        raise ValueError("no models were given: name at least one defence")
    for name, model in named.items():
        if not model.stages:
            raise ValueError(
                f"the defence {name!r} draws no noise ({came(model.purifier)}), so that known and "
                f"fresh noise are one and there is no stochasticity to analyse: give a defence "
                f"whose purifier has stages"
            )
    return named


def _chosen(named: Mapping[str, Defended], stages: Sequence[str] | None) -> list[str]:
    """The stages to hold, each a name that some model has, or "both"."""
    every = tuple(dict.fromkeys(s for model in named.values() for s in model.stages))
    if stages is None:
        return [*(every if len(every) > 1 else ()), BOTH]
    if isinstance(stages, str) or not stages:
        raise ValueError(f"stages must be a list of names, such as ['forward']; got {stages!r}")
    check_stages(tuple(s for s in stages if s != BOTH), every, "stages")
    return list(dict.fromkeys(stages))


def _stages(model: Defended, held: str) -> tuple[str, ...]:
    """The stages meant by a name; none where the model lacks it."""
    return model.stages if held == BOTH else tuple(s for s in model.stages if s == held)


def check_rising(name: str, values: Sequence[float]) -> None:
    """Raise ValueError unless the numbers rise; only pools may be empty."""
    if (name != "pools" and not values) or list(values) != sorted(set(values)):
        raise ValueError(f"{name} must rise, without repetition; got {tuple(values)}")


def _mixed(model: Defended, ball: Norm, held: str, level: float) -> Threat:
    """The threat at a level; at level 1 nothing is held, so that it is one for all stages."""
    known = model.stages if level == 1.0 else _stages(model, held)
    return Threat(ball, known, mix=float(level))


@dataclass(frozen=True, eq=False)
class _Work:
    """The evaluations, each made once."""

    named: dict[str, Defended]
    images: Images
    attack: Attack
    draws: int
    seed: int
    batch: int
    cells: Cells
    found: dict[tuple[str, Threat], Arrays]

    def curves(
        self,
        rows: Sequence[tuple[str, str]],
        at: Sequence[float],
        threats: Sequence[Sequence[Threat]],
    ) -> Curves:
        """The evaluations of all rows and levels, side by side."""
        table = [
            [self.point(name, threat) for threat in line]
            for (name, _), line in zip(rows, threats, strict=True)
        ]
        shape = (len(rows), len(at), len(self.images))

        def gather(key: str) -> Array:
            return np.array([[p[key] for p in line] for line in table], np.float64).reshape(shape)

        draws = np.array([[p["draws"] for p in line] for line in table], np.int64)
        return Curves(
            tuple(m for m, _ in rows), tuple(s for _, s in rows), np.array(at),
            draws=draws.reshape(shape[:2]), **{name: gather(name) for name in _MEASURES},
        )  # fmt: skip

    def point(self, name: str, threat: Threat) -> Arrays:
        """All measures of one evaluation, one number per image."""
        if (name, threat) not in self.found:
            self.found[name, threat] = self._point(Setting(self.named[name], threat, self.seed))
        return self.found[name, threat]

    def _point(self, setting: Setting) -> Arrays:
        record = setting.record(self.images, self.attack, self.draws)
        own = attacked(
            setting, self.images, self.attack, self.draws, self.batch, self.cells, record
        )

        def compute(part: slice) -> Arrays:
            few, x_adv = self.images[part], torch.from_numpy(own["x_adv"][part])
            return judged_losses(setting, few, x_adv, self.draws)

        losses = [
            self.cells(f"loss-{short_hash(record)}-{p.start}-{p.stop}", partial(compute, p))
            for p in slices(len(self.images), self.batch)
        ]
        return {
            "accuracy_clean": share(own["clean"], self.images),
            "accuracy": share(own["adversarial"], self.images),
            **join(losses),
            "draws": np.array(own["clean"].shape[1]),
        }


def settings_of(
    named: Mapping[str, Defended],
    images: Images,
    attack: Attack,
    threat: Threat,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """What decides an analysis of several models, as plain data."""
    records = {
        name: describe(model, images, attack, threat, draws=draws, seed=seed)
        for name, model in named.items()
    }
    kept = {k: v for k, v in next(iter(records.values())).items() if k != "model"}
    return {**kept, "models": {name: record["model"] for name, record in records.items()}}


def judged_losses(setting: Setting, images: Images, x_adv: Tensor, draws: int) -> Arrays:
    """J(0) and J(delta*) of each image (n,): mean cross-entropy under the judge's own draws."""
    noise, draws = setting.judge(images.index), setting.draws(images.index, draws)
    pair = {"clean_loss": images.x, "adversarial_loss": x_adv}
    return {
        name: np.concatenate(list(_losses(setting.model, x, images.y, noise, draws)))
        .reshape(-1, draws)
        .mean(1, dtype=np.float64)
        for name, x in pair.items()
    }


def _losses(model: Defended, x: Tensor, y: Tensor, noise: Noise, draws: int) -> Iterator[Array]:
    """Cross-entropies of every row of `predict`, in its order and its parts."""
    device = device_of(model, x)
    rows = noise.draws(draws) if draws > 1 else noise
    image = torch.arange(len(x)).repeat_interleave(draws)
    for part in slices(len(image), JUDGE_ROWS):
        at = image[part]
        with torch.no_grad():
            logits = model(x[at].to(device), rows[part])
            yield cross_entropy(logits, y[at].to(device)).cpu().numpy()
