"""A sure classifier does not look robust: rows without a slope of their loss follow the margin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from depure import PGD, Defended, Identity, Linf, Threat, digits, evaluate, load_classifier
from depure.attacks import SPSA, RayS, Square
from depure.attacks.asking.gradients import Average, expected_grad
from depure.attacks.asking.losses import LOSSES
from depure.noise import Noise

IMAGES = digits("test").sample(16)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.net, self.factor = load_classifier("digits"), factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) * self.factor
        return out


def measured(factor: float, loss: str, average: Average = "gradients"):
    model = Defended(Identity(), Scaled(factor))
    noise = Noise.of(0, range(len(IMAGES)))
    return expected_grad(model, IMAGES.x, IMAGES.y, LOSSES[loss], noise, 1, average=average)


@pytest.mark.parametrize("average", ["gradients", "logits"])
@pytest.mark.parametrize("factor", [100.0, 1000.0])
def test_rows_without_a_slope_follow_the_margin(factor: float, average: Average) -> None:
    found, margin = measured(factor, "ce", average), measured(factor, "margin", average)
    followed = found.followed.bool()
    assert followed.float().mean() > 0.5
    assert torch.equal(found.grad[followed].sign(), margin.grad[followed].sign())
    plain = LOSSES["ce"](Scaled(factor)(IMAGES.x), IMAGES.y)
    assert torch.equal(found.loss, plain.detach())  # the loss stays what it is


@pytest.mark.parametrize("factor", [1.0, 1.5])
@pytest.mark.parametrize("average", ["gradients", "logits"])
def test_rows_with_a_slope_are_as_published(factor: float, average: Average) -> None:
    """Beside rows that follow the margin, too."""
    found = measured(factor, "ce", average)
    leaf = IMAGES.x.clone().requires_grad_()
    LOSSES["ce"](Scaled(factor)(leaf), IMAGES.y).sum().backward()
    keep = ~found.followed.bool()
    assert keep.float().mean() > 0.5
    assert factor == 1.0 or not keep.all()
    assert torch.equal(found.grad[keep], leaf.grad[keep])


@pytest.mark.parametrize("factor", [30.0, 1000.0])
def test_a_sure_classifier_falls_as_any_other(factor: float) -> None:
    """Without the rule PGD on cross-entropy leaves nearly all of these images."""
    robust = [
        evaluate(
            Defended(Identity(), Scaled(f)), IMAGES, PGD(steps=10, eot=1), Threat(Linf(0.2)),
            draws=1, check_images=0,
        )
        for f in (1.0, factor)
    ]  # fmt: skip
    assert robust[1].robust.value <= robust[0].robust.value + 0.13  # two images of sixteen
    names = {c["name"]: c["verdict"] for c in robust[1].card["checks"]}
    assert names["vanishing loss"] == "warn"


class Remote(nn.Module):
    """Answers, but cannot be differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_classifier("digits")

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.net(x.detach()).detach().numpy().copy())


@pytest.mark.parametrize("attack", [Square(steps=20), RayS(steps=20), SPSA(steps=2, samples=8)])
def test_defences_without_gradients_can_be_asked(attack) -> None:
    assert not attack.needs_gradient
    model = Defended(Identity(), Remote())
    some = IMAGES[slice(0, 4)]
    result = evaluate(model, some, attack, Threat(Linf(0.2)), draws=1, check_images=0)
    verdicts = {c["name"]: c["verdict"] for c in result.card["checks"]}
    assert verdicts["gradient"] == "warn"
    with pytest.raises(ValueError, match="cannot be evaluated as it is"):
        evaluate(model, some, PGD(steps=2, eot=1), Threat(Linf(0.2)), draws=1, check_images=0)
