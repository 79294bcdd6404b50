from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from depure.data import Images, digits
from depure.diffusion.schedule import VPDiscrete, table
from depure.training import (
    Shift,
    accuracy,
    denoising_loss,
    seeded,
    train_classifier,
    train_denoiser,
)
from depure.training.loop import warm_cosine
from depure.zoo import SmallCNN

ALPHA_BAR = table(VPDiscrete.linear(), torch.zeros(()))


class TinyDenoiser(nn.Module):
    """One convolution, one layer that knows the time, and dropout to need a seed."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.scale = nn.Embedding(1000, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.convolution(x) * self.scale(t).view(-1, 1, 1, 1))
        return out


def classifier() -> SmallCNN:
    with seeded(0):
        return SmallCNN(1, 10, 8)


def denoiser() -> TinyDenoiser:
    with seeded(0):
        return TinyDenoiser()


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def few(n: int = 50) -> Images:
    return digits("train").sample(n)


Train = Callable[..., None]
LOOPS: list[tuple[Train, Callable[[], nn.Module], dict[str, Any]]] = [
    (train_classifier, classifier, {"epochs": 2, "batch_size": 20, "augment": Shift(1)}),
    (train_denoiser, denoiser, {"updates": 6, "batch_size": 20}),
]
both = pytest.mark.parametrize(("train", "make", "settings"), LOOPS, ids=["classifier", "denoiser"])


def test_classifier_learns() -> None:
    model = classifier()
    train_classifier(model, digits("train"), 8, lr=1e-2, augment=Shift(1))
    assert accuracy(model, digits("test")) > 0.95


def test_denoiser_learns() -> None:
    with seeded(0):
        unet = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )
    images, generator = few(599), torch.Generator().manual_seed(1)
    t = torch.randint(1000, (599,), generator=generator)
    eps = torch.randn(images.x.shape, generator=generator)

    @torch.no_grad()
    def loss() -> float:
        x0 = 2 * images.x - 1
        return float(denoising_loss(lambda x, t: unet(x, t).sample, x0, t, eps, ALPHA_BAR))

    before = loss()
    train_denoiser(unet, images, 120, batch_size=64, max_decay=0.9, lr=4e-3)
    assert before > 0.9
    assert loss() < 0.4


@both
def test_same_seed_same_weights(train: Train, make: Any, settings: dict[str, Any]) -> None:
    results = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        network = make()
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        train(network, few(), seed=seed, **settings)
        assert torch.equal(before, torch.get_rng_state())  # no hidden global randomness
        results.append(weights(network))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@both
def test_progress_and_eval_mode(train: Train, make: Any, settings: dict[str, Any]) -> None:
    seen: list[tuple[int, int, float]] = []
    network = make()
    train(network, few(), progress=lambda *report: seen.append(report), **settings)
    # two epochs of 20 + 20 + 10 images: the partial batch counts; or six updates
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in seen} == {6}
    assert all(loss > 0 for _, _, loss in seen)
    assert not any(module.training for module in network.modules())


@both
def test_a_loss_that_is_not_finite_stops_at_once(
    train: Train, make: Any, settings: dict[str, Any]
) -> None:
    network = make()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at update 1: lower the learning"):
        train(network, few(), **settings)


@both
@pytest.mark.parametrize("name", ["lr", "batch_size", "epochs or updates"])
def test_settings_must_be_positive(
    train: Train, make: Any, settings: dict[str, Any], name: str
) -> None:
    name = next(iter(settings)) if name == "epochs or updates" else name
    with pytest.raises(ValueError, match=f"{name} must be above 0; got 0"):
        train(make(), few(), **{**settings, name: 0})


@both
def test_no_images_and_no_weights(train: Train, make: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="images must be above 0; got 0"):
        train(make(), few()[:0], **settings)
    with pytest.raises(ValueError, match="Identity has no parameters"):
        train(nn.Identity(), few(), **settings)


def test_every_image_is_seen_once_an_epoch() -> None:
    batches: list[Tensor] = []

    def watch(x: Tensor, generator: torch.Generator) -> Tensor:
        batches.append(x)
        return x

    images = few(50)
    train_classifier(classifier(), images, 2, batch_size=20, augment=watch)
    for epoch in (batches[:3], batches[3:]):
        seen = torch.cat(epoch).sum((1, 2, 3)).sort().values
        torch.testing.assert_close(seen, images.x.sum((1, 2, 3)).sort().values)
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))


def test_the_denoiser_ends_with_averaged_weights() -> None:
    finals = []
    for max_decay in (0.0, 0.5):
        network = denoiser()
        train_denoiser(network, few(), 6, batch_size=20, max_decay=max_decay)
        finals.append(weights(network))
    start, last, averaged = weights(denoiser()), *finals
    assert float((averaged - start).norm()) < float((last - start).norm())


def test_the_denoiser_sees_pixels_in_its_own_range() -> None:
    images, network, seen = few(), denoiser(), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    train_denoiser(network, images, 3, batch_size=50, alpha_bar=torch.ones(1))  # x_t is x0
    assert {float(x.min()) for x in seen} == {-1.0}
    assert {float(x.max()) for x in seen} == {1.0}


def test_gradients_are_clipped_to_norm_one() -> None:
    norms: list[float] = []

    def record(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad.flatten() for p in optimizer.param_groups[0]["params"]]
        norms.append(float(torch.cat(gradients).norm()))

    network = denoiser()
    with torch.no_grad():
        network.convolution.weight.mul_(1000)
    handle = register_optimizer_step_pre_hook(record)
    try:
        train_denoiser(network, few(), 3)
    finally:
        handle.remove()
    assert norms == pytest.approx([1.0] * 3, abs=1e-4)


def test_shift_moves_whole_images_by_every_offset() -> None:
    image = torch.zeros(1, 5, 5)
    image[0, 2, 2] = 1.0
    x = torch.cat([image, 2 * image]).repeat(500, 1, 1, 1)
    shifted = Shift(1)(x, torch.Generator().manual_seed(0))
    assert shifted.shape == x.shape
    assert torch.equal(shifted.sum((2, 3)), x.sum((2, 3)))
    places = shifted[:, 0].flatten(1).argmax(1)
    assert places.unique().tolist() == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert torch.equal(shifted[:, 1], 2 * shifted[:, 0])


def test_shift_fills_with_black_and_zero_is_the_identity() -> None:
    x = torch.ones(200, 2, 4, 4)
    shifted = Shift(1)(x, torch.Generator().manual_seed(0))
    assert shifted[:, 0, 0, 0].unique().tolist() == [0.0, 1.0]
    assert torch.equal(Shift(0)(x, torch.Generator()), x)
    with pytest.raises(ValueError, match="pixels must not be negative; got -1"):
        Shift(-1)


def test_learning_rate_climbs_and_falls() -> None:
    for total in (1, 2, 7, 100):
        rates = [warm_cosine(step, total) for step in range(total)]
        assert all(0 < rate <= 1 for rate in rates)
        assert max(rates) == 1.0
    assert [warm_cosine(step, 100) for step in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert warm_cosine(55, 100) == pytest.approx(0.5)


def test_accuracy_counts_the_partial_batch_and_refuses_no_images() -> None:
    images = few(50)
    right = images[images.y != 3]

    def all_but_threes(x: Tensor) -> Tensor:
        logits = torch.eye(10)[lookup(x)]
        logits[lookup(x) == 3] = torch.eye(10)[4]
        return logits

    def lookup(x: Tensor) -> Tensor:
        matches = (x[:, None] == images.x[None]).flatten(2).all(2)
        return images.y[matches.int().argmax(1)]

    assert accuracy(all_but_threes, images, batch_size=20) == len(right) / 50 == 0.9
    with pytest.raises(ValueError, match="images must be above 0"):
        accuracy(all_but_threes, images[:0])
