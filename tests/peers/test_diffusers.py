"""Our steps and chains against diffusers' schedulers fed the same noise; reading its folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from depure.diffusion import (
    DDIM,
    DDPM,
    VPSDE,
    Denoiser,
    EulerMaruyama,
    Full,
    Grid,
    VPDiscrete,
)
from depure.noise import Noise
from depure.purifiers.diffusion.rounds import Rounds

diffusers = pytest.importorskip("diffusers")
MakeDenoiser = Callable[..., Denoiser]
MakeNet = Callable[..., nn.Module]

LINEAR = VPDiscrete.linear()
X = 2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
NOISE = Noise.of(0, range(2))


def in_float64(scheduler: Any) -> Any:
    """diffusers keeps its betas in float32: the same betas in float64."""
    betas = np.linspace(scheduler.config.beta_start, scheduler.config.beta_end, 1000)
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


class Fed:
    """Stands in for diffusers' `randn_tensor` and hands out the noise it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.z = torch.empty(0)
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", self)

    def __call__(self, shape: Any, **_: object) -> Tensor:
        assert tuple(shape) == tuple(self.z.shape)
        return self.z


def diffusers_chain(
    scheduler: Any, times: list[int], start: int, net: nn.Module, fed: Any
) -> Tensor:
    """Noise X at index `start`, then call diffusers' step at every time, with our noise."""
    x = scheduler.add_noise(X, NOISE.normal("forward", (0, 0), X), torch.tensor([start, start]))
    for t in times:
        eps = net(x, torch.tensor([t, t]))
        x = fed(scheduler, eps, t, x)
    return x


def run(denoiser: Denoiser, sampler: Any, grid: Grid) -> Tensor:
    with torch.no_grad():
        return Full().run(
            Rounds(denoiser, sampler, grid, NOISE).chain(X, lambda state: state[0]), X
        )


# --- DDPM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1000, 100, 50, 7])
def test_ddpm_steps(
    monkeypatch: pytest.MonkeyPatch,
    make_denoiser: MakeDenoiser,
    variance: Any,
    clip: bool,
    spacing: str,
    steps: int,
) -> None:
    scheduler = in_float64(
        diffusers.DDPMScheduler(
            variance_type=f"fixed_{variance}", clip_sample=clip, timestep_spacing=spacing
        )
    )
    scheduler.set_timesteps(steps)
    times = [*scheduler.timesteps.tolist(), -1]
    denoiser, fed = make_denoiser(), Fed(monkeypatch, "scheduling_ddpm")
    for i in sorted({0, 1, len(times) // 2, len(times) - 3, len(times) - 2}):
        t, s = times[i], times[i + 1]
        fed.z = NOISE.normal("reverse", t, X)
        x = 2 * X
        eps = denoiser.network(x, torch.tensor([t, t]))
        theirs = scheduler.step(eps, t, x).prev_sample
        if s == -1 and t > 0:
            # The known difference: diffusers asks "t > 0?" and not "does this step end clean?",
            # so it adds noise to the image itself: sqrt(beta), or 1e-10 where beta_tilde = 0.
            sd = LINEAR.sigma(t) if variance == "large" else 1e-10
            theirs = theirs - sd * fed.z
        ours = DDPM(variance, clip).step(denoiser, x, t, s, fed.z)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [100, 50, 10, 5])
def test_ddpm_chain_as_addt_runs_it(
    monkeypatch: pytest.MonkeyPatch,
    make_denoiser: MakeDenoiser,
    variance: Any,
    clip: bool,
    steps: int,
) -> None:
    scheduler = in_float64(
        diffusers.DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=clip)
    )
    scheduler.set_timesteps(10 * steps)
    times = scheduler.timesteps[round(0.9 * 10 * steps) - 1 :].tolist()
    denoiser, fed = make_denoiser(), Fed(monkeypatch, "scheduling_ddpm")

    def step(scheduler: Any, eps: Tensor, t: int, x: Tensor) -> Tensor:
        fed.z = NOISE.normal("reverse", (0, t), x)
        return scheduler.step(eps, t, x).prev_sample

    theirs = diffusers_chain(scheduler, times, times[0], denoiser.network, step)
    ours = run(denoiser, DDPM(variance, clip), Grid(0.1, steps, "addt"))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_ddpm_chain_with_uneven_strides(
    monkeypatch: pytest.MonkeyPatch, make_denoiser: MakeDenoiser
) -> None:
    scheduler = in_float64(diffusers.DDPMScheduler(clip_sample=False))
    scheduler.set_timesteps(timesteps=[99, 65, 32])
    denoiser, fed = make_denoiser(), Fed(monkeypatch, "scheduling_ddpm")

    def step(scheduler: Any, eps: Tensor, t: int, x: Tensor) -> Tensor:
        fed.z = NOISE.normal("reverse", (0, t), x)
        return scheduler.step(eps, t, x).prev_sample

    theirs = diffusers_chain(scheduler, [99, 65, 32], 99, denoiser.network, step)
    ours = run(denoiser, DDPM(), Grid(0.1, 3))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-8)  # their last 1e-10 of noise


