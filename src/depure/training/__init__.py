"""Training: pure losses, an average of weights, and short loops."""

from depure.training.classifier import Augment, Shift, accuracy, train_classifier
from depure.training.diffusion import train_denoiser
from depure.training.ema import EMA
from depure.training.loop import Progress, seeded
from depure.training.losses import denoising_loss, diffuse

__all__ = [
    "EMA",
    "Augment",
    "Progress",
    "Shift",
    "accuracy",
    "denoising_loss",
    "diffuse",
    "seeded",
    "train_classifier",
    "train_denoiser",
]
