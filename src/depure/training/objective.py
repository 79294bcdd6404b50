"""What training minimises: functions of a network, a batch and its noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional

from depure.data.images import Images
from depure.noise import Noise
from depure.training.addt import ADDT, addt_loss
from depure.training.family import Family
from depure.weights import fingerprint


class Objective(ABC):
    """A frozen dataclass of settings; calling it gives the loss of one update."""

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


@dataclass(frozen=True)
class Denoising(Objective):
    """The loss of a diffusion model: plain, or with ADDT's adversarial noise.

    Args:
        family: the kind of diffusion model.
        settings: how the noise is made adversarial; not at all by default, which is ordinary
            training, and the control when fine-tuning.
        guide: the classifier that guides, frozen and in eval mode; None where none is needed.

    Errors as in :func:`~depure.training.addt.addt_loss`.
    """

    family: Family
    settings: ADDT = field(default_factory=lambda: ADDT(perturbation="none"))
    guide: nn.Module | None = field(default=None, repr=False)

    def __call__(self, network: nn.Module, batch: Images, noise: Noise) -> Tensor:
        """The (adversarial) denoising loss, images scaled to ``[-1, 1]``."""
        x0 = 2.0 * batch.x - 1.0
        t = self.family.times(noise.uniform("time", 0, x0[:, 0, 0, 0].double()))
        return addt_loss(network, self.guide, self.family, x0, batch.y, t, noise, self.settings)

    def describe(self) -> str:
        """Settings, and the guide's weights where it guides."""
        used = self.guide is not None and self.settings.perturbation != "none"
        weights = fingerprint(self.guide.state_dict()) if used and self.guide else "none"
        return f"{self!r}, guide {weights}"


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Plain training of a classifier."""

    def __call__(self, network: nn.Module, batch: Images, noise: Noise) -> Tensor:
        """Cross-entropy of the logits."""
        return functional.cross_entropy(logits_of(network, batch.x, batch.y), batch.y)


def logits_of(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The network's logits ``(B, K)``, known to cover the labels.

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
