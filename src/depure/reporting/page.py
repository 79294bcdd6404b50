"""The page of one run, and the jinja2 environment that all pages share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from depure.evaluation.gradient_check import Agreement
from depure.evaluation.statistics import Interval
from depure.reporting import words
from depure.reporting.load import Run
from depure.reporting.pictures import strip
from depure.reporting.settings import Row, bound_in_full, setting_rows

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Headline:
    """One row of the headline table."""

    name: str
    note: str
    clean: Interval
    robust: Interval
    effect: str
    effect_interval: str = ""


@dataclass(frozen=True)
class Fact:
    """One reason to trust a result, or not: a verdict and a sentence."""

    verdict: str
    text: str
    anchor: str = ""


def render_page(run: Run, title: str = "") -> str:
    """The self-contained HTML page of one run."""
    return environment().get_template("page.html.jinja").render(
        run=run,
        title=title or run.title,
        answer=words.answer(run),
        facts=facts(run),
        headlines=headlines(run),
        one_draw=one_draw(run),
        accuracy_svg=accuracy_svg(run),
        trace_svg=trace_svg(run),
        calls_svg=calls_svg(run),
        loss=_loss_name(run),
        strip=strip(run),
        gradient_check=gradient_rows(run),
        costs=cost_rows(run),
        groups=_groups(run),
        versions=run.card["run"]["versions"],
    )  # fmt: skip


@cache
def environment() -> Environment:
    """Templates with everything escaped, and the words that they use."""
    env = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(css=Markup((_HERE / "style.css").read_text(encoding="utf-8")))
    env.globals.update(marks=words.MARKS, question=words.question, plural=words.plural)
    env.filters.update(
        sentence=words.sentence,
        percent=words.percent,
        interval=words.interval,
        count=words.count,
        number=words.number,
    )
    return env


def headlines(run: Run) -> list[Headline]:
    """Single draw, worst of N, majority of k: clean and attacked beside each other."""
    clean, robust = run.clean, run.robust
    rows = [
        Headline(
            "One pass" if run.known else "One fresh draw",
            "how often one pass through the defence is right",
            clean.single, robust.single, words.number(100 * run.effect.value),
            words.interval(run.effect),
        )
    ]  # fmt: skip
    n = len(robust.any_of_n)
    if n > 1:
        a, b = clean.any_of_n[-1], robust.any_of_n[-1]
        note = f"an image counts only if all {n} draws are right: the attacker may try {n} times"
        rows.append(Headline(f"Worst of {n} draws", note, a, b, _gap(a, b)))
    k, b = robust.odd_votes()[-1]
    if k > 1:
        a = clean.odd_votes()[-1][1]
        note = f"{k} draws vote on each image" + (" (odd, so that few tie)" if n % 2 == 0 else "")
        rows.append(Headline(f"Majority vote of {k} draws", note, a, b, _gap(a, b)))
    return rows


def _gap(clean: Interval, robust: Interval) -> str:
    return words.number(100 * (clean.value - robust.value))


def facts(run: Run) -> list[Fact]:
    """What a reader should weigh before they believe the number."""
    return [_gradient_fact(run), _checks_fact(run), _evidence_fact(run)]


def _gradient_fact(run: Run) -> Fact:
    gradient_check = run.gradient_check
    error = words.magnitude(gradient_check.finite_difference_error)
    if gradient_check.passed:
        return Fact(
            "pass",
            f"The gradient that an attack gets is that of the defence (finite differences agree "
            f"to a relative error of {error}).",
            "gradient_check",
        )
    if gradient_check.rows and not gradient_check.rows[0].exact:
        return Fact(
            "warn",
            "The attack used an approximate gradient, by choice: one with the exact gradient may "
            "take more.",
            "gradient_check",
        )
    if not gradient_check.judged:
        return Fact(
            "warn", f"The gradient was not judged: {gradient_check.verdict}", "gradient_check"
        )
    return Fact(
        "fail",
        f"The gradient check failed: do not quote this. {gradient_check.verdict}",
        "gradient_check",
    )


def _checks_fact(run: Run) -> Fact:
    good = sum(c.verdict == "pass" for c in run.checks)
    total = len(run.checks)
    if not total:
        return Fact("warn", "No checks were made.", "checks")
    if good == total:
        return Fact("pass", f"All {total} checks passed.", "checks")
    bad = [c for c in run.checks if c.verdict != "pass"]
    worst = "fail" if any(c.verdict == "fail" for c in bad) else "warn"
    named = ", ".join(c.name for c in bad)
    need = "needs" if len(bad) == 1 else "need"
    return Fact(worst, f"{len(bad)} of {total} checks {need} attention: {named}.", "checks")


def _evidence_fact(run: Run) -> Fact:
    width = run.robust.single.high - run.robust.single.low
    drawn = f", {words.plural(run.draws, 'fresh draw')} each" if not run.known else ""
    evidence = f"{words.plural(run.images, 'image')}{drawn}"
    wide = f"the interval is {words.points(width, 0)} wide"
    if width > 0.2:
        return Fact("warn", f"{evidence}: few, {wide}.", "reading")
    return Fact("pass", f"{evidence}: {wide}.", "reading")


def one_draw(run: Run) -> str:
    """Why there is no curve over draws; "" if there is one."""
    if run.draws > 1:
        return ""
    if not run.setting["model"]["stages"]:
        return "The defence draws no noise, so every draw would be the same: one was judged."
    if run.known:
        return (
            "The attacker knows all noise of the defence and the judge uses the same numbers "
            "(deterministic white-box, DW-box), so every draw would be the same: one was judged."
        )
    return "One draw was asked for: ask for more to see the worst of several and the vote."


def accuracy_svg(run: Run) -> Markup:
    """Curves over draws; empty for one draw."""
    from depure.reporting import figures  # matplotlib: only when a report is built

    if run.draws < 2:
        return Markup()
    figure = figures.accuracy_figure(run.clean, run.robust)
    return Markup(figures.svg(figure, "accuracy", "Accuracy against the number of draws"))


def trace_svg(run: Run) -> Markup:
    """Loss and accuracy over the attack's iterations; empty if it recorded none."""
    from depure.reporting import figures

    loss, accuracy = run.trace["loss"], run.trace["accuracy"]
    if not loss:
        return Markup()
    figure = figures.trace_figure(loss, accuracy, run.robust.single, fresh=not run.known)
    return Markup(figures.svg(figure, "trace", "Loss and accuracy during the attack"))


