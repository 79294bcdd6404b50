"""What an evaluation gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depure.evaluation.shards import Shard
from depure.evaluation.statistics import Estimate


@dataclass(frozen=True, eq=False)
class Result:
    """A finished evaluation: the card, and the tables it was made from."""

    card: dict[str, Any]
    shard: Shard
    folder: Path | None

    @property
    def clean(self) -> Estimate:
        """Accuracy on a fresh draw without attack."""
        return Estimate(**self.card["results"]["clean"]["accuracy"])

    @property
    def robust(self) -> Estimate:
        """Accuracy on a fresh draw under attack."""
        return Estimate(**self.card["results"]["robust"]["accuracy"])
