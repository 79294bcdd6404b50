"""Shards: the finished work on a few images, in one file each, there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from depure.answers import predicted
from depure.attacks.asking.gradients import Expected, distinct_draws
from depure.attacks.asking.journal import journal
from depure.attacks.base import Attack, Watch
from depure.attacks.case import Case
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.evaluation.cost import Cost, counted
from depure.noise import Noise
from depure.pieces import Pieces, read_config
from depure.purifiers.base import check_stages
from depure.rows import parts, rows_at_once
from depure.threat import Threat


@dataclass(frozen=True, eq=False)
class Shard:
    """Outcomes for n images under R fresh draws and T attack iterations.

    Predictions are class numbers of every draw, before the attack ("clean", the null control)
    and after it ("adversarial"), under the same numbers of noise; -1 where the defence gave no
    finite answer.
    """

    index: Tensor  # (n,) int64, data-set index
    y: Tensor  # (n,) int64
    x: Tensor  # (n, C, H, W)
    x_adv: Tensor  # (n, C, H, W)
    clean: Tensor  # (n, R) int16
    adversarial: Tensor  # (n, R) int16
    loss: Tensor  # (n, T) float32, mean over the EoT draws of each iterate
    accuracy: Tensor  # (n, T) float32, likewise
    finite: Tensor  # (n, T) bool, whether the gradient was finite
    followed: Tensor  # (n, T) float32, share of EoT draws that followed the margin
    flat: Tensor  # (n, T) bool, whether the gradient was zero in every pixel
    best: Tensor  # (n, M) float32, accuracy after each member of an ensemble, by its own draws
    spent: Tensor  # (n, M) float64, calls of the classifier until then, an image's share

    @staticmethod
    def join(shards: list[Shard]) -> Shard:
        """All rows of several shards, in order."""
        rows = {f.name: [getattr(s, f.name) for s in shards] for f in fields(Shard)}
        return Shard(**{name: torch.cat(parts) for name, parts in rows.items()})

    def save(self, pieces: Pieces, name: str, cost: Cost) -> None:
        """Write it as the file `name` of a run."""
        tensors = {f.name: getattr(self, f.name).contiguous() for f in fields(self)}
        pieces.write_tensors(name, tensors, {"cost": vars(cost)})

    @staticmethod
    def load(pieces: Pieces, name: str) -> tuple[Shard, Cost]:
        """Read the shard that is the file `name` of a run, and what it cost.

        Raises:
            ValueError: if the file is damaged, another run's or another shard of this run.
        """
        tensors, facts = pieces.read_tensors(name)
        try:
            return Shard(**tensors), Cost(**facts["cost"])
        except (KeyError, TypeError) as error:
            pieces.damaged(name, error)


def shard_name(number: int) -> str:
    """The file of a shard in its run folder."""
    return f"shards/{number:05d}.safetensors"


def read_shards(folder: Path) -> Shard:
    """All shards of a finished run, joined.

    Raises:
        FileNotFoundError: if `folder` is no run folder.
        ValueError: if a shard is missing, damaged or another run's.
    """
    described, run = read_config(folder / "config.json")
    names = range(-(-described["data"]["images"] // described["shard_size"]))
    return Shard.join([Shard.load(Pieces(folder, run), shard_name(i))[0] for i in names])


def predict(model: Defended, x: Tensor, noise: Noise, draws: int, chunk: int) -> Tensor:
    """Predicted classes (B, draws) int16 under `noise.draws(draws)`, `chunk` rows at a time.

    -1 where the logits are not finite.
    """
    rows = noise.draws(draws) if draws > 1 else noise
    image = torch.arange(len(x), device=x.device).repeat_interleave(draws)
    with torch.no_grad():
        blocks = parts(len(image), rows_at_once(x, chunk))
        labels = [predicted(model(x[image[p]], rows[p])) for p in blocks]
    return torch.cat(labels).view(len(x), draws).to(torch.int16).cpu()


def logits_of(model: Defended, x: Tensor, noise: Noise) -> Tensor:
    """Logits (B, K) under one row of noise each, no more rows at once than the run's chunk."""
    with torch.no_grad():
        return torch.cat([model(x[p], noise[p]) for p in parts(len(x), rows_at_once(x))])


def base_noise(model: Defended, index: Tensor, threat: Threat, seed: int) -> Noise:
    """The noise that attacker and judge start from: one row per image, known stages held.

    Raises:
        ValueError: if the threat names a stage at which this defence draws no noise.
    """
    check_stages(threat.knows, model.stages, "knows")
    return threat.hold(Noise.of(seed, index))


def compute_shard(
    model: Defended,
    images: Images,
    attack: Attack,
    threat: Threat,
    *,
    draws: int,
    seed: int,
    chunk: int,
    device: torch.device,
    tick: Callable[[float], None] = lambda fraction: None,
    journal_path: Path | None = None,
    run: str = "",
) -> tuple[Shard, Cost]:
    """Attack some images and judge them before and after on draws that the attack never used.

    `tick` hears the fraction of the attack's steps done. The defence's answers to the attack are
    kept in the file `journal_path` with the identity `run`, so that it goes on after a kill; when
    the shard is safe, delete it.
    """
    base = base_noise(model, images.index, threat, seed)
    draws = distinct_draws(model.stages, base, draws)
    x, y = images.x.to(device), images.y.to(device)
    case = Case(model, x, y, threat.ball, base.fold("attack"))
    with counted(model) as cost:
        watch = _Recorder(cost, tick, attack.trace_length(case))
        with nullcontext() if journal_path is None else journal(journal_path, vars(cost), run):
            x_adv = attack(model, x, y, threat.ball, case.noise, watch=watch)
        judge = base.fold("judge")
        clean = predict(model, x, judge, draws, chunk)
        adversarial = predict(model, x_adv, judge, draws, chunk)

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return _columns([getattr(entry, name) for entry in watch.trace], len(x), dtype)

    shard = Shard(
        images.index, images.y, images.x, x_adv.cpu(), clean, adversarial,
        column("loss", torch.float32), column("accuracy", torch.float32),
        column("finite", torch.bool), column("followed", torch.float32), column("flat", torch.bool),
        _columns(watch.best, len(x), torch.float32),
        torch.tensor(watch.calls, dtype=torch.float64).div(len(x)).expand(len(x), -1),
    )  # fmt: skip
    return shard, cost


class _Recorder(Watch):
    """Keeps the trace, and what an ensemble's members cost until then and won."""

    def __init__(self, cost: Cost, tick: Callable[[float], None], length: int) -> None:
        self.cost, self.tick, self.length = cost, tick, max(length, 1)
        self.trace: list[Expected] = []
        self.best: list[Tensor] = []
        self.calls: list[int] = []  # of the classifier

    def iteration(self, measured: Expected) -> None:
        self.trace.append(measured._replace(grad=torch.empty(0)))
        self.tick(min(1.0, len(self.trace) / self.length))

    def member(self, number: int, accuracy: Tensor) -> None:
        self.best.append(accuracy)
        self.calls.append(self.cost.classifier_calls)


def _columns(columns: list[Tensor], rows: int, dtype: torch.dtype) -> Tensor:
    """(n, T), a column for each entry."""
    if not columns:
        return torch.empty(rows, 0, dtype=dtype)
    return torch.stack([column.to("cpu", dtype) for column in columns], 1)
