"""Evaluation: checked gradients, fresh draws, intervals, checks and the card."""

from depure.evaluation.checks import Check
from depure.evaluation.gradient_check import Agreement, GradientCheck, verify_gradient
from depure.evaluation.result import Result
from depure.evaluation.run import Evaluation, evaluate
from depure.evaluation.saved import Saved, judge_file, read_saved
from depure.evaluation.statistics import Interval

__all__ = [
    "Agreement",
    "Check",
    "Evaluation",
    "GradientCheck",
    "Interval",
    "Result",
    "Saved",
    "evaluate",
    "judge_file",
    "read_saved",
    "verify_gradient",
]
