"""Numbers and settings in plain words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from depure.analysis.stochasticity import Curves
from depure.evaluation.statistics import Interval
from depure.reporting import words
from depure.reporting.explain import no_better_than_guessing
from depure.reporting.load import Accuracies, load_run
from depure.reporting.settings import bound, bound_in_full, defence_in_short, purifier_rows


def spoken(make_run, clean: float, robust: float, low: float, high: float) -> str:
    run = load_run(make_run())

    def side(value: float) -> Accuracies:
        return Accuracies(Interval(value, value - 0.05, value + 0.05), [], [])

    effect = Interval(clean - robust, low, high)
    run = replace(run, clean=side(clean), robust=side(robust), effect=effect)
    return "".join(text for text, _ in words.answer(run)).replace(words.NBSP, " ")


def test_answer(make_run):
    assert spoken(make_run, 0.96, 0.53, 0.3, 0.5) == (
        "Of 100 clean images 96 are classified correctly; under this attack 53 "
        "(95 % CI 48 to 58): the attack takes 43 points."
    )


def test_answer_takes_decimals_where_whole_numbers_would_not_add_up(make_run):
    text = spoken(make_run, 0.956, 0.524, 0.3, 0.5)  # 96 - 52 is not 43
    assert "95.6 are" in text
    assert "takes 43.2 points" in text


def test_answer_knows_chance_and_nothing(make_run):
    assert spoken(make_run, 0.9, 0.89, -0.1, 0.2).endswith(
        "the attack takes 1 point, no more than chance might."
    )


def test_answer_of_an_attack_that_helps(make_run):
    assert spoken(make_run, 0.9, 0.95, -0.1, 0.0).endswith("the attack takes nothing.")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.93e-7, "3 x 10-7"),
        (9.6e-7, "1 x 10-6"),
        (0.93, "0.93"),
        (None, "not measured"),
    ],
)
def test_magnitude(value, text):
    plain = str.maketrans(
        "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u00d7\u00a0",
        "-0123456789x ",
    )
    assert words.magnitude(value).translate(plain) == text


def test_closeness_is_never_rounded_up_to_perfect():
    assert words.closeness(1.0) == "1.0000"
    assert words.closeness(0.9999999999999856) == "1.0000"  # rounding of a double
    assert words.closeness(0.99996) == "> 0.9999"
    assert words.closeness(99.999, 100.0, 2) == "> 99.99"
    assert words.closeness(99.5, 100.0, 2) == "99.50"


def test_small_words():
    assert words.number(-0.04) == "0.0"
    assert words.number(-1.25) == f"{words.MINUS}1.3"
    assert words.number(0.25) == "0.3"  # not 0.2, as IEEE would have it
    assert words.duration(7250).replace(words.NBSP, " ") == "2 h 01 min"
    assert words.duration(0.034).replace(words.NBSP, " ") == "0.03 s"
    assert words.ranges([1, 3, 4, 5, 8, 9]) == "1, 3 to 5, 8, 9"
    assert words.sentence("eot 3 -> 6: wins -2.0 points") == "EoT 3 \u2192 6: wins \u22122.0 points"
    assert words.sentence("finite differences: 1.0e+00") == "Finite differences: 1"


def test_purifiers_in_short():
    inner = {
        "name": "DiffPure",
        "networks": ["U(3 weights)"],
        "sampler": {"name": "DDIM", "eta": 0.0},
        "t_star": 0.1,
        "steps": None,
        "rounds": 2,
    }
    outer = {"name": "BPDA", "purifier": inner}
    for record, short in (
        (inner, "DiffPure, DDIM, t* = 0.1, all steps, 2 rounds"),
        ({**inner, "steps": 5, "rounds": 1}, "DiffPure, DDIM, t* = 0.1, 5 steps"),
        (outer, "BPDA, DiffPure, DDIM, t* = 0.1, all steps, 2 rounds"),
        ({"name": "Identity"}, "Identity"),
        ({"name": "Denoise", "settings": "Denoise(s=1)"}, "Denoise"),
    ):
        found = defence_in_short({"model": {"purifier": record}})
        assert found.replace(words.NBSP, " ") == short
    rows = purifier_rows(outer)
    assert [row.label for row in rows] == [
        "Purifier", "Purifier", "Networks", "Sampler", "Noised up to", "Denoising steps", "Rounds"
    ]  # fmt: skip
    assert [row.value for row in rows][3:] == ["DDIM(eta=0.0)", "0.1", "every one", "2"]


@pytest.mark.parametrize(
    ("ball", "text"),
    [
        ({"name": "Linf", "eps": 8 / 255}, "8/255"),
        ({"name": "Linf", "eps": 0.2}, "0.2"),
        ({"name": "L2", "eps": 0.5}, "0.5"),
    ],
)
def test_bound(ball, text):
    assert bound(ball).endswith(text)


def test_a_network_that_compares_is_named_once_and_at_length():
    ball = {"name": "Perceptual", "eps": 0.5, "features": "FeatureDistance(Net 12ab)"}
    assert bound(ball).endswith("0.5")
    assert bound_in_full(ball) == "the distance of features, FeatureDistance(Net 12ab)"
    assert "pixels move" in bound_in_full({"name": "Flow", "eps": 0.05})


def test_clean_accuracy_no_better_than_guessing_is_a_warning():
    def curves(right):
        one = np.full((1, 1, 8), right)
        return Curves(("m",), ("both",), np.array([0.0]), one, one, one, one, np.array([[4]]))

    (text,) = no_better_than_guessing(curves(0.25), 4)
    assert "m gets 25.0 %" in text.replace(words.NBSP, " ")
    assert no_better_than_guessing(curves(0.25), 3) != []
    assert no_better_than_guessing(curves(0.5), 4) == []
