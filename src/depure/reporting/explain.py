"""A page that says where a defence's robustness comes from: questions, answers, figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from depure.analysis.gradients import Gradients
from depure.analysis.purification import Purification
from depure.analysis.stochasticity import Curves, Stochasticity
from depure.analysis.transfer import accuracy_of, table_of
from depure.evaluation.statistics import Interval, difference, mean_accuracy
from depure.reporting.page import environment
from depure.reporting.words import interval, number, percent, plural, points

_ALL = "both"  # every stage that a defence has


@dataclass(frozen=True)
class Answer:
    """A question, its answer in sentences, and the figures that show it."""

    question: str
    sentences: tuple[str, ...]
    figures: tuple[tuple[str, Figure], ...] = ()


def explain_page(title: str, facts: Sequence[str], answers: Sequence[Answer], command: str) -> str:
    """The self-contained HTML page."""
    shown = [
        (a.question, a.sentences, [(name, _png(figure)) for name, figure in a.figures])
        for a in answers
    ]
    template = environment().get_template("explain.html.jinja")
    return template.render(title=title, facts=facts, answers=shown, command=command)


def _png(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return base64.b64encode(content.getvalue()).decode()


def removes_or_hides(found: Mapping[str, Purification], curves: Curves) -> tuple[str, ...]:
    """Question 1: the share of a perturbation that is gone, and what hangs on hidden noise."""
    sentences = []
    for name, one in found.items():
        gone = one.removed[:, -1]
        kept = gone[np.isfinite(gone)]
        mean, error = float(kept.mean()), float(kept.std(ddof=1)) / len(kept) ** 0.5
        damage = float(one.clean["l2"][:, -1].mean())
        size = float(one.adversarial["l2"][:, 0].mean())
        known, fresh = (_accuracy(curves, name, at) for at in (0, -1))
        sentences.append(
            f"{name}: the purifier takes {percent(mean)} (± {number(196 * error)} points) of the "
            f"adversarial perturbation out of the image, measured along the perturbation, and "
            f"moves a clean image by {damage:.2f} in L2; the perturbation itself measures "
            f"{size:.2f}. Accuracy under attack is {_value(fresh)} while the noise is "
            f"hidden and {_value(known)} once it is known."
        )
    return (
        *sentences,
        "A purifier that removed perturbations would keep its accuracy when the noise is known; "
        "the part that is lost was hidden, not removed (inference).",
    )


def left_when_known(curves: Curves) -> tuple[str, ...]:
    """Question 2: accuracy at mix 0 beside that at 1, paired."""
    sentences = []
    for name in dict.fromkeys(curves.models):
        row = _row(curves, name)
        tables = [_table(curves, row, at) for at in (0, -1)]
        lost = difference(tables[1], tables[0])
        known = mean_accuracy(tables[0])
        sentences.append(
            f"{name}: {_value(known)} of the images still stand when the attacker knows all noise; "
            f"knowing it takes {points(lost.value)} ({interval(lost)}, paired)."
        )
    return tuple(sentences)


def training_changed(curves: Curves) -> tuple[str, ...]:
    """Question 3: other models against the first, on the same images."""
    names = list(dict.fromkeys(curves.models))
    if len(names) < 2:
        return ("Only one model was analysed: pass --beside NAME=DENOISER to compare.",)
    sentences = []
    for name in names[1:]:
        parts = []
        for at, words in ((-1, "while the noise is hidden"), (0, "when it is known")):
            a, b = (_table(curves, _row(curves, n), at) for n in (name, names[0]))
            d = difference(a, b)
            verdict = "no more than chance might give" if d.low <= 0 <= d.high else "beyond chance"
            signed = f"{'+' if d.value > 0 else ''}{points(d.value)}"
            parts.append(f"{signed} {words} ({interval(d)}; {verdict})")
        sentences.append(f"{name} against {names[0]}, under attack: {'; '.join(parts)}.")
    return tuple(sentences)


def converged(found: Gradients) -> tuple[str, ...]:
    """Question 4: whether more EoT draws still help the attack."""
    sentences = []
    for name, one in found.models.items():
        needed, last = one.needed(found.eots), one.gain()[0]
        snr, judged = one.estimate("snr")[0, 0], plural(len(one.accuracy), "image")
        sentences.append(
            f"{name}: from {plural(needed, 'EoT draw')} on, no larger number tried (up to "
            f"{int(found.eots[-1])}) wins reliably more on these {judged}. One draw instead of "
            f"{int(found.eots[-1])} costs the attack {points(last.value)} ({interval(last)}). The "
            f"gradient of one draw has a signal-to-noise ratio of {snr:.2f}."
        )
    return tuple(sentences)


def all_answers(
    stochastic: Stochasticity,
    purified: Mapping[str, Purification],
    quality: Gradients,
    figures: Mapping[str, Sequence[tuple[str, Figure]]],
) -> list[Answer]:
    """The four questions in order; `figures` by instrument."""
    curves = stochastic.mix
    return [
        Answer("Does the purifier remove perturbations, or hide them?",
               removes_or_hides(purified, curves), tuple(figures["purification"])),
        Answer("How much is left when the noise is known?",
               left_when_known(curves), tuple(figures["stochasticity"])),
        Answer("What did adversarial training change?",
               training_changed(curves), tuple(figures["landscape"])),
        Answer("Is the attack converged?", converged(quality), tuple(figures["gradients"])),
    ]  # fmt: skip


def no_better_than_guessing(curves: Curves, classes: int) -> list[str]:
    """A warning for every model whose clean accuracy is no better than chance."""
    found = []
    for name in dict.fromkeys(curves.models):
        row = _row(curves, name)
        draws = int(curves.draws[row, -1])
        clean = accuracy_of(curves.accuracy_clean[row, -1], draws)
        if classes > 1 and clean.value <= 1.0 / classes:
            found.append(
                f"Warning: {name} gets {_value(clean)} of the clean images right, no better than "
                f"guessing among {classes} classes: the labels may not be numbered as the "
                f"classifier's"
            )
    return found


def _row(curves: Curves, name: str) -> int:
    """The row of a model in which all its stages are held."""
    pairs = list(zip(curves.models, curves.stages, strict=True))
    return pairs.index((name, _ALL))


def _table(curves: Curves, row: int, at: int) -> np.ndarray:
    return table_of(curves.accuracy[row, at], int(curves.draws[row, at]))


def _accuracy(curves: Curves, name: str, at: int) -> Interval:
    row = _row(curves, name)
    return accuracy_of(curves.accuracy[row, at], int(curves.draws[row, at]))


def _value(estimate: Interval) -> str:
    return f"{percent(estimate.value)} ({interval(estimate)})"
