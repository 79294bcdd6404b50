"""Noise schedules, one family a file; each owns the times that a purification visits."""

from depure.diffusion.schedules.base import Convention, PredictionName, Schedule, TimePath, label_of
from depure.diffusion.schedules.edm import Karras
from depure.diffusion.schedules.vp import VPSDE, VPDiscrete

__all__ = [
    "VPSDE",
    "Convention",
    "Karras",
    "PredictionName",
    "Schedule",
    "TimePath",
    "VPDiscrete",
    "label_of",
]
