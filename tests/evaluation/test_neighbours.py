"""A defence whose answers depend on the images beside is noticed; rounding is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from depure import (
    DDPM,
    PGD,
    Defended,
    DiffPure,
    Identity,
    Linf,
    Noise,
    Threat,
    digits,
    evaluate,
    load_classifier,
    load_denoiser,
)
from depure.evaluation.neighbours import neighbours_matter

IMAGES = digits("test").sample(8)
NOISE = Noise.of(0, range(8))


class BatchNormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, affine=False, track_running_stats=False)
        self.net = load_classifier("digits")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.norm(x) * 0.35 + 0.3)
        return out


class Pooled(nn.Module):
    """Adapts to the mean of the batch, a little."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_classifier("digits")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(0.9 * x + 0.1 * x.mean(0, keepdim=True))
        return out


@pytest.mark.parametrize("network", [BatchNormalised(), Pooled()])
def test_answers_that_depend_on_others_are_refused(network: nn.Module) -> None:
    model = Defended(Identity(), network)
    with pytest.raises(ValueError, match="the images beside it"):
        evaluate(model, IMAGES, PGD(steps=2, eot=1), Threat(Linf(0.2)), draws=1, check_images=0)


@pytest.mark.parametrize("shard_size", [1, 3, 8])
def test_one_at_a_time_they_are_judged_alike_and_it_is_said(shard_size: int) -> None:
    result = evaluate(
        Defended(Identity(), BatchNormalised()), IMAGES, PGD(steps=4, eot=1), Threat(Linf(0.2)),
        draws=1, check_images=0, chunk=1, shard_size=shard_size,
    )  # fmt: skip
    whole = evaluate(
        Defended(Identity(), BatchNormalised()), IMAGES, PGD(steps=4, eot=1), Threat(Linf(0.2)),
        draws=1, check_images=0, chunk=1,
    )  # fmt: skip
    assert torch.equal(result.shard.adversarial, whole.shard.adversarial)
    verdicts = {c["name"]: c["verdict"] for c in result.card["checks"]}
    assert verdicts["neighbours"] == "warn"


def test_rounding_is_no_dependence() -> None:
    purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=10)
    for model in (
        Defended(purifier, load_classifier("digits")),
        Defended(Identity(), load_classifier("digits")),
    ):
        assert neighbours_matter(model, IMAGES.x, NOISE) is None


class Crowded(nn.Module):
    """Answers otherwise in a pass of more than `most` rows."""

    def __init__(self, most: int, change: float) -> None:
        super().__init__()
        self.net, self.most, self.change = load_classifier("digits"), most, change

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        first = torch.arange(out.shape[1]) == 0
        return out + torch.where(first, self.change, 0.0) if len(x) > self.most else out


@pytest.mark.parametrize("most", [1, 3, 15])
@pytest.mark.parametrize("change", [1.0, torch.nan])
def test_passes_of_every_size_are_compared(most: int, change: float) -> None:
    """One that leaves the image unanswered among others depends on them, too."""
    model = Defended(Identity(), Crowded(most, change))
    assert (neighbours_matter(model, IMAGES.x, NOISE) or 0.0) > 0.01
    if most > 1:
        assert neighbours_matter(model, IMAGES.x, NOISE, most) is None
