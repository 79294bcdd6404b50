"""Defences: purifiers, one a file, and the defended classifier."""

from depure.purify.base import Identity, Purifier
from depure.purify.bpda import BPDA
from depure.purify.defended import Defended
from depure.purify.diffpure import DiffPure

__all__ = ["BPDA", "Defended", "DiffPure", "Identity", "Purifier"]
