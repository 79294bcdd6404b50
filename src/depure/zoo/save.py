"""Write trained models as others can load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from depure.diffusion import Schedule
from depure.files import replacing, write_text
from depure.networks.unets import UNet
from depure.weights import fingerprint, read_safetensors, save_tensors


def save_denoiser(network: nn.Module, schedule: Schedule, folder: Path) -> list[Path]:
    """A folder in the layout of diffusers, `unet/` and `scheduler/`, for `load_denoiser`.

    Each file is there whole or as it was, and the weights are read back before they take their
    place. Where another model lies there, its configuration goes first and the new one comes last:
    whatever a kill leaves is never a mixture that can be loaded.

    Args:
        network: a `UNet`, or a model of diffusers, that predicts the noise (or is the raw network
            of EDM).
        schedule: what it was trained on; a VP-SDE is written as its discrete steps.

    Returns:
        The files.

    Raises:
        ValueError: the schedule has no counterpart in diffusers, or the network has none.
        OSError: a file cannot be written.
    """
    config = folder / "unet" / "config.json"
    texts = {
        folder / "scheduler" / "scheduler_config.json": json.dumps(schedule.scheduler(), indent=2)
        + "\n",
        config: _described(network),
    }
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    other = any(_text(path) != text for path, text in texts.items())
    with replacing(weights) as file:
        _write_and_read_back(network, file, {"format": "pt"})
        if other:
            config.unlink(missing_ok=True)
    if other:
        for path, text in texts.items():
            write_text(path, text)
    return [weights, *texts]


def _described(network: nn.Module) -> str:
    if isinstance(network, UNet):
        return json.dumps(network.config.to_config(), indent=2, sort_keys=True) + "\n"
    theirs: Any = getattr(network, "to_json_string", None)
    if theirs is None:
        raise ValueError(
            f"only a UNet or a model of diffusers can be written in the layout of diffusers; got "
            f"{type(network).__name__}: pass one that new_unet or load_denoiser gives"
        )
    text: str = theirs()
    return text


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def save_classifier(network: nn.Module, path: Path) -> list[Path]:
    """One safetensors file, for `load_classifier("ARCH:PATH")`, read back before it counts.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        _write_and_read_back(network, file)
    return [path]


def _write_and_read_back(
    network: nn.Module, file: Path, facts: dict[str, str] | None = None
) -> None:
    weights: dict[str, Tensor] = {
        k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()
    }
    save_tensors(weights, file, facts)
    try:
        same = fingerprint(read_safetensors(file)) == fingerprint(weights)
    except ValueError:
        same = False
    if not same:
        raise OSError("what was written does not read back as it was")
