"""Quick looks at a network that is being trained: robustness on a few images, samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from depure.attacks import PGD
from depure.cli.monitor import GRADIENT_CHECK
from depure.data import Images, write_image
from depure.defences import Defended
from depure.diffusion import DDIM, DDPM, Denoiser, Heun
from depure.evaluation import Result, evaluate, verify_gradient
from depure.noise import Noise
from depure.purifiers import DiffPure, Identity
from depure.threat import Linf, Threat
from depure.training.loop import device_of

Wrap = Callable[[nn.Module], Denoiser]


def classifier_measure(network: nn.Module, held: Images, eps: float) -> dict[str, float]:
    """Accuracy of a classifier on held-out images, clean and under PGD-20."""
    model = Defended(Identity(), network)
    result = _evaluate(model, held, PGD(20, eot=1), Threat(Linf(eps)))
    return {
        "clean": result.clean.value,
        "robust": result.robust.value,
        GRADIENT_CHECK: _gradient(model, held, eps),
    }


def denoiser_measure(
    network: nn.Module, wrap: Wrap, guide: nn.Module, held: Images, eps: float
) -> dict[str, float]:
    """Accuracy behind a five-step purifier: clean, white-box (PGD-10, EoT 4), DW-box (PGD-20)."""
    model = Defended(_purifier(wrap(network)), guide)
    white = _evaluate(model, held, PGD(10, eot=4), Threat(Linf(eps)), draws=4)
    known = Threat(Linf(eps), model.stages)
    box = _evaluate(model, held, PGD(20, eot=1), known, draws=1)
    return {
        "clean": white.clean.value,
        "white_box": white.robust.value,
        "dw_box": box.robust.value,
        GRADIENT_CHECK: _gradient(model, held, eps),
    }


def _evaluate(
    model: Defended, held: Images, attack: PGD, threat: Threat, draws: int = 20
) -> Result:
    """An evaluation that no gradient check refuses: a look at a training must not stop it."""
    return evaluate(model, held, attack, threat, draws=draws, check_images=0, gradient_check="none")


def _gradient(model: Defended, held: Images, eps: float) -> float:
    """1 if the short gradient check passes, else 0."""
    some = held[slice(0, 2)]
    device = device_of(model)
    x, y, noise = some.x.to(device), some.y.to(device), Noise.of(0, some.index)
    return float(verify_gradient(model, x, y, noise, ball=Linf(eps), short=True).passed)


def _purifier(denoiser: Denoiser) -> DiffPure:
    if not denoiser.schedule.preserves_variance:
        return DiffPure(denoiser, Heun(), t_star=0.5, steps=5)
    return DiffPure(denoiser, DDPM(), t_star=0.1, steps=5)


def sample_sheet(network: nn.Module, path: Path, wrap: Wrap, images: Images, t_max: float) -> None:
    """A sheet of 16: samples from noise, or, if only short times are trained, purified images."""
    denoiser = wrap(network)
    edm = not denoiser.schedule.preserves_variance
    some = images[torch.arange(min(16, len(images)))]
    x = some.x.to(device_of(network))
    if edm:
        purifier = DiffPure(denoiser, Heun(), t_star=80.0, steps=18, clamp=True)
    else:
        steps = min(50, _indices(denoiser, t_max))
        purifier = DiffPure(denoiser, DDIM(), t_star=t_max, steps=steps, clamp=True)
    if edm or t_max == 1.0:
        x = torch.full_like(x, 0.5)  # from the highest noise, nothing of an image is left
    with torch.no_grad():
        out = purifier(x, _noise(some)).cpu()
    write_image(_sheet(out), path)


def _indices(denoiser: Denoiser, t_max: float) -> int:
    indices = denoiser.schedule.indices
    return max(1, round(t_max * indices)) if indices else 50


def _noise(images: Images) -> Noise:
    return Noise.of(0, images.index).fold("samples")


def _sheet(x: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """Images (N, C, H, W) side by side on grey, enlarged to at least 32 pixels, (C, H', W')."""
    scale = max(1, 32 // x.shape[-1])
    x = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    n, c, h, w = x.shape
    rows = -(-n // columns)
    sheet = x.new_full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 0.5)
    for i, image in enumerate(x):
        top, left = gap + (i // columns) * (h + gap), gap + (i % columns) * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet
