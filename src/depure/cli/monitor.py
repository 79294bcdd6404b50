"""What a training leaves behind while it runs: metrics, samples, quick checks, best weights."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from depure.files import write_text
from depure.training import EMA

Measure = Callable[[nn.Module], dict[str, float]]
"""Numbers of a network with averaged weights; the best weights maximise the mean of the scores."""

GRADIENT_CHECK = "gradient_check"  # 1 or 0, beside the scores: it says whether they can be trusted


@dataclass(eq=False)
class Monitor:
    """Called after every update; writes into one folder.

    metrics.jsonl has a line for every `log_every` updates (the mean loss over them) and for every
    check; samples/ a picture each; `save_best` is called with the best network so far, by the
    mean of what `measure` gives. `claim` is called before anything is written. What it remembers
    lies in the checkpoints, so that a killed and resumed training leaves the same files.
    """

    folder: Path
    network: nn.Module
    bar: Callable[[float, int], None]
    measure: Measure | None = None
    picture: Callable[[nn.Module, Path], None] | None = None
    save_best: Callable[[nn.Module], object] | None = None
    check_every: int = 500
    log_every: int = 20
    tensorboard: bool = False
    claim: Callable[[], None] = lambda: None
    _losses: list[float] = field(default_factory=list)
    _lines: list[str] = field(default_factory=list)
    _best: float | None = None
    _begun: bool = False
    _board: Any = None

    def __post_init__(self) -> None:
        if self.tensorboard:
            _writer()  # refuses before the training, if there is none

    def memory(self) -> dict[str, Any]:
        """What it logged, the losses since, and the best score."""
        return {"lines": self._lines.copy(), "losses": self._losses.copy(), "best": self._best}

    def recall(self, memory: dict[str, Any]) -> None:
        """Go on from a memory."""
        self._lines, self._losses = list(memory["lines"]), list(memory["losses"])
        self._best = memory["best"]

    def __call__(self, update: int, updates: int, loss: float, average: EMA) -> None:
        """Log, and at its times check."""
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
        self._begin()
        network = copy.deepcopy(self.network).requires_grad_(False).eval()
        average.copy_to(network)
        if self.picture is not None:
            self.picture(network, self.folder / "samples" / f"{update:06d}.png")
        if self.measure is not None:
            found = self.measure(network)
            scores = [value for name, value in found.items() if name != GRADIENT_CHECK]
            score = sum(scores) / len(scores)
            if self.save_best is not None and (self._best is None or score > self._best):
                self.save_best(network)
                self._best = score
            self._log(update, **found, score=score)

    def _log(self, update: int, **numbers: float) -> None:
        self._begin()
        line = json.dumps({"update": update, **{k: round(v, 6) for k, v in numbers.items()}}) + "\n"
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise OSError(
                f"cannot write {path} ({error.strerror or error}): make room, and run the same "
                f"command again; the last checkpoint is kept"
            ) from error
        self._lines.append(line)
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, update)
            self._board.flush()

    def _begin(self) -> None:
        """Leave in metrics.jsonl what was logged until the checkpoint: the rest comes again."""
        if self._begun:
            return
        self.claim()
        path = self.folder / "metrics.jsonl"
        damaged = sum(not _is_json(line) for line in _lines_of(path))
        if damaged:
            warnings.warn(
                f"{path} holds a line that is cut short or damaged ({damaged} in all): it is "
                f"dropped, the complete lines count",
                stacklevel=2,
            )
        write_text(path, "".join(self._lines))
        if self.tensorboard:
            self._board = _writer()(str(self.folder / "tensorboard"))
        self._begun = True


def _lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.is_file() else []


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter
