"""Objectives: what training minimises, one file each."""

from depure.training.objectives.addt import ADDT, adversarial_noise
from depure.training.objectives.adversarial import TRADES, PGDTraining
from depure.training.objectives.base import Objective
from depure.training.objectives.classification import CrossEntropy
from depure.training.objectives.denoising import Denoising
from depure.training.objectives.rbgm import mixing, rank_map

__all__ = [
    "ADDT",
    "TRADES",
    "CrossEntropy",
    "Denoising",
    "Objective",
    "PGDTraining",
    "adversarial_noise",
    "mixing",
    "rank_map",
]
