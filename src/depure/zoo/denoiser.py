"""Diffusion models by name."""

from __future__ import annotations

from pathlib import Path

from depure.diffusion import Denoiser, Schedule
from depure.zoo.classifier import BUNDLED


def load_denoiser(spec: str, schedule: Schedule | None = None) -> Denoiser:
    """The bundled denoiser "digits" (8x8 greyscale), or a folder in the layout of diffusers.

    Args:
        spec: "digits" or a folder, see `Denoiser.from_diffusers`.
        schedule: use this one instead of the folder's, e.g. `VPSDE()`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if its files are damaged.
    """
    folder = BUNDLED / "digits" / "denoiser" if spec == "digits" else Path(spec)
    return Denoiser.from_diffusers(folder, schedule=schedule)
