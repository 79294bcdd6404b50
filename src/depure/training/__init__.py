"""Training: objectives, and the loop that minimises them."""

from depure.training.augment import Augment, Flip, Shift
from depure.training.checkpoint import remove_checkpoint
from depure.training.ema import EMA
from depure.training.loop import accuracy, seeded
from depure.training.objectives import (
    ADDT,
    TRADES,
    CrossEntropy,
    Denoising,
    Objective,
    PGDTraining,
    adversarial_noise,
    mixing,
    rank_map,
)
from depure.training.plan import Plan
from depure.training.process import ContinuousProcess, DiscreteProcess, EDMProcess, Process
from depure.training.state import description
from depure.training.train import Progress, Remembers, train

__all__ = [
    "ADDT",
    "EMA",
    "TRADES",
    "Augment",
    "ContinuousProcess",
    "CrossEntropy",
    "Denoising",
    "DiscreteProcess",
    "EDMProcess",
    "Flip",
    "Objective",
    "PGDTraining",
    "Plan",
    "Process",
    "Progress",
    "Remembers",
    "Shift",
    "accuracy",
    "adversarial_noise",
    "description",
    "mixing",
    "rank_map",
    "remove_checkpoint",
    "seeded",
    "train",
]
