"""Diffusion: schedules, denoisers, samplers, time grids, and loop drivers for their chains."""

from depure.diffusion.backprop import (
    Adjoint,
    Backprop,
    Blind,
    Checkpoint,
    Full,
    Straight,
    Surrogate,
)
from depure.diffusion.chain import Chain, Link, State, inner_gradient
from depure.diffusion.denoiser import Denoiser
from depure.diffusion.grid import Grid
from depure.diffusion.prediction import Denoised, Prediction
from depure.diffusion.samplers import DDIM, DDPM, EulerMaruyama, Heun, ProbabilityFlow, Sampler
from depure.diffusion.schedules import VPSDE, Karras, Schedule, VPDiscrete

__all__ = [
    "DDIM",
    "DDPM",
    "VPSDE",
    "Adjoint",
    "Backprop",
    "Blind",
    "Chain",
    "Checkpoint",
    "Denoised",
    "Denoiser",
    "EulerMaruyama",
    "Full",
    "Grid",
    "Heun",
    "Karras",
    "Link",
    "Prediction",
    "ProbabilityFlow",
    "Sampler",
    "Schedule",
    "State",
    "Straight",
    "Surrogate",
    "VPDiscrete",
    "inner_gradient",
]
