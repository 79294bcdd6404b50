"""The UNet of DDPM and its kin, with the settings and weight names of diffusers' `UNet2DModel`."""

from depure.networks.unets.settings import UNetSettings
from depure.networks.unets.unet import UNet, current_names

__all__ = ["UNet", "UNetSettings", "current_names"]
