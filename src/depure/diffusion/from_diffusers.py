"""Reading what diffusers saved: weights from safetensors, configuration as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from depure.diffusion.config import number, numbers, whole
from depure.diffusion.schedules import Karras, Schedule, VPDiscrete
from depure.networks.unets import UNet, UNetSettings, current_names
from depure.records import came
from depure.weights import (
    check_weights,
    first_line,
    fit_weights,
    read_config,
    read_safetensors,
)

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "v"}


def read_folder(root: Path) -> tuple[nn.Module, dict[str, Any] | None]:
    """The UNet of a folder, and its scheduler's configuration where there is one.

    Args:
        root: a pipeline (`unet/` and `scheduler/`, or both at the root), or a `unet` folder with
            `scheduler/` or `scheduler_config.json` inside or beside it.

    Raises:
        FileNotFoundError: if the folder, or a file it needs, does not exist.
        ValueError: if a file is damaged, no UNet2DModel, or does not fit its configuration.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: pass one that diffusers saved, with unet/")
    folder = root / "unet" if (root / "unet").is_dir() else root
    config = read_config(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(
            f"{folder / 'config.json'} describes {config.get('_class_name')!r}; "
            "expected a UNet2DModel that works on pixels"
        )
    tensors = current_names(read_safetensors(folder / _WEIGHTS))
    with torch.device("meta"):  # the shapes alone: weights are made when they are known to fit
        shapes = _built(config, folder / "config.json")
    check_weights(shapes, tensors, folder / _WEIGHTS)
    network = _built(config, folder / "config.json")
    fit_weights(network, tensors, folder / _WEIGHTS)
    scheduler = _find_scheduler(root, folder)
    return network, read_config(scheduler) if scheduler else None


def _built(config: dict[str, Any], path: Path) -> UNet:
    try:
        return UNet(UNetSettings.from_config(config))
    except Exception as error:  # whatever its settings, good for any kind of error, make of it
        reason = first_line(error) if isinstance(error, ValueError) else "they do not fit together"
        raise ValueError(
            f"{path} holds settings of which no UNet can be built ({reason}): copy the folder anew"
        ) from error


def _find_scheduler(root: Path, folder: Path) -> Path | None:
    name = "scheduler_config.json"
    places = [root / "scheduler" / name, root / name]
    if folder == root and root.name == "unet":
        places += [root.parent / "scheduler" / name, root.parent / name]
    return next((place for place in places if place.is_file()), None)


def read_scheduler(scheduler: object) -> tuple[Schedule, Any]:
    """Schedule and prediction type of a diffusers scheduler or of its config (a mapping).

    Raises:
        ValueError: for a beta schedule or prediction type that this library does not know.
    """
    config: Any = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", {})
    if config.get("_class_name", type(scheduler).__name__) in _EDM:
        return _read_edm(config)
    kind = config.get("beta_schedule")
    if kind is None and config.get("trained_betas") is None:
        raise ValueError(
            f"the scheduler {came(scheduler)} names no betas: pass a DDPM- or DDIM-like scheduler, "
            f"its configuration, or schedule="
        )
    if config.get("rescale_betas_zero_snr"):
        raise ValueError("rescale_betas_zero_snr is not known here: pass schedule= instead")
    steps = whole(config, "num_train_timesteps", 1000)
    first, last = number(config, "beta_start", 1e-4), number(config, "beta_end", 0.02)
    prediction = config.get("prediction_type", "epsilon")
    if str(prediction) not in _PREDICTIONS:
        raise ValueError(
            f"prediction_type must be one of {', '.join(_PREDICTIONS)}; got {prediction!r}"
        )
    if config.get("trained_betas") is not None:
        schedule = VPDiscrete(numbers(config, "trained_betas"))
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


def _read_edm(config: Mapping[str, Any]) -> tuple[Karras, Any]:
    """EDM in diffusers: "epsilon" is the raw F of the preconditioning, "v_prediction" is -F.

    How diffusers would sample (its sigma schedule, its last sigma) is not read: grids are ours.
    """
    prediction = config.get("prediction_type", "epsilon")
    if str(prediction) not in _EDM_PREDICTIONS:
        raise ValueError(
            f"prediction_type of an EDM scheduler must be one of {', '.join(_EDM_PREDICTIONS)}; "
            f"got {prediction!r}"
        )
    names = ("sigma_data", "sigma_min", "sigma_max", "rho")
    settings = {name: number(config, name, 0.0) for name in names if name in config}
    return Karras(**settings), _EDM_PREDICTIONS[prediction]
