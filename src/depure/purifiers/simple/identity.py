"""No purification."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from depure.noise import Noise
from depure.purifiers.base import Purifier


class Identity(Purifier):
    """Returns x: the undefended classifier behind the same interface."""

    @property
    def stages(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def defends(self) -> bool:
        """No."""
        return False

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """x itself."""
        return x

    def record(self) -> dict[str, Any]:
        """Its name."""
        return {"name": "Identity"}

    def __repr__(self) -> str:
        return "Identity()"
