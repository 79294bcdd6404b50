"""Types that several floors share. Shapes: B images, C channels, H x W pixels, K classes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Step = Callable[[Tensor], Tensor]
"""One link of a chain: a state (B, C, H, W) to the next state."""
