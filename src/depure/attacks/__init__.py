"""Attacks: `(model, x, y, ball, noise) -> x_adv`. They propose; the evaluation judges."""

from depure.attacks.asking.gradients import Expected, expected_grad
from depure.attacks.asking.losses import LOSSES, Loss
from depure.attacks.asking.model import Model, Traced
from depure.attacks.base import Attack, Watch
from depure.attacks.blackbox.rays import RayS
from depure.attacks.blackbox.spsa import SPSA
from depure.attacks.blackbox.square import Square
from depure.attacks.case import Case
from depure.attacks.ensembles.autoattack import FixedAutoAttack, autoattack
from depure.attacks.ensembles.cascade import Proposal
from depure.attacks.ensembles.ensemble import Ensemble
from depure.attacks.ensembles.strongest import strongest
from depure.attacks.gradient.apgd import APGD
from depure.attacks.gradient.diffhammer import DiffHammer
from depure.attacks.gradient.fab import FAB
from depure.attacks.gradient.momentum import MIPGD
from depure.attacks.gradient.pgd import PGD
from depure.attacks.purifier.intermediate import DiffAttack, FullIntermediate
from depure.attacks.purifier.score_start import ScoreStart
from depure.attacks.purifier.substitute import SubstituteAttack, Transfer
from depure.attacks.unseen.low_frequency import LowFrequency
from depure.attacks.unseen.perceptual import LPA, PPGD
from depure.attacks.unseen.recolor import ReColorAdv
from depure.attacks.unseen.stadv import StAdv

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
    "Case",
    "DiffAttack",
    "DiffHammer",
    "Ensemble",
    "Expected",
    "FixedAutoAttack",
    "FullIntermediate",
    "Loss",
    "LowFrequency",
    "Model",
    "Proposal",
    "RayS",
    "ReColorAdv",
    "ScoreStart",
    "Square",
    "StAdv",
    "SubstituteAttack",
    "Traced",
    "Transfer",
    "Watch",
    "autoattack",
    "expected_grad",
    "strongest",
]
