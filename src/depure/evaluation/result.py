"""What an evaluation gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depure.evaluation.shards import Shard
from depure.evaluation.statistics import Interval


@dataclass(frozen=True, eq=False)
class Result:
    """A finished evaluation: the card, and the tables it was made from."""

    card: dict[str, Any]
    shard: Shard
    folder: Path | None

    @property
    def clean(self) -> Interval:
        """Accuracy on a fresh draw without attack."""
        return Interval(**self.card["results"]["clean"]["accuracy"])

    @property
    def robust(self) -> Interval:
        """Accuracy on a fresh draw under attack."""
        return Interval(**self.card["results"]["robust"]["accuracy"])
