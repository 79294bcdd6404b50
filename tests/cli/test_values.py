"""Numbers as they are typed: what is taken, and what is refused in one sentence."""

from fractions import Fraction
from pathlib import Path

import click
import pytest

from depure.cli.values import SEED, Count, Number, Several, shown, told


@pytest.mark.parametrize("text", ["8/255", "-3/7", "0.1", ".5", "2.", "1e-3", "-1E+2", " 7 "])
def test_a_number_is_the_nearest_float(text):
    assert Number().convert(text, None, None) == float(Fraction(text.strip()))


@pytest.mark.parametrize(
    "text",
    ["1e99999999", "-1e99999999", "1/1e9", "1/0", "0/0", "nan", "inf", "-inf", "²", "½", "1/²", "٣",
     "", " ", "x", "0x10", "1_000", "1e400", "9" * 5000, "1//2", "None", "\udcff", "1,5"],
)  # fmt: skip
def test_no_finite_number(text):
    with pytest.raises(click.BadParameter) as stop:
        Number().convert(text, None, None)
    assert len(stop.value.message) < 160
    stop.value.message.encode("utf-8")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (Number(0, above=True), "0", "expected a number above 0"),
        (Number(0, above=True), "-0", "expected a number above 0"),
        (Number(0, above=True), "1e-400", "not a number or a fraction|expected a number above 0"),
        (Number(0, 1), "1.5", "of at least 0 and of at most 1"),
        (Number(0, 1, below=True), "1", "of at least 0 and below 1"),
        (Number(0, 1, above=True, hint="; did you mean 8/255?"), "8", "did you mean 8/255"),
        (Count(), "0", "from 1 to 1,000,000"),
        (Count(), "1000001", "from 1 to 1,000,000"),
        (Count(), "9" * 25, "not a whole number"),
        (Count(), "²", "not a whole number"),
        (Count(), "1.0", "not a whole number"),
        (Count(*SEED), str(2**63), "not a whole number"),
        (Several(Count()), "1,²", "'²' is not a whole number"),
        (Several(Count()), ",", "no list of 1 to 64 values"),
        (Several(Count(), 2), "1,2,3", "no list of 1 to 2 values"),
    ],
)
def test_out_of_range(kind, text, said):
    with pytest.raises(click.BadParameter, match=said):
        kind.convert(text, None, None)


def test_bounds_belong_to_the_range_unless_they_are_left_out():
    assert Number(0, 1).convert("1", None, None) == 1.0
    assert Number(0, 1).convert("0", None, None) == 0.0
    assert Count(*SEED).convert(str(-(2**63)), None, None) == -(2**63)
    assert Several(Count(0)).convert("2, 1,0", None, None) == (2, 1, 0)
    assert Several(Count(), empty=True).convert("", None, None) == ()
    assert Several(Count()).convert((3,), None, None) == (3,)


def test_what_is_shown_is_short_and_printable():
    assert shown("8") == "'8'"
    assert len(shown("9" * 5000)) < 70
    shown("\udcff").encode("utf-8")


def test_an_error_of_the_system_names_the_file_and_no_number():
    with pytest.raises(NotADirectoryError) as stop:
        Path("/dev/null/x").read_text()
    assert told(stop.value) == "/dev/null/x: Not a directory"
    assert told(OSError("cannot write a")) == "cannot write a"
