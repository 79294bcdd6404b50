"""Purifiers, from images to images, one a file."""

from depure.purifiers.base import Purifier
from depure.purifiers.chained import Chained
from depure.purifiers.diffusion import DiffPure, DiffPureSettings
from depure.purifiers.simple import BPDA, Identity

__all__ = ["BPDA", "Chained", "DiffPure", "DiffPureSettings", "Identity", "Purifier"]
