"""Attacks: `(model, x, y, ball, noise) -> x_adv`. They propose; the evaluation judges."""

from depure.attacks.apgd import APGD
from depure.attacks.base import Attack, Watch
from depure.attacks.expected import Expected, expected_grad
from depure.attacks.fab import FAB
from depure.attacks.losses import LOSSES, Loss
from depure.attacks.model import Model
from depure.attacks.pgd import PGD
from depure.attacks.rays import RayS
from depure.attacks.spsa import SPSA
from depure.attacks.square import Square

__all__ = [
    "APGD",
    "FAB",
    "LOSSES",
    "PGD",
    "SPSA",
    "Attack",
    "Expected",
    "Loss",
    "Model",
    "RayS",
    "Square",
    "Watch",
    "expected_grad",
]
