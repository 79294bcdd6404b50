"""Which settings fool which: adversarial images made against one, judged under every other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit

from depure.analysis.common import check_counts, device_of, expect_cells, join, short_hash, slices
from depure.analysis.store import Array, Arrays, Cells
from depure.attacks.asking.gradients import distinct_draws
from depure.attacks.base import Attack
from depure.attacks.gradient.pgd import PGD
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.evaluation.record import describe
from depure.evaluation.shards import base_noise, compute_shard, predict
from depure.evaluation.statistics import Interval, mean_accuracy
from depure.noise import Noise
from depure.threat import Threat

JUDGE_ROWS = 128  # rows of one forward pass when judging: `evaluate`'s own, for equal rounding

NOTES = (
    "a setting is a defence, a threat and a seed: the attacker has them, the judge may have others",
    "the diagonal is each setting's own evaluation",
    "inference: no paper defines this matrix; its form is ours",
)


class Setting(NamedTuple):
    """A defence, what the attacker may do and knows of its noise, and the seed of that noise."""

    model: Defended
    threat: Threat
    seed: int = 0

    def judge(self, index: torch.Tensor) -> Noise:
        """The noise under which `evaluate` judges these images."""
        return base_noise(self.model, index, self.threat, self.seed).fold("judge")

    def draws(self, index: torch.Tensor, draws: int) -> int:
        """1 where all draws coincide, else `draws`."""
        return distinct_draws(self.model.stages, self.judge(index[:1]), draws)

    def record(self, images: Images, attack: Attack, draws: int) -> dict[str, Any]:
        """What decides the result of an evaluation under this setting."""
        return describe(self.model, images, attack, self.threat, draws=draws, seed=self.seed)


@dataclass(frozen=True, eq=False)
class TransferMatrix:
    """Accuracy of S settings on n images attacked with another setting in mind.

    Shares are over the judge's draws, which no attack used, and lie in [0, 1].
    """

    labels: tuple[str, ...]
    robust: Array  # (S, S, n), share of draws that are right: [made against, judged under]
    clean: Array  # (S, n), without attack: the null control
    draws: Array  # (S,), the judge's draws
    index: Array  # (n,), data-set indices
    settings: dict[str, Any]
    axes: ClassVar[tuple[str, ...]] = ("made against", "judged under", "image")
    notes: ClassVar[tuple[str, ...]] = NOTES

    def robust_accuracy(self) -> Array:
        """(S, S, 3): accuracy under attack, with the ends of its 95 % interval."""
        return np.stack([_rows(row, self.draws) for row in self.robust])

    def clean_accuracy(self) -> Array:
        """(S, 3): accuracy without attack, with the ends of its 95 % interval."""
        return _rows(self.clean, self.draws)

    def arrays(self) -> Arrays:
        """All arrays by name, with the estimates."""
        found = {k: np.asarray(v) for k, v in vars(self).items() if k != "settings"}
        found["robust_accuracy"] = self.robust_accuracy()
        return {**found, "clean_accuracy": self.clean_accuracy()}


def transfer(
    settings: Mapping[str, Setting | tuple[Defended, Threat, int]],
    images: Images,
    *,
    attack: Attack | None = None,
    draws: int = 20,
    batch: int = 32,
    cells: Cells | None = None,
) -> TransferMatrix:
    """Attack under every setting, judge under every setting.

    Settings may differ in seed (DW-box: other known noise), sampler, number of steps, model,
    or in what the attacker knows. Attacks and judgements are those of `evaluate` with the
    setting's seed: the diagonal equals its results exactly, if `batch` is its shard_size.

    Args:
        settings: at least one; (model, threat, seed) tuples will do. All with the same ball.
        images: n >= 2 images.
        attack: PGD-20 with EoT 10 by default.
        draws: fresh draws that judge an image; one where all noise is known.
        batch: images in one cell.
        cells: keeps the pieces, see `Cells`; its `total` grows by the number of cells here.

    Raises:
        ValueError: no settings, different balls, an unknown stage, fewer than 2 images.

    Example:
        >>> box = Threat(Linf(8 / 255), knows=("forward",))  # doctest: +SKIP
        >>> transfer({"seed 0": (m, box, 0), "seed 1": (m, box, 1)}, images)  # doctest: +SKIP
    """
    attack = PGD() if attack is None else attack
    check_counts(draws=draws, batch=batch)
    check_enough(images)
    chosen = {label: Setting(*value) for label, value in settings.items()}
    _check_balls(chosen)
    cells = expect_cells(cells, len(slices(len(images), batch)) * len(chosen) ** 2)
    rows, clean = [], []
    records = {label: setting.record(images, attack, draws) for label, setting in chosen.items()}
    for made, setting in chosen.items():
        own = attacked(setting, images, attack, draws, batch, cells, records[made])
        clean.append(share(own["clean"], images))
        row = []
        for label, other in chosen.items():
            seen = own["adversarial"]
            if label != made:
                pair = (records[made], records[label])
                seen = _judged(other, images, own["x_adv"], draws, batch, cells, pair)
            row.append(share(seen, images))
        rows.append(row)
    count = [s.draws(images.index, draws) for s in chosen.values()]
    return TransferMatrix(
        tuple(chosen), np.array(rows), np.array(clean), np.array(count),
        images.index.numpy(), _joint(records),
    )  # fmt: skip


def _joint(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What all settings share, and the rest by setting."""
    first = next(iter(records.values()))
    own = {k: {n: r[n] for n in ("model", "threat", "seed")} for k, r in records.items()}
    shared = {n: first[n] for n in ("data", "attack", "draws")}
    return {**shared, "ball": first["threat"]["ball"], "settings": own}


