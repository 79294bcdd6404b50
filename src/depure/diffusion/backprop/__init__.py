"""Loop drivers: how a chain is run and differentiated. An object handed over, never a flag."""

from depure.diffusion.backprop.adjoint import Adjoint
from depure.diffusion.backprop.approximate import Blind, Straight, Surrogate
from depure.diffusion.backprop.base import Backprop, Full
from depure.diffusion.backprop.checkpoint import Checkpoint

__all__ = ["Adjoint", "Backprop", "Blind", "Checkpoint", "Full", "Straight", "Surrogate"]
