"""Evaluation: certified gradients, fresh draws, intervals, checks and the card."""

from depure.evaluate.certificate import Agreement, Certificate, verify_gradient
from depure.evaluate.checks import Check
from depure.evaluate.run import Evaluation, Result, evaluate
from depure.evaluate.statistics import Estimate

__all__ = [
    "Agreement",
    "Certificate",
    "Check",
    "Estimate",
    "Evaluation",
    "Result",
    "evaluate",
    "verify_gradient",
]
