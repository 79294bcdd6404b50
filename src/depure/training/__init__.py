"""Training: pure losses, an average of weights, and short loops."""

from depure.training.addt import (
    ADDT,
    addt_loss,
    adversarial_noise,
    cgpo,
    classifier_guided_pgd,
)
from depure.training.classifier import Augment, Shift, accuracy, train_classifier
from depure.training.diffusion import train_denoiser
from depure.training.ema import EMA
from depure.training.family import EDM, ContinuousVP, DiscreteVP, Family
from depure.training.finetune import Plan, fine_tune
from depure.training.loop import Progress, seeded
from depure.training.losses import denoising_loss, diffuse
from depure.training.rbgm import mixing, rank_map

__all__ = [
    "ADDT",
    "EDM",
    "EMA",
    "Augment",
    "ContinuousVP",
    "DiscreteVP",
    "Family",
    "Plan",
    "Progress",
    "Shift",
    "accuracy",
    "addt_loss",
    "adversarial_noise",
    "cgpo",
    "classifier_guided_pgd",
    "denoising_loss",
    "diffuse",
    "fine_tune",
    "mixing",
    "rank_map",
    "seeded",
    "train_classifier",
    "train_denoiser",
]
