"""The words of the glossary are those of the code, and the words that were given up are gone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
ROWS = re.findall(r"^\| (.*?) \| .*? \| (.*?) \|$", GLOSSARY, re.M)[2:]
TREES = [ast.parse(p.read_text()) for p in sorted((ROOT / "src/depure").rglob("*.py"))]

# Given up for the word in the comment; a word that has another good use is not here.
ABANDONED = {
    "Certificate", "certificate",  # gradient check
    "Estimate",  # Interval, Denoised
    "StandIn", "SubstituteModel",  # SubstituteAttack
    "NonPixel", "made_for",  # UnseenThreat, attacked_by
    "heard", "heard_of", "elsewhere",  # trace_of, count, trace_of_inner
    "settled", "improved",  # fresh, keep_better
    "recalled", "beginning", "calls_of_watch",  # cached, start_point, trace_length
    "Climb", "Control", "pick",  # APGDState, StepRule, where_rows, per_image
    "Purse", "hammer", "OnTheWay",  # Budget, diffhammer, IntermediateLoss
    "between",  # metric
    "remember", "memory_budget",  # journal, memory_limit
    "Family", "family_of", "Label", "triple",  # Process, StepKey, as_tuple, short_hash
    "budget_of", "denoiser_calls",  # calls_of, purifier_calls
}  # fmt: skip


def identifiers() -> set[str]:
    """Everything that has a name in the package."""
    found: set[str] = set()
    for node in (n for tree in TREES for n in ast.walk(tree)):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found.add(value.lstrip("_"))
    return found


def words() -> set[str]:
    """Identifiers, and the words in strings: names of stages, options and commands."""
    constants = {
        node.value
        for tree in TREES
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return identifiers() | {w for text in constants for w in re.findall(r"[A-Za-z_]\w*", text)}


WORDS = words()


@pytest.mark.parametrize(("term", "here"), ROWS, ids=[term for term, _ in ROWS])
def test_what_the_glossary_names_is_there(term, here):
    named = re.findall(r"[A-Za-z_]\w*", " ".join(re.findall(r"`([^`]+)`", here)))
    assert named, f"{term} has no name in the code"
    assert [w for w in named if w not in WORDS] == []


def test_the_glossary_is_read():
    assert len(ROWS) > 25


def test_words_that_were_given_up_are_gone():
    assert identifiers() & ABANDONED == set()
