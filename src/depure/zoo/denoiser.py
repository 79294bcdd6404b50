"""Diffusion models by name."""

from __future__ import annotations

from pathlib import Path

from depure.diffusion import Denoiser, Schedule
from depure.zoo.classifier import BUNDLED


def load_denoiser(spec: str, schedule: Schedule | None = None) -> Denoiser:
    """A bundled denoiser of 8x8 greyscale digits, or a folder in the layout of diffusers.

    Args:
        spec: "digits" (ordinary training), "digits-addt" (fine-tuned from it by ADDT),
            "digits-control" (fine-tuned alike, without adversarial noise), or a folder, see
            `Denoiser.from_diffusers`.
        schedule: use this one instead of the folder's, e.g. `VPSDE()`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if its files are damaged.
    """
    bundled = {
        "digits": BUNDLED / "digits" / "denoiser",
        "digits-addt": BUNDLED / "digits-addt",
        "digits-control": BUNDLED / "digits-control",
    }
    folder = bundled.get(spec, Path(spec))
    return Denoiser.from_diffusers(folder, schedule=schedule)
