"""Reverse rules, one family a file; each is a page of mathematics."""

from depure.diffusion.samplers.base import Sampler
from depure.diffusion.samplers.ddim import DDIM
from depure.diffusion.samplers.ddpm import DDPM
from depure.diffusion.samplers.heun import Heun
from depure.diffusion.samplers.sde import EulerMaruyama, ProbabilityFlow

__all__ = ["DDIM", "DDPM", "EulerMaruyama", "Heun", "ProbabilityFlow", "Sampler"]
