"""Defences, from images to answers."""

from depure.defences.defended import Defended

__all__ = ["Defended"]
