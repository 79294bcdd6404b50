"""A purifier in front of a classifier."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from depure.noise import Noise
from depure.purifiers.base import Purifier, check_eval
from depure.types import Trace


class Defended(nn.Module):
    """Logits of the classifier on purified images; an ordinary module for third-party attacks.

    Args:
        purifier: (x, noise) -> x.
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K); its normalisation is inside.

    Both are put into eval mode and must stay there.

    Example:
        >>> model = Defended(purifier, classifier)  # doctest: +SKIP
        >>> model(x)  # fresh noise, seeded by torch.manual_seed  # doctest: +SKIP
        >>> model(x, Noise.of(seed=0, index=range(len(x))))  # repeatable  # doctest: +SKIP
    """

    def __init__(self, purifier: Purifier, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier
        self.eval()

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages at which the purifier draws noise."""
        return self.purifier.stages

    def train(self, mode: bool = True) -> Self:
        """Set the mode of every part; a purifier that refuses leaves all in eval mode."""
        try:
            return super().train(mode)
        except ValueError:  # torch has set this module's own mode before it asked the parts
            super().train(False)
            raise

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Logits (B, K); without `noise`, fresh numbers seeded from torch's default generator.

        Raises:
            ValueError: for unusable images or noise, a part in train mode, or logits of the
                wrong shape.
        """
        check_eval(self.classifier, "classifier")
        if noise is None:
            seed = int(torch.randint(2**63 - 1, ()).item())
            noise = Noise.of(seed, range(len(x)))
        return self._logits(self.purifier(x, noise))

    def trace(self, x: Tensor, noise: Noise) -> Trace:
        """Logits (B, K) under this noise, equal to those of a call, and the states before them.

        Raises:
            ValueError: as a call, for a purifier that passes through no states, or for one whose
                gradient of them is wanted and missing.
        """
        check_eval(self.classifier, "classifier")
        waypoints = self.purifier.trace(x, noise)
        return Trace(self._logits(waypoints[-1].state), waypoints)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Any = self.classifier(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the classifier must return logits of shape ({len(x)}, classes); got {got}"
            )
        return logits
