"""Attacks: `(model, x, y, ball, noise) -> x_adv`. They propose; the evaluation judges."""

from depure.attacks.base import Attack, Watch
from depure.attacks.expected import Expected, expected_grad
from depure.attacks.losses import LOSSES, Loss
from depure.attacks.model import Model
from depure.attacks.pgd import PGD

__all__ = ["LOSSES", "PGD", "Attack", "Expected", "Loss", "Model", "Watch", "expected_grad"]
