"""Purifiers that noise the image and denoise it."""

from depure.purifiers.diffusion.diffpure import DiffPure, DiffPureSettings

__all__ = ["DiffPure", "DiffPureSettings"]
