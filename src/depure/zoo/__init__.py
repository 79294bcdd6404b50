"""Classifiers and denoisers: small architectures, bundled and published weights."""

from depure.zoo.classifier import load_classifier
from depure.zoo.denoiser import load_denoiser
from depure.zoo.nets import CifarResNet, Normalize, SmallCNN
from depure.zoo.wide import WideResNet

__all__ = [
    "CifarResNet",
    "Normalize",
    "SmallCNN",
    "WideResNet",
    "load_classifier",
    "load_denoiser",
]