def test_addt_variance_at_stride_20() -> None:
    """0.0374 with the large variance, 0.0250 with the small (methods.md 2.5)."""
    ratio = (LINEAR.alpha(100) / LINEAR.alpha(80)) ** 2
    small = (1 - ratio) * (LINEAR.sigma(80) / LINEAR.sigma(100)) ** 2
    assert 1 - ratio == pytest.approx(0.0374, abs=5e-5)
    assert small == pytest.approx(0.0250, abs=5e-5)


# --- DDIM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("convention", "spacing", "steps"),
    [
        ("addt", "leading", 100),
        ("addt", "leading", 5),
        ("adbm", "trailing", 5),
        ("diffpure", "trailing", 20),
    ],
)
def test_ddim_chains(
    make_denoiser: MakeDenoiser, eta: float, clip: bool, convention: Any, spacing: str, steps: int
) -> None:
    scheduler = in_float64(diffusers.DDIMScheduler(clip_sample=clip, timestep_spacing=spacing))
    scheduler.set_timesteps(10 * steps)
    times = [t for t in scheduler.timesteps.tolist() if t <= 100]
    start = 99 if convention == "diffpure" else 100
    denoiser = make_denoiser()

    def step(scheduler: Any, eps: Tensor, t: int, x: Tensor) -> Tensor:
        z = NOISE.normal("reverse", (0, t), x) if eta else None
        return scheduler.step(eps, t, x, eta=eta, variance_noise=z).prev_sample

    theirs = diffusers_chain(scheduler, times, start, denoiser.network, step)
    ours = run(denoiser, DDIM(eta, clip), Grid(0.1, steps, convention))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


# --- the SDE -----------------------------------------------------------------------------------


@pytest.mark.parametrize("denoise_last", [False, True])
def test_euler_maruyama_against_score_sde(
    monkeypatch: pytest.MonkeyPatch, make_denoiser: MakeDenoiser, denoise_last: bool
) -> None:
    """ADDT's VP chain: 101 steps of 1/1000 from 0.101 to 0 (methods.md 2.5)."""
    module = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_sde_vp")
    scheduler = module.ScoreSdeVpScheduler()
    scheduler.set_timesteps(1000)
    times = [i / 1000 for i in range(101, 0, -1)]
    np.testing.assert_allclose(scheduler.timesteps[-101:], times, rtol=1e-4)
    denoiser, fed = make_denoiser("vpsde"), Fed(monkeypatch, "deprecated.scheduling_sde_vp")
    x = VPSDE().alpha(0.101) * X + VPSDE().sigma(0.101) * NOISE.normal("forward", (0, 0), X)
    for t in times:
        fed.z = NOISE.normal("reverse", (0, round(1e9 * t)), X)
        label = torch.full((2,), 999 * t, dtype=torch.float64)
        x, mean = scheduler.step_pred(
            denoiser.network(x, label), x, torch.tensor(t, dtype=torch.float64)
        )
    ours = run(denoiser, EulerMaruyama(denoise_last), Grid(0.1, convention="addt"))
    torch.testing.assert_close(ours, mean if denoise_last else x, rtol=1e-6, atol=1e-6)


# --- reading what diffusers saves --------------------------------------------------------------


def times_and_images() -> list[tuple[int, Tensor]]:
    return [(t, X.float()) for t in (0, 99, 999)]


