"""BPDA around any purifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from depure.noise import Noise
from depure.purifiers.base import Purifier


class BPDA(Purifier):
    """Any purifier, with the identity for a gradient (Athalye et al., 1802.00420, section 4.1).

    For purifiers that cannot be differentiated; a `DiffPure` takes `backprop=Straight()`.
    """

    def __init__(self, purifier: Purifier) -> None:
        super().__init__()
        self.purifier = purifier
        self.eval()

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of the purifier."""
        return self.purifier.stages

    @property
    def exact(self) -> bool:
        """No."""
        return False

    def purify(self, x: Tensor, noise: Noise) -> Tensor:
        """The purifier's images, with x's gradient passed straight through."""
        with torch.no_grad():
            value: Tensor = self.purifier(x, noise)
        return value + (x - x.detach())

    def record(self) -> dict[str, Any]:
        """Its name and the purifier's record."""
        return {"name": "BPDA", "purifier": self.purifier.record()}

    def __repr__(self) -> str:
        return f"BPDA({self.purifier!r})"
