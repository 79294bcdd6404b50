"""Training: objectives, the loop that minimises them, and ADDT's search for adversarial noise."""

from depure.training.addt import (
    ADDT,
    addt_loss,
    adversarial_noise,
    cgpo,
    classifier_guided_pgd,
)
from depure.training.adversarial import TRADES, PGDTraining
from depure.training.augment import Augment, Flip, Shift
from depure.training.checkpoint import remove_checkpoint
from depure.training.ema import EMA
from depure.training.family import EDM, ContinuousVP, DiscreteVP, Family
from depure.training.loop import accuracy, seeded
from depure.training.objective import CrossEntropy, Denoising, Objective
from depure.training.plan import Plan
from depure.training.rbgm import mixing, rank_map
from depure.training.state import description
from depure.training.train import Remembers, Watch, train

__all__ = [
    "ADDT",
    "EDM",
    "EMA",
    "TRADES",
    "Augment",
    "ContinuousVP",
    "CrossEntropy",
    "Denoising",
    "DiscreteVP",
    "Family",
    "Flip",
    "Objective",
    "PGDTraining",
    "Plan",
    "Remembers",
    "Shift",
    "Watch",
    "accuracy",
    "addt_loss",
    "adversarial_noise",
    "cgpo",
    "classifier_guided_pgd",
    "description",
    "mixing",
    "rank_map",
    "remove_checkpoint",
    "seeded",
    "train",
]
