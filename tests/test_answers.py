"""Which answer logits give, and that those that are not finite give none."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from depure.answers import NOBODY, answered, mean_of, predicted, right

INF, NAN = float("inf"), float("nan")
LOGITS = torch.tensor([[1.0, 2.0], [3.0, 2.0], [NAN, 5.0], [INF, 0.0], [-INF, 0.0]])


def test_answers_that_are_not_finite_are_nobodys():
    assert answered(LOGITS).tolist() == [True, True, False, False, False]
    assert predicted(LOGITS).tolist() == [1, 0, NOBODY, NOBODY, NOBODY]
    assert right(LOGITS, torch.tensor([1, 1, 0, 0, 1])).tolist() == [True, False] + [False] * 3


def test_means_leave_them_out():
    values = torch.tensor([[1.0, NAN, 5.0], [NAN, NAN, NAN]], dtype=torch.float64)
    assert mean_of(values, values.isfinite())[0] == pytest.approx(3.0)
    assert mean_of(values, values.isfinite())[1].isnan()
    whole = torch.randn(4, 7)
    assert torch.equal(mean_of(whole, torch.ones(4, 7, dtype=torch.bool)), whole.mean(1))


def test_nobody_else_takes_an_argmax_of_logits():
    """An argmax takes NaN for the largest: class 0 would look robust."""
    package = Path(__file__).parents[1] / "src" / "depure"
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "argmax":
                name = ast.unparse(node.value)
                if "logits" in name or name.endswith(("model(x)", "out", "z")):
                    found.append(f"{path.name}: {name}")
    assert [f for f in found if not f.startswith("answers.py")] == []
