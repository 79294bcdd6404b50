"""Threat models: what an attacker may do to an image, and what they know of the noise."""

from depure.threat.balls import L1, L2, Ball, Linf, Norm, as_norm
from depure.threat.threat import Threat
from depure.threat.unseen import Flow, Perceptual

__all__ = ["L1", "L2", "Ball", "Flow", "Linf", "Norm", "Perceptual", "Threat", "as_norm"]
