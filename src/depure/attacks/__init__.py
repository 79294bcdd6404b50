"""Attacks: `(model, x, y, ball, noise) -> x_adv`. They propose; the evaluation judges."""

from depure.attacks.adaptive import MIPGD, DiffHammer, StandIn
from depure.attacks.apgd import APGD
from depure.attacks.autoattack import FixedAutoAttack, Transfer, autoattack, strongest
from depure.attacks.base import Attack, Watch
from depure.attacks.ensemble import Ensemble, Proposal
from depure.attacks.expected import Expected, expected_grad
from depure.attacks.fab import FAB
from depure.attacks.features import FeatureDistance, Perceptual
from depure.attacks.intermediate import DiffAttack, FullIntermediate
from depure.attacks.losses import LOSSES, Loss
from depure.attacks.lowfreq import LowFrequency
from depure.attacks.model import Model, Traced
from depure.attacks.perceptual import LPA, PPGD
from depure.attacks.pgd import PGD
from depure.attacks.rays import RayS
from depure.attacks.recolor import ReColorAdv
from depure.attacks.scorestart import ScoreStart
from depure.attacks.spsa import SPSA
from depure.attacks.square import Square
from depure.attacks.stadv import StAdv

__all__ = [
    "APGD",
    "FAB",
    "LOSSES",
    "LPA",
    "MIPGD",
    "PGD",
    "PPGD",
    "SPSA",
    "Attack",
    "DiffAttack",
    "DiffHammer",
    "Ensemble",
    "Expected",
    "FeatureDistance",
    "FixedAutoAttack",
    "FullIntermediate",
    "Loss",
    "LowFrequency",
    "Model",
    "Perceptual",
    "Proposal",
    "RayS",
    "ReColorAdv",
    "ScoreStart",
    "Square",
    "StAdv",
    "StandIn",
    "Traced",
    "Transfer",
    "Watch",
    "autoattack",
    "expected_grad",
    "strongest",
]
