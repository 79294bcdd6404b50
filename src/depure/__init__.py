"""Depure: diffusion-based adversarial purification that can be trusted."""
