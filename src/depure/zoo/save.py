"""Write trained models as others can load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from depure.diffusion import VPSDE, Karras, Schedule, VPDiscrete
from depure.weights import write_safetensors


def save_denoiser(network: nn.Module, schedule: Schedule, folder: Path) -> None:
    """A folder in the layout of diffusers, `unet/` and `scheduler/`, for `load_denoiser`.

    Args:
        network: a diffusers model that predicts the noise (or is the raw network of EDM).
        schedule: what it was trained on; a VP-SDE is written as its discrete steps.

    Raises:
        ValueError: the schedule has no counterpart in diffusers.
        OSError: a file cannot be written.
    """
    text = json.dumps(_scheduler(schedule), indent=2) + "\n"
    save: Any = network.save_pretrained
    save(folder / "unet", safe_serialization=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(text)


def _scheduler(schedule: Schedule) -> dict[str, Any]:
    if isinstance(schedule, VPSDE):
        schedule = schedule.discrete()
    if isinstance(schedule, VPDiscrete):
        return {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": len(schedule),
            "trained_betas": list(schedule.betas),
            "prediction_type": "epsilon",
        }
    if isinstance(schedule, Karras):
        return {
            "_class_name": "EDMEulerScheduler",
            "sigma_data": schedule.sigma_data,
            "sigma_min": schedule.sigma_min,
            "sigma_max": schedule.sigma_max,
            "rho": schedule.rho,
            "prediction_type": "epsilon",
        }
    raise ValueError(f"no scheduler of diffusers is like {schedule!r}")


def save_classifier(network: nn.Module, path: Path) -> None:
    """One safetensors file, for `load_classifier("ARCH:PATH")`.

    Raises:
        OSError: it cannot be written.
    """
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    write_safetensors(weights, path)
