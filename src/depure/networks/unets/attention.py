"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Norm, attention with several heads, linear map, and the sum with the input.

    Args:
        channels: in and out.
        head_size: features of one head.
        groups: of the group norm; None leaves it out.
        eps: of the group norm.
        scale: the sum is divided by it.
    """

    def __init__(
        self, channels: int, head_size: int, groups: int | None, eps: float, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.heads, self.scale = channels // head_size, scale
        inner = self.heads * head_size
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        # Training sets the probability of every dropout layer, here too.
        self.to_out = nn.ModuleList([nn.Linear(inner, channels), nn.Dropout(0.0)])

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, H, W) to the same shape."""
        flat = x.flatten(2)
        rows = (flat if self.group_norm is None else self.group_norm(flat)).transpose(1, 2)
        q, k, v = (self._heads(linear(rows)) for linear in (self.to_q, self.to_k, self.to_v))
        rows = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        for layer in self.to_out:
            rows = layer(rows)
        out = rows.transpose(1, 2).reshape(x.shape) + x
        return out if self.scale == 1 else out / self.scale
