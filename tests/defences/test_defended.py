"""The defended classifier: an ordinary module that never hides a mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depure.defences import Defended
from depure.diffusion import Denoiser
from depure.noise import Noise
from depure.purifiers import DiffPure, Identity, Purifier

MakeDenoiser = Callable[..., Denoiser]


def classifier() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.LazyLinear(5))
    net = nn.Sequential(*layers).double()
    net(torch.rand(9, 3, 8, 8, dtype=torch.float64))
    return net.requires_grad_(False)


@pytest.fixture
def model(make_denoiser: MakeDenoiser) -> Defended:
    return Defended(DiffPure(make_denoiser(), steps=2), classifier())


def test_classifies_purified_images(model: Defended, images: Tensor, noise: Noise) -> None:
    expected = model.classifier(model.purifier(images, noise))
    assert torch.equal(model(images, noise), expected)
    assert expected.shape == (2, 5)
    assert model.stages == model.purifier.stages == ("forward", "reverse")
    assert not any(part.training for part in model.modules())


def test_without_noise_torch_seeds_it(model: Defended, images: Tensor) -> None:
    torch.manual_seed(3)
    first, second = model(images), model(images)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(model(images), first)
    assert torch.equal(model(images), second)
    torch.manual_seed(4)
    assert not torch.equal(model(images), first)


def test_without_noise_every_row_has_its_own(model: Defended, images: Tensor) -> None:
    logits = model(images[:1].repeat(4, 1, 1, 1))
    assert len(logits.unique(dim=0)) == 4


def test_draws_go_with_repeated_images(model: Defended, images: Tensor, noise: Noise) -> None:
    logits = model(images.repeat_interleave(3, 0), noise.draws(3))
    one = model(images[1:], noise[1:].draws(3)[2:])
    torch.testing.assert_close(logits[5:], one, rtol=1e-12, atol=1e-12)


def test_gradient_reaches_the_images(model: Defended, images: Tensor, noise: Noise) -> None:
    x = images.requires_grad_()
    (grad,) = torch.autograd.grad(model(x, noise)[:, 0].sum(), x)
    assert (grad.flatten(1).norm(dim=1) > 1e-3).all()


def test_undefended(images: Tensor) -> None:
    net = classifier()
    model = Defended(Identity(), net)
    assert torch.equal(model(images), net(images))
    assert model.stages == ()


@pytest.mark.parametrize("part", ["classifier", "1", "3"])
def test_train_mode_of_the_classifier(
    model: Defended, images: Tensor, noise: Noise, part: str
) -> None:
    before = model(images, noise)
    chosen = model.classifier if part == "classifier" else model.classifier.get_submodule(part)
    chosen.train()
    with pytest.raises(ValueError, match=r"classifier has a part in train mode .*\.eval\(\)"):
        model(images, noise)
    model.eval()
    assert torch.equal(model(images, noise), before)


def test_train_is_refused(model: Defended) -> None:
    with pytest.raises(ValueError, match="stays in eval mode"):
        model.train()
    assert not any(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda z: z[:, 0], r"\(2,\)"),
        (lambda z: z[..., None], r"\(2, 5, 1\)"),
        (lambda z: z[:1], r"\(1, 5\)"),
        (lambda z: (z, z), "tuple"),
        (lambda z: None, "NoneType"),
    ],
)
def test_classifier_of_the_wrong_shape(
    model: Defended, images: Tensor, noise: Noise, wrong: Any, got: str
) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrong(model.classifier(x))

    with pytest.raises(ValueError, match=rf"logits of shape \(2, classes\); got {got}$"):
        Defended(model.purifier, Wrong())(images, noise)


@pytest.mark.parametrize("given", [True, False], ids=["noise", "no noise"])
def test_images_are_checked(model: Defended, images: Tensor, noise: Noise, given: bool) -> None:
    passed = (noise,) if given else ()
    with pytest.raises(ValueError, match=r"pass \(x \+ 1\) / 2"):
        model(2 * images - 1, *passed)
    with pytest.raises(ValueError, match=r"x\[None\]"):
        model(images[0], *passed)


def test_misspelt_stage_is_refused(model: Defended, images: Tensor, noise: Noise) -> None:
    with pytest.raises(ValueError, match=r"'backward'.* draws noise at: forward, reverse"):
        model(images, noise.lock("backward"))


def test_any_purifier_will_do(images: Tensor, noise: Noise) -> None:
    """A new defence is one class with `stages` and `purify`."""

    class Jitter(Purifier):
        @property
        def stages(self) -> tuple[str, ...]:
            return ("jitter",)

        def purify(self, x: Tensor, noise: Noise) -> Tensor:
            return x + 0.1 * noise.normal("jitter", 0, x)

    net = classifier()
    model = Defended(Jitter(), net)
    expected = net(images + 0.1 * noise.normal("jitter", 0, images))
    assert torch.equal(model(images, noise), expected)
    assert torch.equal(model(images, noise.lock("jitter")), model(images, noise.lock("jitter")))


def test_train_mode_of_any_purifier(images: Tensor, noise: Noise) -> None:
    class Blur(Purifier):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout()

        @property
        def stages(self) -> tuple[str, ...]:
            return ()

        def purify(self, x: Tensor, noise: Noise) -> Tensor:
            return self.dropout(x)

    model = Defended(Blur(), classifier())
    model.purifier.train()
    with pytest.raises(ValueError, match="train mode"):
        model(images, noise)
