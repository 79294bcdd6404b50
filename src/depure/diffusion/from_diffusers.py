"""Reading what diffusers saved: weights from safetensors, configuration as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from depure.diffusion.schedule import VPDiscrete

_PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


def read_folder(folder: Path) -> tuple[nn.Module, dict[str, Any] | None]:
    """The UNet2DModel of a pipeline folder (or of a UNet's own folder) and its scheduler's config.

    Raises:
        FileNotFoundError: if there is no UNet in the folder.
        ValueError: if its files are damaged.
    """
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    weights = unet / "diffusion_pytorch_model.safetensors"
    for file in (unet / "config.json", weights):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: a denoiser folder holds unet/config.json, "
                f"unet/{weights.name} and scheduler/scheduler_config.json, as "
                f"diffusers' save_pretrained(safe_serialization=True) writes them"
            )
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return _read_unet(unet), _read_json(scheduler) if scheduler.is_file() else None


def _read_unet(folder: Path) -> nn.Module:
    from diffusers import UNet2DModel  # imported here: it takes seconds
    from safetensors.torch import load_file

    config = _read_json(folder / "config.json")
    try:
        network = cast(nn.Module, UNet2DModel.from_config(config))  # type: ignore[no-untyped-call]
        network.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the denoiser in {folder} cannot be read ({reason}): the files are damaged or do not "
            f"belong together; copy the folder anew"
        ) from error
    return network


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}): copy the folder anew") from error


def read_scheduler(scheduler: object) -> tuple[VPDiscrete, Any]:
    """Schedule and prediction type of a diffusers scheduler or of its config (a mapping).

    Raises:
        ValueError: for a beta schedule or prediction type that this library does not know.
    """
    config: Any = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", {})
    kind = config.get("beta_schedule", "linear")
    steps = int(config.get("num_train_timesteps", 1000))
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise ValueError(
            f"prediction_type must be one of {', '.join(_PREDICTIONS)}; got {prediction!r}"
        )
    if config.get("trained_betas") is not None:
        schedule = VPDiscrete(tuple(float(b) for b in config["trained_betas"]))
    elif kind == "linear":
        schedule = VPDiscrete.linear(steps, first, last)
    elif kind == "scaled_linear":
        roots = VPDiscrete.linear(steps, first**0.5, last**0.5).betas
        schedule = VPDiscrete(tuple(b * b for b in roots))
    elif kind == "squaredcos_cap_v2":
        schedule = VPDiscrete.cosine(steps)
    else:
        raise ValueError(
            f"beta_schedule must be linear, scaled_linear or squaredcos_cap_v2; got {kind!r}"
        )
    return schedule, _PREDICTIONS[prediction]
