"""Numbers and findings in plain words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from depure.evaluation.checks import Check
from depure.evaluation.statistics import Interval
from depure.reporting.load import Run

NBSP = "\u00a0"
MINUS = "\u2212"
TIMES = "\u00d7"
_SUPERSCRIPT = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)
_QUESTIONS = {
    "gradient": "Is the attack's gradient the true gradient of the defence?",
    "gradient at proposals": "Is it still the true gradient where the attack ended?",
    "randomness": "Is the defence as random as it says?",
    "logits": "Does the classifier give raw scores, in evaluation mode?",
    "neighbours": "Does an image's answer stay the same whatever stands beside it?",
    "answers": "Was every answer a finite number?",
    "labels": "Are the clean images classified better than by guessing?",
    "classes": "Are the classes of the images those of the classifier?",
    "vanishing loss": "Did the loss keep its gradient?",
    "zero gradient": "Was there a gradient to follow?",
    "memory": "Did the run keep the rows at once that were planned?",
    "ball": "Do all attacked images stay in the bound?",
    "finite": "Was every gradient a finite number?",
    "loss rises": "Does the attack make progress?",
    "fresh draws": "Does the attack hold on draws of the noise it never saw?",
    "more steps": "Would twice the attack iterations win more?",
    "more EoT draws": "Would averaging over twice the noise draws win more?",
    "transfer": "Would images made against the bare classifier win more?",
}
MARKS = {"pass": ("\u2713", "passed"), "warn": ("!", "attention"), "fail": ("\u2717", "failed")}


def number(value: float, digits: int = 1) -> str:
    """A number with a true minus sign, without a negative zero; halves are rounded up."""
    exact = Decimal(f"{value:.9f}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{abs(exact)}" if exact == 0 else f"{exact}".replace("-", MINUS)


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{number(100 * share, digits)}{NBSP}%"


def interval(e: Interval, digits: int = 1) -> str:
    """The interval of a share, in percent or points."""
    low, high = number(100 * e.low, digits), number(100 * e.high, digits)
    return f"{low}{NBSP}to{NBSP}{high}"


def points(share: float, digits: int = 1) -> str:
    """A difference of shares."""
    text = number(100 * share, digits)
    return f"{text}{NBSP}{'point' if text in ('1', '1.0') else 'points'}"


def count(n: float) -> str:
    """A count with thousands separated."""
    return f"{n:,.0f}".replace(",", "\u202f") if n >= 10_000 else f"{n:.0f}"


def magnitude(value: float | None) -> str:
    """A small error for humans: "3 x 10^-7"."""
    if value is None or math.isnan(value):
        return "not measured"
    if value == 0:
        return "0"
    if value >= 1e-3:
        return f"{value:.2g}"
    power = math.floor(math.log10(value))
    lead = round(value / 10.0**power)
    lead, power = (1, power + 1) if lead == 10 else (lead, power)
    return f"{lead}{NBSP}{TIMES}{NBSP}10{str(power).translate(_SUPERSCRIPT)}"


def closeness(value: float | None, whole: float = 1.0, digits: int = 4) -> str:
    """A cosine or a percentage near `whole`, never rounded up to it."""
    if value is None or math.isnan(value):
        return "not measured"
    text = number(value, digits)
    step = 10.0**-digits
    if float(f"{value:.{digits}f}") == whole and whole - value > 1e-9 * whole:
        near = value > whole - step / 100
        return text if near else f"> {number(whole - step, digits)}"
    return text


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.{1 if seconds >= 1 else 2}f}{NBSP}s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}{NBSP}min {rest:02d}{NBSP}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{NBSP}h {minutes:02d}{NBSP}min"


def memory(mib: float) -> str:
    """MiB or GiB."""
    return f"{mib / 1024:.1f}{NBSP}GiB" if mib >= 1024 else f"{mib:.0f}{NBSP}MiB"


def sentence(text: str) -> str:
    """A finding with a capital, true arrows and minus signs, and powers of ten written out."""
    shown = re.sub(r"\b(\d(?:\.\d+)?)e([-+]\d+)\b", _powers, text.replace("->", "\u2192"))
    shown = re.sub(r"(?<![\w.])-(?=\d)", MINUS, shown)
    if shown.startswith("eot "):
        return "EoT" + shown[3:]
    return shown[:1].upper() + shown[1:]


def _powers(match: re.Match[str]) -> str:
    if 1e-2 <= float(match[0]) < 1e4:
        return f"{float(match[0]):g}"
    power = str(int(match[2])).translate(_SUPERSCRIPT)
    return f"{match[1]}{NBSP}{TIMES}{NBSP}10{power}"


def plural(n: int, one: str, many: str = "") -> str:
    """ "1 image", "2 images"."""
    return f"{count(n)}{NBSP}{one if n == 1 else many or one + 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, three or more in a row as a range: "1, 3 to 6"."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][-1] + 1:
            found[-1].append(n)
        else:
            found.append([n])
    parts = [
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(str(n) for n in run)
        for run in found
    ]
    return ", ".join(parts)


def question(check: Check) -> str:
    """What a check asks; its own name if it is not one of ours."""
    return _QUESTIONS.get(check.name, check.name)


def answer(run: Run) -> list[tuple[str, bool]]:
    """The answer in one sentence, in pieces; True marks what a page stresses.

    Whole numbers, unless their difference would then not be the effect that is stated.
    """
    clean, robust, effect = run.clean.single, run.robust.single, run.effect
    a, b, gap = (int(number(100 * e.value, 0).replace(MINUS, "-")) for e in (clean, robust, effect))
    digits = 0 if a - b == gap else 1
    before = number(100 * clean.value, digits)
    verb = "is" if before == "1" else "are"
    return [
        (f"Of 100 clean images {before} {verb} classified correctly; under this attack ", False),
        (number(100 * robust.value, digits), True),
        (f" ({run.confidence}{NBSP}% CI {interval(robust, digits)}): ", False),
        (_takes(effect, digits), True),
    ]


def _takes(effect: Interval, digits: int) -> str:
    if float(f"{100 * effect.value:.{digits}f}") <= 0:
        return "the attack takes nothing."
    taken = f"the attack takes {points(effect.value, digits)}"
    return f"{taken}, no more than chance might." if effect.low <= 0 else f"{taken}."
