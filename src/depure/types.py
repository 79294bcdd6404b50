"""Shape vocabulary, once: B images, C channels, H x W pixels, K classes, R draws."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Images = Tensor  # (B, C, H, W), float, in [0, 1] outside a purifier and [-1, 1] inside
Labels = Tensor  # (B,), int64
Logits = Tensor  # (B, K)
Step = Callable[[Tensor], Tensor]  # one link of a chain: a state to the next state
