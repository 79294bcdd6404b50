"""The gradient check: is the gradient that attacks use that of the defence?"""

from depure.evaluation.gradient_check.check import (
    Agreement,
    GradientCheck,
    check_labels,
    not_judged,
    verify_gradient,
)

__all__ = ["Agreement", "GradientCheck", "check_labels", "not_judged", "verify_gradient"]