def _check_balls(chosen: dict[str, Setting]) -> None:
    if not chosen:
        raise ValueError("no settings were given: name at least one (model, threat, seed)")
    balls = {label: setting.threat.ball for label, setting in chosen.items()}
    if len(set(balls.values())) > 1:
        raise ValueError(
            f"all settings must share one ball, or the columns compare attacks of different "
            f"sizes; got {balls}"
        )


def _judged(
    other: Setting,
    images: Images,
    x_adv: Array,
    draws: int,
    batch: int,
    cells: Cells,
    records: tuple[dict[str, Any], dict[str, Any]],
) -> Array:
    """Predictions (n, R) of a setting on images made against another one."""
    name = f"transfer-{short_hash(records[0])}-{short_hash(records[1])}"

    def compute(part: slice) -> Arrays:
        few = images[part]
        x = torch.from_numpy(x_adv[part]).to(device_of(other.model, few.x))
        count = other.draws(few.index, draws)
        seen = predict(other.model, x, other.judge(few.index), count, JUDGE_ROWS)
        return {"adversarial": seen.numpy()}

    parts = slices(len(images), batch)
    return join([cells(f"{name}-{p.start}-{p.stop}", partial(compute, p)) for p in parts])[
        "adversarial"
    ]


# --- evaluations and intervals, shared with the other instruments ---------------------------------


def attacked(
    setting: Setting,
    images: Images,
    attack: Attack,
    draws: int,
    batch: int,
    cells: Cells,
    record: dict[str, Any] | None = None,
) -> Arrays:
    """One evaluation: "x_adv" (n, C, H, W), and predictions "clean" and "adversarial" (n, R).

    One cell for `batch` images, which instruments can share.
    """
    record = setting.record(images, attack, draws) if record is None else record

    def compute(part: slice) -> Arrays:
        few = images[part]
        shard, _ = compute_shard(
            setting.model, few, attack, setting.threat, draws=draws, seed=setting.seed,
            chunk=JUDGE_ROWS, device=device_of(setting.model, few.x),
        )  # fmt: skip
        return {n: getattr(shard, n).numpy() for n in ("x_adv", "clean", "adversarial")}

    name, parts = f"evaluation-{short_hash(record)}", slices(len(images), batch)
    return join([cells(f"{name}-{p.start}-{p.stop}", partial(compute, p)) for p in parts])


def share(predictions: Array, images: Images) -> Array:
    """Share (n,) of the draws that are right, of predictions (n, R)."""
    return np.asarray((predictions == images.y.numpy()[:, None]).mean(1))


def check_enough(images: Images) -> None:
    """Raise ValueError for fewer images than an interval needs."""
    if len(images) < 2:
        raise ValueError(
            f"an interval needs at least 2 images, as it rests on how they differ; got "
            f"{len(images)}: give more"
        )


def table_of(shares: Array, draws: int) -> Array:
    """A table (n, draws) of right and wrong draws with these shares of right ones (n,)."""
    return np.asarray(np.arange(draws) < np.rint(shares * draws)[:, None])


def accuracy_of(shares: Array, draws: int) -> Interval:
    """Mean over images of the share of `draws` that are right (n,), as `mean_accuracy`."""
    return mean_accuracy(table_of(shares, draws))


def mean_of(values: Array, confidence: float = 0.95) -> Interval:
    """Mean over images of one number each (n,), with a t interval clustered by image.

    Images whose number is not finite are left out; NaN, without an interval, where fewer than
    two are left.
    """
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return Interval(float(known.mean()) if len(known) else np.nan, np.nan, np.nan)
    mean = float(known.mean())
    half = stdtrit(len(known) - 1, 0.5 + confidence / 2) * known.std(ddof=1) / len(known) ** 0.5
    return Interval(mean, mean - float(half), mean + float(half))


def as_tuple(estimate: Interval) -> tuple[float, float, float]:
    """Value, low, high."""
    return estimate.value, estimate.low, estimate.high


def _rows(shares: Array, draws: Array) -> Array:
    return np.array([as_tuple(accuracy_of(s, int(d))) for s, d in zip(shares, draws, strict=True)])
