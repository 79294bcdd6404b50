"""Classifiers and denoisers: small architectures, bundled and published weights."""

from depure.zoo.classifier import load_classifier
from depure.zoo.denoiser import load_denoiser
from depure.zoo.nets import CifarResNet, Normalize, SmallCNN

__all__ = ["CifarResNet", "Normalize", "SmallCNN", "load_classifier", "load_denoiser"]
