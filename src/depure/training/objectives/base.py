"""What training minimises: functions of a network, a batch and its noise."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from depure.data.images import Images
from depure.noise import Noise


class Objective(ABC):
    """A frozen dataclass of settings; calling it gives the loss of one update.

    A new objective is one file with one such class; see docs/extending.md.
    """

    @abstractmethod
    def __call__(self, network: nn.Module, batch: Images, noise: Noise) -> Tensor:
        """The mean loss of a batch, a scalar; a pure function of what it is given.

        Args:
            network: what is trained, in train mode.
            batch: images on the network's device, augmented.
            noise: one row for each image, new for each update.
        """

    def describe(self) -> str:
        """Everything that decides the loss, for records."""
        return repr(self)
