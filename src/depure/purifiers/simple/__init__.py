"""Purifiers without a model of images."""

from depure.purifiers.simple.identity import Identity
from depure.purifiers.simple.straight import BPDA

__all__ = ["BPDA", "Identity"]
