from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from depure.data import digits
from depure.diffusion import VPSDE, VPDiscrete
from depure.noise import Noise
from depure.training import (
    ADDT,
    ContinuousProcess,
    Denoising,
    DiscreteProcess,
    EDMProcess,
    Process,
    adversarial_noise,
    mixing,
)
from depure.training.objectives.denoising import draw_times
from depure.training.objectives.guide import Guided
from depure.zoo import SmallCNN, load_classifier, load_denoiser

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
try:
    from measure import count_flops
except ImportError:  # a source tree without its benchmarks
    count_flops = None

MakeNet = Callable[..., nn.Module]

PROCESSES: dict[str, Process] = {
    "discrete": DiscreteProcess(VPDiscrete.linear()),
    "continuous": ContinuousProcess(VPSDE()),
    "edm": EDMProcess(),
}
# lambda saturates at the first, and gamma of the pgd variant is clipped there.
TIMES = {
    "discrete": torch.tensor([0, 120, 700]),
    "continuous": torch.tensor([0.002, 0.1, 0.8], dtype=torch.float64),
    "edm": torch.tensor([0.05, 0.4, 3.0], dtype=torch.float64),
}


class Batch(NamedTuple):
    network: nn.Module
    classifier: nn.Module
    process: Process
    x0: Tensor
    y: Tensor
    t: Tensor
    noise: Noise

    def rows(self, rows: list[int]) -> Batch:
        x0, y, t, noise = self.x0[rows], self.y[rows], self.t[rows], self.noise[rows]
        return self._replace(x0=x0, y=y, t=t, noise=noise)

    @property
    def parts(self) -> tuple[nn.Module, Tensor, Tensor, Tensor, Noise]:
        return self.network, self.x0, self.y, self.t, self.noise

    def objective(self, settings: dict[str, Any]) -> ADDT:
        return ADDT(self.process, self.classifier, **settings)


MakeBatch = Callable[..., Batch]


def loss_of(batch: Batch, settings: dict[str, Any]) -> Tensor:
    return batch.objective(settings).loss(*batch.parts)


def cgpo(batch: Batch, **settings: Any) -> Tensor:
    return batch.objective(settings).cgpo(*batch.parts)


def pgd(batch: Batch) -> Tensor:
    return batch.objective({"perturbation": "pgd"}).pgd(*batch.parts)


@pytest.fixture
def make_batch(make_net: MakeNet) -> MakeBatch:
    def make(name: str = "discrete", dropout: float = 0.0) -> Batch:
        network = make_net(channels=2, dropout=dropout).train()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            classifier = SmallCNN(2, 5, 4).double().eval().requires_grad_(False)
        noise = Noise.of(seed=2, index=[4, 0, 7])
        x0 = 2 * noise.uniform("images", 0, torch.empty(3, 2, 6, 6, dtype=torch.float64)) - 1
        y = torch.tensor([1, 0, 4])
        return Batch(
            network, classifier, PROCESSES[name], x0, y, TIMES[name], noise.fold("step", 3)
        )

    return make


def gradients(network: nn.Module) -> list[Tensor]:
    assert all(p.grad is not None for p in network.parameters())
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


# --- The reference: methods.md 2.1, 2.2 and 2.4 once more, one image at a time. ---------------


def scales_by_hand(name: str, t: float) -> tuple[float, float]:
    if name == "edm":
        return 1.0, t
    if name == "continuous":
        squared = math.exp(-0.5 * 19.9 * t * t - 0.1 * t)
    else:
        squared = math.prod(1 - (1e-4 + i * (0.02 - 1e-4) / 999) for i in range(int(t) + 1))
    return math.sqrt(squared), math.sqrt(1 - squared)