def test_from_objects(make_unet: MakeNet) -> None:
    unet = make_unet(dtype=torch.float32).eval().requires_grad_(False)
    denoiser = Denoiser.from_diffusers(unet, diffusers.DDPMScheduler())
    for t, x in times_and_images():
        assert torch.equal(denoiser(x, t).eps, unet(x, t).sample)


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_from_pipeline_folder(make_unet: MakeNet, tmp_path: Path, kind: str) -> None:
    unet = make_unet(dtype=torch.float32).eval().requires_grad_(False)
    scheduler = getattr(diffusers, kind + "Scheduler")(beta_end=0.03, prediction_type="sample")
    getattr(diffusers, kind + "Pipeline")(unet, scheduler).save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path)):
        denoiser = Denoiser.from_diffusers(source)
        assert denoiser.prediction == "x0"
        assert denoiser.schedule == VPDiscrete.linear(last=0.03)
        assert not any(p.requires_grad or not p.is_leaf for p in denoiser.parameters())
        for t, x in times_and_images():
            assert torch.equal(denoiser(x, t).x0, unet(x, t).sample)


def test_from_unet_folder(make_unet: MakeNet, tmp_path: Path) -> None:
    unet = make_unet(dtype=torch.float32).eval().requires_grad_(False)
    unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no scheduler found beside the network"):
        Denoiser.from_diffusers(tmp_path)
    for settings in (
        {"scheduler": diffusers.DDPMScheduler()},
        {"scheduler": dict(diffusers.DDPMScheduler().config)},
        {"schedule": LINEAR},
    ):
        denoiser = Denoiser.from_diffusers(tmp_path, **settings)
        assert denoiser.schedule == LINEAR
        assert torch.equal(denoiser(X.float(), 9).eps, unet(X.float(), 9).sample)


def test_scheduler_given_goes_before_the_folder(make_unet: MakeNet, tmp_path: Path) -> None:
    unet = make_unet(dtype=torch.float32).eval().requires_grad_(False)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    other = diffusers.DDPMScheduler(beta_start=1e-6, prediction_type="v_prediction")
    denoiser = Denoiser.from_diffusers(tmp_path, other)
    assert denoiser.schedule == VPDiscrete.linear(first=1e-6)
    assert denoiser.prediction == "v"


def test_sde_around_a_discrete_network(make_unet: MakeNet, tmp_path: Path) -> None:
    """DiffPure's way: the network of the indices 0..999 is asked at 999 t."""
    unet = make_unet(dtype=torch.float32).eval().requires_grad_(False)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    denoiser = Denoiser.from_diffusers(tmp_path, schedule=VPSDE())
    assert denoiser.schedule == VPSDE()
    assert torch.equal(denoiser(X.float(), 0.1).eps, unet(X.float(), torch.tensor(99.9)).sample)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_prediction_types(make_unet: MakeNet, prediction: str) -> None:
    scheduler = in_float64(diffusers.DDIMScheduler(prediction_type=prediction, clip_sample=False))
    scheduler.set_timesteps(1000)
    unet = make_unet()
    denoiser = Denoiser.from_diffusers(unet, scheduler)
    for t in (1, 99, 999):
        out = unet(X, t).sample
        x0, eps, _ = denoiser(X, t)
        theirs = scheduler.step(out, t, X)
        torch.testing.assert_close(x0, theirs.pred_original_sample, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            DDIM().step(denoiser, X, t, t - 1, None), theirs.prev_sample, rtol=1e-8, atol=1e-8
        )
        torch.testing.assert_close(LINEAR.alpha(t) * x0 + LINEAR.sigma(t) * eps, X)


