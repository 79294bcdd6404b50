"""What a training leaves behind while it runs: metrics, samples, quick checks, best weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from depure.training import EMA

Measure = Callable[[nn.Module], dict[str, float]]
"""Numbers of a network with averaged weights; the best weights maximise their mean."""


@dataclass(eq=False)
class Monitor:
    """Called after every update; writes into one folder.

    metrics.jsonl has a line for every `log_every` updates (the mean loss over them) and for every
    check; samples/ a picture each; `save_best` is called with the best network so far, by the
    mean of what `measure` gives.
    """

    folder: Path
    network: nn.Module
    bar: Callable[[float, int], None]
    measure: Measure | None = None
    picture: Callable[[nn.Module, Path], None] | None = None
    save_best: Callable[[nn.Module], None] | None = None
    check_every: int = 500
    log_every: int = 20
    tensorboard: bool = False
    _losses: list[float] = field(default_factory=list)
    _best: float | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._board = _board(self.folder) if self.tensorboard else None

    def _begin(self, update: int) -> float:
        """Forget what was logged from `update` on: a resumed run logs it again. The best score."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        kept = [line for line in lines if line["update"] < update]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        return max((float(k["score"]) for k in kept if "score" in k), default=float("-inf"))

    def __call__(self, update: int, updates: int, loss: float, average: EMA) -> None:
        """Log, and at its times check."""
        if self._best is None:
            self._best = self._begin(update)
        self.bar(update, updates)
        self._losses.append(loss)
        if update % self.log_every == 0 or update == updates:
            self._log(update, loss=sum(self._losses) / len(self._losses))
            self._losses.clear()
        if update % self.check_every == 0 or update == updates:
            self._check(update, average)

    def _check(self, update: int, average: EMA) -> None:
        if self.measure is None and self.picture is None:
            return
        network = copy.deepcopy(self.network).requires_grad_(False).eval()
        average.copy_to(network)
        if self.picture is not None:
            self.picture(network, self.folder / "samples" / f"{update:06d}.png")
        if self.measure is not None:
            found = self.measure(network)
            score = sum(found.values()) / len(found)
            self._log(update, **found, score=score)
            if self.save_best is not None and score > (self._best or 0.0):
                self.save_best(network)
                self._best = score

    def _log(self, update: int, **numbers: float) -> None:
        line = {"update": update, **{k: round(v, 6) for k, v in numbers.items()}}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, update)
            self._board.flush()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
