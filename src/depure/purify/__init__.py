"""Defences: purifiers, one a file, and the defended classifier."""

from depure.purify.base import Identity, Purifier
from depure.purify.defended import Defended
from depure.purify.diffpure import DiffPure

__all__ = ["Defended", "DiffPure", "Identity", "Purifier"]
