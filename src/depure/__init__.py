"""Depure: diffusion-based adversarial purification that can be trusted."""

__version__ = "0.1.0"
