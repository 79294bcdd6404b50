"""What does not move: FLOPs, live bytes and errors of the drivers, as multiples of one forward."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from depure.diffusion import Checkpoint, Full
from depure.noise import Noise
from depure.zoo import SmallCNN

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gradients import METHODS, PLAIN, REFERENCE, Case, image_gradient, noise_share, stir
from measure import count_flops, gradient_error, live_peak


def case_of(sampler: str, steps: int) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 32),
            layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        stir(network)
        classifier = SmallCNN(1, 10, 4).eval()
    noise = Noise.of(seed=0, index=range(2))
    x = noise.uniform("images", 0, torch.empty(2, 1, 8, 8))
    return Case(network, classifier, sampler, steps, x, torch.tensor([3, 7]), noise)


@pytest.mark.parametrize("sampler", ["ddpm", "vpsde"])
@pytest.mark.parametrize(
    "share", [0.0, 0.5, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.25, 1.0))]
)
def test_flops_are_the_least_there_is(sampler: str, share: float) -> None:
    case = case_of(sampler, 8)
    forward = count_flops(METHODS[REFERENCE](case))
    driver = case.keeping(share)
    gradient = image_gradient(case, case.model(driver))
    assert count_flops(gradient) / forward == pytest.approx(3.0 - share, abs=0.01)


class _Convs(nn.Module):
    """Few operations, so that the profiler is quick, but many activations beside the state."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


@pytest.mark.slow
def test_keeping_nothing_needs_the_memory_of_one_step() -> None:
    network = _Convs().eval()
    live: dict[int, list[int]] = {}
    for steps in (10, 100):
        case = replace(case_of("ddpm", steps), network=network)
        drivers = (Full(), Checkpoint(0))
        live[steps] = [live_peak(image_gradient(case, case.model(d))) for d in drivers]
    plain, ours = live[100]
    assert ours <= plain / 20, live
    # What 90 more steps add is their states and nothing else.
    assert ours - live[10][1] <= 90 * case.x.nbytes * 1.05, live


class _WeightGradients(TorchDispatchMode):
    """Notes whether any convolution was asked for the gradient of its weight or bias."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.asked.append(any(args[-1][1:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("driver", [Checkpoint(0), Checkpoint()])
def test_no_weight_gradients_for_a_frozen_denoiser(driver: Checkpoint) -> None:
    case = case_of("ddpm", 3)
    model = case.model(driver)
    leaf = case.x.clone().requires_grad_()
    end = model.purifier(leaf, case.noise).square().sum()
    with _WeightGradients() as mode:
        end.backward()
    assert mode.asked
    assert not any(mode.asked)
    assert all(p.grad is None for p in model.purifier.parameters())


@pytest.mark.parametrize("sampler", ["ddpm", "vpsde"])
def test_exact_in_float64(sampler: str) -> None:
    case = case_of(sampler, 6).double(2)
    exact = METHODS[PLAIN](case)()
    for driver in (*map(case.keeping, (0.0, 0.5, 1.0)), Checkpoint(), Checkpoint(0, segment=5)):
        error, signs = gradient_error(image_gradient(case, case.model(driver))(), exact)
        assert error < 1e-10, driver
        assert signs == 1.0, driver


def test_every_method_of_the_benchmark_gives_the_same_gradient_or_says_otherwise() -> None:
    case = case_of("ddpm", 4).double(2)
    exact = METHODS[PLAIN](case)()
    for name, method in METHODS.items():
        if name != REFERENCE and "djoint" not in name:
            assert gradient_error(method(case)(), exact)[0] < 1e-10, name


@pytest.mark.slow
def test_noise_share_is_measured() -> None:
    assert 0.0 < noise_share(case_of("ddpm", 1), "cpu") < 10.0  # the benchmark prints it