def calls_svg(run: Run) -> Markup:
    """An ensemble's accuracy against calls; empty for other attacks."""
    from depure.reporting import figures

    calls, accuracy = run.calls["calls"], run.calls["accuracy"]
    if not calls:
        return Markup()
    figure = figures.calls_figure(calls, accuracy, run.members, run.robust.single)
    return Markup(figures.svg(figure, "calls", "Accuracy against calls of the defence"))


def gradient_rows(run: Run) -> list[tuple[str, str, str, str, str]]:
    """Name, relative error, cosine, sign agreement, and what it claims to be."""

    def row(a: Agreement) -> tuple[str, str, str, str, str]:
        signs = None if a.sign_agreement is None else 100 * a.sign_agreement
        agreement = words.closeness(signs, 100.0, 2)
        unit = "" if signs is None else f"{words.NBSP}%"
        return (
            a.name,
            words.magnitude(a.relative_error),
            words.closeness(a.cosine),
            agreement + unit,
            "exact" if a.exact else "approximate",
        )

    return [row(a) for a in run.gradient_check.rows]


def cost_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """What was paid: name, in all, per image, explanation."""
    cost, spent, n = run.card["cost"], run.card["run"], run.images
    calls = "calls: one image through one network once, forward"
    again, first = cost["recomputed_calls"], cost["purifier_calls"]
    return [
        ("Purifier", words.count(first), words.count(first / n), calls),
        ("Purifier, recomputed", words.count(again), words.count(again / n),
         "calls again, so that gradients need little memory"),
        ("Classifier", words.count(cost["classifier_calls"]),
         words.count(cost["classifier_calls"] / n), "calls, likewise"),
        ("Time", words.duration(spent["seconds"]), words.duration(spent["seconds"] / n),
         "to attack and to judge, without the checks"),
        ("Peak memory", words.memory(spent["peak_memory_mib"]), "",
         "of the process, or on the GPU if it ran there"),
    ]  # fmt: skip


def _groups(run: Run) -> dict[str, list[Row]]:
    groups = setting_rows(run.setting)
    full = bound_in_full(run.setting["threat"]["ball"])
    if full:
        rows = groups["Attacker"]
        groups["Attacker"] = [
            Row(r.label, r.value, full, r.code) if r.label == "Bound" else r for r in rows
        ]
    return groups


def _loss_name(run: Run) -> str:
    names: dict[str, Any] = {r.label: r.value for r in setting_rows(run.setting).get("Attack", [])}
    return str(names.get("Loss", ""))