def test_learned_variance_is_dropped(make_unet: MakeNet) -> None:
    unet = make_unet(out=6)
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    denoiser = Denoiser.from_diffusers(unet, scheduler)
    assert torch.equal(denoiser(X, 9).eps, unet(X, 9).sample[:, :3])


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "linear", "beta_start": 1e-6, "num_train_timesteps": 500},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": np.linspace(1e-3, 0.1, 40).tolist(), "num_train_timesteps": 40},
        {},
    ],
)
@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler"])
def test_betas(make_net: MakeNet, kind: str, settings: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, kind)(**settings)
    schedule = Denoiser.from_diffusers(make_net(), scheduler).schedule
    assert len(schedule) == len(scheduler.betas)
    np.testing.assert_allclose(schedule.betas, scheduler.betas, rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(schedule.alpha_bar, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7)
    assert math.isclose(schedule.alpha(10) ** 2, scheduler.alphas_cumprod[10], rel_tol=1e-5)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file: Path, **settings: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


WEIGHTS, CONFIG = "unet/diffusion_pytorch_model.safetensors", "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, "no weights at .*safetensors"),
        (
            lambda f: (f / WEIGHTS).rename(f / "unet/diffusion_pytorch_model.bin"),
            FileNotFoundError,
            "diffusion_pytorch_model.bin beside it is a pickle, which is never opened",
        ),
        (lambda f: (f / CONFIG).unlink(), FileNotFoundError, "no .*config.json"),
        (lambda f: (f / SCHEDULER).unlink(), ValueError, "no scheduler found"),
        (lambda f: truncate(f / WEIGHTS), ValueError, r"damaged or no safetensors file"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), ValueError, "damaged or no safetensors"),
        (lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04K\x01."), ValueError, "damaged or no"),
        (lambda f: truncate(f / CONFIG), ValueError, "config.json is not valid JSON"),
        (
            lambda f: (f / CONFIG).write_text("[1, 2]"),
            ValueError,
            "config.json .*it holds an array",
        ),
        (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe{}"), ValueError, "is not valid JSON"),
        (
            lambda f: (f / SCHEDULER).write_text("null"),
            ValueError,
            "it holds null; expected a JSON object",
        ),
        (lambda f: change(f / CONFIG, block_out_channels=[8, 16]), ValueError, "does not fit UNet"),
        (lambda f: change(f / CONFIG, norm_num_groups=3), ValueError, "no UNet can be built"),
        (lambda f: change(f / CONFIG, down_block_types=["None"]), ValueError, "no UNet can"),
        (lambda f: change(f / CONFIG, _class_name="Unknown"), ValueError, "expected a UNet2DModel"),
        (
            lambda f: change(f / SCHEDULER, beta_schedule="sigmoid"),
            ValueError,
            "beta_schedule must be linear, scaled_linear or squaredcos_cap_v2; got 'sigmoid'",
        ),
        (
            lambda f: change(f / SCHEDULER, prediction_type="flow"),
            ValueError,
            "prediction_type must be one of epsilon, sample, v_prediction; got 'flow'",
        ),
        (lambda f: change(f / SCHEDULER, beta_end=2.0), ValueError, "strictly between 0 and 1"),
    ],
)
def test_bad_folders(
    make_unet: MakeNet, tmp_path: Path, damage: Any, error: type[Exception], message: str
) -> None:
    unet = make_unet(dtype=torch.float32).eval().requires_grad_(False)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message) as caught:
        Denoiser.from_diffusers(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        Denoiser.from_diffusers(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("unet_at", "scheduler_at"),
    [
        ("unet", "scheduler"),  # a pipeline's folder, asked for its UNet alone
        (".", "."),  # both at the root, as google/ddpm-cifar10-32 has them
        ("unet", "unet"),
        ("unet", "."),
    ],
)
def test_scheduler_beside_the_unet_is_found(
    make_unet: MakeNet, tmp_path: Path, unet_at: str, scheduler_at: str
) -> None:
    make_unet(dtype=torch.float32).save_pretrained(tmp_path / unet_at)
    diffusers.DDPMScheduler(beta_end=0.03).save_pretrained(tmp_path / scheduler_at)
    denoiser = Denoiser.from_diffusers(tmp_path / unet_at)
    assert denoiser.schedule == VPDiscrete.linear(last=0.03)


def test_old_names_of_attention_weights(make_unet: MakeNet, tmp_path: Path) -> None:
    """google/ddpm-cifar10-32 was saved when the parts of an attention block had other names."""
    safetensors = pytest.importorskip("safetensors.torch")
    unet = make_unet(dtype=torch.float32).eval().requires_grad_(False)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    old = {}
    for name, tensor in unet.state_dict().items():
        for new, before in (("q", "query"), ("k", "key"), ("v", "value"), ("out.0", "proj_attn")):
            name = name.replace(f".to_{new}.", f".{before}.")
        old[name] = tensor.contiguous()
    assert old.keys() != unet.state_dict().keys()
    safetensors.save_file(old, tmp_path / WEIGHTS)
    denoiser = Denoiser.from_diffusers(tmp_path)
    assert torch.equal(denoiser(X.float(), 9).eps, unet(X.float(), 9).sample)


@pytest.mark.parametrize(
    "scheduler",
    [
        "ddpm",
        {},
        diffusers.CosineDPMSolverMultistepScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.DDIMScheduler(rescale_betas_zero_snr=True),
    ],
    ids=["string", "empty", "cosine EDM", "flow matching", "zero terminal SNR"],
)
def test_schedulers_of_another_kind_are_refused(make_net: MakeNet, scheduler: Any) -> None:
    with pytest.raises(ValueError, match=r"scheduler|beta"):
        Denoiser.from_diffusers(make_net(), scheduler)
