"""EDM against diffusers: its preconditioning, noise levels and Euler steps; reading its folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import DDIM, Denoiser, Grid, Heun, Karras
from depure.noise import Noise
from depure.purifiers import DiffPure

diffusers = pytest.importorskip("diffusers")
MakeNet = Callable[..., nn.Module]
X = 2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
LEVELS = [0.002, 0.05, 0.5, 20.0]


def x0_of(scheduler: Any, unet: nn.Module, x: Tensor, sigma: float) -> Tensor:
    """The denoised image as diffusers makes it."""
    level = torch.tensor(sigma, dtype=x.dtype)
    label = scheduler.precondition_noise(level)
    raw = unet(scheduler.precondition_inputs(x, level), label).sample
    out: Tensor = scheduler.precondition_outputs(x, raw, level)
    return out


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma_data", [0.5, 0.8])
def test_preconditioning(make_unet: MakeNet, kind: str, prediction: str, sigma_data: float) -> None:
    scheduler = getattr(diffusers, kind)(sigma_data=sigma_data, prediction_type=prediction)
    unet = make_unet().eval().requires_grad_(False)
    denoiser = Denoiser.from_diffusers(unet, scheduler)
    assert denoiser.schedule == Karras(sigma_data)
    for sigma in LEVELS:
        x0, eps, _ = denoiser(X, sigma)
        torch.testing.assert_close(x0, x0_of(scheduler, unet, X, sigma), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(x0 + sigma * eps, X, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [2, 18, 50])
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_noise_levels(steps: int, rho: float) -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_max=0.5, rho=rho)
    scheduler.set_timesteps(steps)
    ours = Grid(0.5, steps).path(Karras(rho=rho)).times
    assert ours == pytest.approx(scheduler.sigmas.tolist(), rel=1e-6)


def test_euler_chain(make_unet: MakeNet) -> None:
    """diffusers has Euler's method only, which is DDIM(eta=0) here."""
    scheduler = diffusers.EDMEulerScheduler(sigma_max=0.5)
    scheduler.set_timesteps(12)
    unet, noise = make_unet().eval().requires_grad_(False), Noise.of(0, range(2))
    x = X + 0.5 * noise.normal("forward", (0, 0), X)
    for t in scheduler.timesteps:
        raw = unet(scheduler.scale_model_input(x, t).double(), t).sample
        x = scheduler.step(raw, t, x).prev_sample.double()
    denoiser = Denoiser.from_diffusers(unet, scheduler)
    ours = DiffPure(denoiser, DDIM(), t_star=0.5, steps=12)((X + 1) / 2, noise)
    torch.testing.assert_close(2 * ours - 1, x, rtol=1e-5, atol=1e-5)


def test_folder(make_unet: MakeNet, tmp_path: Path) -> None:
    unet = make_unet(dtype=torch.float32).eval().requires_grad_(False)
    unet.save_pretrained(tmp_path / "unet")
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.4, sigma_min=0.01, sigma_max=9.0, rho=5.0)
    scheduler.save_pretrained(tmp_path / "scheduler")
    denoiser = Denoiser.from_diffusers(tmp_path)
    assert denoiser.schedule == Karras(0.4, 0.01, 9.0, 5.0)
    assert denoiser.prediction == "edm"
    x = X.float()
    torch.testing.assert_close(denoiser(x, 0.3).x0, x0_of(scheduler, unet, x, 0.3))
    DiffPure(denoiser, Heun(), t_star=0.5, steps=3)((x + 1) / 2, Noise.of(0, range(2)))


def test_a_configuration_that_names_only_its_class(make_unet: MakeNet, tmp_path: Path) -> None:
    make_unet(dtype=torch.float32).save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "EDMEulerScheduler"}))
    assert Denoiser.from_diffusers(tmp_path).schedule == Karras()
    file.write_text(json.dumps({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}))
    with pytest.raises(ValueError, match="one of epsilon, v_prediction; got 'sample'"):
        Denoiser.from_diffusers(tmp_path)


@pytest.mark.parametrize("prediction", [None, "edm"])
def test_schedule_beside_a_bare_network(make_unet: MakeNet, prediction: Any) -> None:
    unet = make_unet()
    if prediction is None:
        with pytest.raises(ValueError, match="edm, v; got 'epsilon'"):
            Denoiser.from_diffusers(unet, schedule=Karras())
    else:
        denoiser = Denoiser.from_diffusers(unet, schedule=Karras(), prediction=prediction)
        assert denoiser(X, 0.5).x0.shape == X.shape
