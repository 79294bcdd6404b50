"""Plain training of a classifier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from depure.data.images import Images
from depure.noise import Noise
from depure.training.objectives.base import Objective


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy of the logits."""

    def __call__(self, network: nn.Module, batch: Images, noise: Noise) -> Tensor:
        """The mean over the batch."""
        return functional.cross_entropy(logits_of(network, batch.x, batch.y), batch.y)


def logits_of(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The network's logits (B, K), known to cover the labels.

    Raises:
        ValueError: they have another shape, or too few classes.
    """
    logits: Tensor = network(x)
    if logits.ndim != 2 or len(logits) != len(x) or int(y.max()) >= logits.shape[1]:
        raise ValueError(
            f"the classifier must give logits ({len(x)}, K) with K above the largest label "
            f"{int(y.max())}; got {tuple(logits.shape)}: choose one for these classes"
        )
    return logits