def predict_by_hand(name: str, network: nn.Module, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """eps and x0."""
    alpha, sigma = scales_by_hand(name, t)
    if name == "edm":
        root = math.sqrt(sigma**2 + 0.25)
        label = torch.tensor([math.log(sigma) / 4], dtype=torch.float64)
        x0 = 0.25 / root**2 * x_t + sigma * 0.5 / root * network(x_t / root, label)
        return (x_t - x0) / sigma, x0
    told = [int(t)] if name == "discrete" else [999.0 * t]
    eps = network(x_t, torch.tensor(told, dtype=None if name == "discrete" else torch.float64))
    return eps, (x_t - sigma * eps) / alpha


def rank_by_hand(gradient: Tensor, normal: Tensor, within: str) -> Tensor:
    size = gradient[0, 0].numel() if within == "channel" else gradient[0].numel()
    g, z = gradient.reshape(-1, size).numpy(), normal.reshape(-1, size).numpy()
    rows = [np.sort(b)[np.argsort(np.argsort(a, kind="stable"))] for a, b in zip(g, z, strict=True)]
    return torch.from_numpy(np.stack(rows)).view(gradient.shape)


def image_step(name: str, batch: Batch, settings: dict[str, Any]) -> Tensor:
    """The loss of a batch of one image, with its graph to the weights."""
    s = batch.objective(settings)
    network, classifier, _, x0, y, times, noise = batch
    t = times.tolist()[0]
    alpha, sigma = scales_by_hand(name, t)
    gamma = alpha / sigma
    share = min(max(s.lambda_unit * gamma, s.lambda_min), s.lambda_max)
    ratio = min(max(gamma, 0.0), 10.0)

    def mixed(eps: Tensor, change: Tensor) -> Tensor:
        if s.perturbation == "rbgm":
            return math.sqrt(1 - share**2) * eps + share * change
        return eps + change * ratio

    change = noise.normal("start", 0, x0) if s.perturbation == "rbgm" else torch.zeros_like(x0)
    total = torch.zeros_like(x0)
    for i in range(s.iterations):
        eps = noise.fold("cgpo", i).normal("forward", 0, x0)
        change = change.clone().requires_grad_()
        x_t = alpha * x0 + sigma * mixed(eps, change)
        eps_hat, x0_hat = predict_by_hand(name, network, x_t, t)
        if s.guide_loss == "ce":
            climbed = -classifier(x0_hat / 2 + 0.5).log_softmax(1)[0, y[0]]
        else:
            climbed = ((eps_hat - eps) ** 2).mean()
        climbed.backward()  # as the published code: into the weights too
        assert change.grad is not None
        gradient, change = change.grad, change.detach()
        if s.perturbation == "rbgm":
            total = total + gradient if s.accumulate == "sum" else gradient
            fresh = noise.fold("cgpo", i).normal("rank", 0, x0)
            change = rank_by_hand(total, fresh, s.rank_within)
        else:
            change = change + s.step / 0.5 * torch.sign(gradient)
            change = torch.clamp(change, -s.eps / 0.5, s.eps / 0.5)
            change = torch.clamp(x0 + change, -1, 1) - x0
    target = mixed(noise.normal("forward", 0, x0), change)
    eps_hat, x0_hat = predict_by_hand(name, network, alpha * x0 + sigma * target, t)
    if name == "edm":
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        return weight * ((x0_hat - x0) ** 2).mean()
    return ((eps_hat - target) ** 2).mean()


def step_by_hand(name: str, batch: Batch, settings: dict[str, Any]) -> tuple[float, list[Tensor]]:
    losses, parts = [], []
    for i in range(len(batch.x0)):
        loss = image_step(name, batch.rows([i]), settings)
        batch.network.zero_grad()  # the search left its own
        loss.backward()
        losses.append(float(loss.detach()))
        parts.append(gradients(batch.network))
    batch.network.zero_grad()
    return sum(losses) / len(losses), [sum(p) / len(losses) for p in zip(*parts, strict=True)]


SETTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "last": {"accumulate": "last", "iterations": 3},
    "image": {"rank_within": "image", "lambda_unit": 0.5, "lambda_min": 0.1, "lambda_max": 0.9},
    "eps": {"guide_loss": "eps"},
    "pgd": {"perturbation": "pgd"},
    "pgd-eps": {"perturbation": "pgd", "guide_loss": "eps", "eps": 0.3, "step": 0.1},
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_one_update_equals_the_plain_loops(
    name: str, settings: dict[str, Any], make_batch: MakeBatch
) -> None:
    batch = make_batch(name)
    loss, exact = step_by_hand(name, batch, settings)
    ours = loss_of(batch, settings)
    assert all(p.grad is None for p in batch.network.parameters())
    ours.backward()
    assert float(ours.detach()) == pytest.approx(loss, rel=1e-9)
    for a, b in zip(gradients(batch.network), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_every_setting_changes_the_update(make_batch: MakeBatch) -> None:
    batch = make_batch()
    more = {"lambda_min": 0.2}, {"lambda_max": 0.1}, {"perturbation": "pgd", "eps": 1 / 255}
    variants = [*SETTINGS.values(), *more]
    assert len({loss_of(batch, s).item() for s in variants}) == len(variants)


@pytest.mark.parametrize("name", PROCESSES)
def test_no_share_of_adversarial_noise_is_plain_fine_tuning(
    name: str, make_batch: MakeBatch
) -> None:
    batch = make_batch(name)
    images: Any = SimpleNamespace(x=(batch.x0 + 1) / 2, y=batch.y)  # in float64
    control = Denoising(batch.process)(batch.network, images, batch.noise).item()
    addt = batch.objective({"lambda_max": 0.0})
    assert addt(batch.network, images, batch.noise).item() == pytest.approx(control, rel=1e-12)
    x0 = 2.0 * images.x - 1.0
    eps, t = batch.noise.normal("forward", 0, x0), draw_times(batch.process, x0, batch.noise)
    assert control == batch.process.loss(batch.network, x0, t, eps).mean().item()


# --- What a perturbation is -------------------------------------------------------------------


def test_pgd_keeps_to_the_ball_and_to_the_images(make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch = batch._replace(x0=batch.x0.mul(3).clamp(-1, 1))
    delta = pgd(batch)
    adversarial = batch.x0 + delta
    assert float(adversarial.min()) >= -1 - 1e-15
    assert float(adversarial.max()) <= 1 + 1e-15
    assert float(delta.abs().max()) == pytest.approx(16 / 255)
    assert not delta.requires_grad


def test_adversarial_noise_keeps_the_variance() -> None:
    noise = Noise.of(0, range(2))
    like = torch.empty(2, 3, 100, 100, dtype=torch.float64)
    eps, e_d = noise.normal("a", 0, like), noise.normal("b", 0, like)
    mixed = adversarial_noise(eps, e_d, torch.tensor([0.3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(
        mixed.flatten(1).var(1).mean(), torch.tensor(1.0).double(), rtol=0.02, atol=0
    )
    assert torch.equal(mixed[1], e_d[1])
    torch.testing.assert_close(mixed[0], math.sqrt(0.91) * eps[0] + 0.3 * e_d[0])


def bundled(n: int) -> Batch:
    images = digits("test").sample(n)
    denoiser, classifier = load_denoiser("digits"), load_classifier("digits")
    noise = Noise.of(0, images.index)
    process = DiscreteProcess(denoiser.schedule)  # type: ignore[arg-type]
    t = torch.full((n,), 100)
    return Batch(denoiser.network, classifier, process, 2 * images.x - 1, images.y, t, noise)


def test_cgpo_raises_the_cross_entropy_under_fresh_noise() -> None:
    batch = bundled(32)
    network, classifier, process, x0, y, t, noise = batch
    found, random = cgpo(batch, lambda_unit=0.1), noise.normal("random", 0, x0)
    share = mixing(process.gamma(t, x0), lambda_unit=0.1)
    losses = []
    for e_d in (found, random):
        eps = noise.fold("judge").normal("forward", 0, x0)
        with torch.no_grad():
            x_t = process.diffuse(x0, t, adversarial_noise(eps, e_d, share))
            logits = classifier(process.denoised(network, x_t, t).x0 / 2 + 0.5)
        losses.append(float(nn.functional.cross_entropy(logits, y)))
    assert losses[0] > 1.5 * losses[1], losses


def test_cgpo_is_permuted_fresh_noise_and_pure(make_batch: MakeBatch) -> None:
    batch = make_batch()
    state = torch.get_rng_state()
    e_d = cgpo(batch, iterations=2)
    fresh = batch.noise.fold("cgpo", 1).normal("rank", 0, batch.x0)
    assert torch.equal(e_d.flatten(2).sort().values, fresh.flatten(2).sort().values)
    assert torch.equal(cgpo(batch, iterations=2), e_d)
    assert torch.equal(torch.get_rng_state(), state)
    other = batch._replace(noise=batch.noise.fold("step", 4))
    assert not torch.equal(cgpo(other, iterations=2), e_d)
    with torch.no_grad():
        assert torch.equal(cgpo(batch, iterations=2), e_d)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("search", [cgpo, pgd])
def test_no_image_depends_on_the_others(name: str, search: Any, make_batch: MakeBatch) -> None:
    batch = make_batch(name)
    together = search(batch)
    for rows in ([0], [2, 1], [2, 0, 1, 0]):
        torch.testing.assert_close(search(batch.rows(rows)), together[rows], rtol=0, atol=1e-14)


def test_no_images_gradient_depends_on_the_batch_size(make_batch: MakeBatch) -> None:
    def gradient(batch: Batch) -> Tensor:
        eps = batch.noise.normal("forward", 0, batch.x0)
        guided = Guided(*batch[:-1])
        return guided.gradient(lambda eps, e: eps + e, eps, torch.zeros_like(eps))

    batch = make_batch()
    torch.testing.assert_close(gradient(batch)[:1], gradient(batch.rows([0])), rtol=1e-9, atol=0)


def test_dropout_stays_as_it_is_and_draws_from_the_global_generator(make_batch: MakeBatch) -> None:
    batch = make_batch(dropout=0.5)

    def run(seed: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cgpo(batch)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert all(m.training for m in batch.network.modules())
    batch.network.eval()
    assert torch.equal(run(0), run(1))
    assert not any(m.training for m in batch.network.modules())


# --- What a search leaves alone ---------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("search", [cgpo, pgd])
def test_a_search_leaves_no_gradient(name: str, search: Any, make_batch: MakeBatch) -> None:
    batch = make_batch(name)
    first, *others = batch.network.parameters()
    first.requires_grad_(False)
    others[0].grad = torch.ones_like(others[0])
    x0 = batch.x0.requires_grad_()
    assert not search(batch).requires_grad
    assert x0.grad is None
    assert torch.equal(others[0].grad, torch.ones_like(others[0]))
    assert all(p.grad is None for p in [first, *others[1:], *batch.classifier.parameters()])
    assert [p.requires_grad for p in (first, *others)] == [False] + [True] * len(others)


def test_weights_thaw_after_an_error(make_batch: MakeBatch) -> None:
    batch = make_batch()

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not any(p.requires_grad for p in batch.network.parameters())
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        cgpo(batch._replace(classifier=Broken().eval()))
    assert all(p.requires_grad for p in batch.network.parameters())


# --- What it costs ----------------------------------------------------------------------------


def costly() -> Batch:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 32),
            layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).train()  # fmt: skip
    return bundled(2)._replace(network=network)


@pytest.mark.skipif(count_flops is None, reason="benchmarks/measure.py is not here")
@pytest.mark.parametrize("perturbation", ["rbgm", "pgd"])
def test_no_weight_gradient_is_computed_in_a_search(perturbation: Any) -> None:
    batch = costly()
    network, classifier, process, x0, y, t, noise = batch
    official = copy.deepcopy(network)

    def denoised(network: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            classifier(process.denoised(network, x, t).x0 / 2 + 0.5), y
        )

    def training(network: nn.Module) -> None:
        process.loss(network, x0, t, noise.normal("forward", 0, x0)).mean().backward()

    def published() -> None:
        for _ in range(5):
            denoised(official, x0.clone().requires_grad_()).backward()
        official.zero_grad()
        training(official)

    def least() -> None:
        network.requires_grad_(False)
        for _ in range(5):
            leaf = x0.clone().requires_grad_()
            torch.autograd.grad(denoised(network, leaf), leaf)
        network.requires_grad_(True)
        training(network)

    ours = count_flops(lambda: loss_of(batch, {"perturbation": perturbation}).backward())
    assert ours <= 1.1 * count_flops(least)
    assert count_flops(published) >= 1.25 * ours


# --- Refusals ---------------------------------------------------------------------------------


def test_the_classifier_must_be_frozen_in_eval_mode(make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch.classifier.train()
    with pytest.raises(ValueError, match=r"in training mode: pass classifier\.eval\(\)"):
        loss_of(batch, {})
    batch.classifier.eval()
    next(m for m in batch.classifier.modules() if isinstance(m, nn.BatchNorm2d)).train()
    with pytest.raises(ValueError, match="in training mode"):
        cgpo(batch)
    batch.classifier.eval().requires_grad_(True)
    with pytest.raises(ValueError, match="not frozen"):
        pgd(batch)
    settings = {"guide_loss": "eps"}  # no classifier guides
    assert loss_of(batch, settings).isfinite()
    assert loss_of(batch._replace(classifier=None), settings).isfinite()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='guide_loss "ce" needs a classifier'):
        loss_of(batch._replace(classifier=None), {})  # type: ignore[arg-type]


def test_the_logits_must_cover_the_labels(make_batch: MakeBatch) -> None:
    batch = make_batch()
    for label in (5, -1):
        y = torch.tensor([label, 0, 1])
        with pytest.raises(ValueError, match=r"cover the labels .*; got \(3, 5\)"):
            cgpo(batch._replace(y=y))

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return batch.classifier(x.detach())

    with pytest.raises(ValueError, match="without a graph back to the image"):
        cgpo(batch._replace(classifier=Blind().eval()))


def test_a_gradient_that_is_not_finite_is_an_error(make_batch: MakeBatch) -> None:
    batch = make_batch()
    with torch.no_grad():
        next(batch.network.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite: train in float32"):
        cgpo(batch)
    assert all(p.requires_grad for p in batch.network.parameters())


@pytest.mark.parametrize("perturbation", ["rbgm", "pgd"])
def test_a_batch_that_does_not_fit_is_refused(perturbation: Any, make_batch: MakeBatch) -> None:
    batch, settings = make_batch(), {"perturbation": perturbation}
    for wrong, match in (
        ({"x0": batch.x0[0]}, "real images"),
        ({"x0": batch.x0[:0], "noise": batch.noise[:0]}, "real images"),
        ({"x0": 255 * batch.x0}, r"x0 must lie in \[-1, 1\]"),
        ({"x0": batch.x0 * torch.nan}, r"x0 must lie in \[-1, 1\]"),
        ({"y": batch.y[:1]}, "one int64 label"),
        ({"y": batch.y.double()}, "one int64 label"),
        ({"t": batch.t[:1]}, "one int64 label and t one time"),
        ({"t": batch.t - 1}, r"integer indices in 0 \.\. 999"),
        ({"noise": batch.noise[:2]}, "one row of noise per image"),
    ):
        parts: dict[str, Any] = wrong
        with pytest.raises(ValueError, match=match):
            loss_of(batch._replace(**parts), settings)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"perturbation": "linf"}, "perturbation must be one of rbgm, pgd; got 'linf'"),
        ({"iterations": 0}, "iterations must be a whole number, at least 1; got 0"),
        ({"iterations": 2.5}, "iterations must be a whole number"),
        ({"accumulate": "mean"}, "accumulate must be one of sum, last"),
        ({"guide_loss": "mse"}, "guide_loss must be one of ce, eps"),
        ({"rank_within": "pixel"}, "rank_within must be one of channel, image"),
        ({"lambda_unit": -1.0}, "lambda_unit must be"),
        ({"lambda_max": 2.0}, "0 <= lambda_min <= lambda_max <= 1"),
        ({"eps": 8.0}, r"eps and step must lie in \(0, 1\]"),
        ({"step": 0.0}, r"eps and step must lie in \(0, 1\]"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ADDT(EDMProcess(), **settings)
