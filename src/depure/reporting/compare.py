"""The page that compares several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from depure.evaluation import statistics
from depure.evaluation.statistics import Interval
from depure.files import plain
from depure.reporting import words
from depure.reporting.load import Run
from depure.reporting.page import environment
from depure.reporting.pictures import Picture, class_names, name, pairs, uri
from depure.reporting.settings import (
    attack_in_short,
    bound,
    defence_in_short,
    knowledge,
    setting_rows,
)

if TYPE_CHECKING:
    from depure.reporting import figures


@dataclass(frozen=True)
class Entry:
    """One run in the comparison table."""

    number: int
    label: str
    link: str
    run: Run
    defence: str
    bound: str
    knows: str
    attack: str
    worst: tuple[int, Interval] | None
    against_first: Interval | None
    checks: tuple[str, str]  # verdict, words
    calls: str


@dataclass(frozen=True)
class Gallery:
    """The same images in every run: true labels, clean images, and per run attacked/purified."""

    truth: list[str]
    clean: list[str]
    rows: list[tuple[Entry, list[tuple[Picture, str]]]]


def render_compare(runs: Sequence[Run], links: Sequence[str], title: str = "") -> str:
    """The self-contained HTML page of several runs; `links` lead to their own pages."""
    entries = _entries(runs, links)
    return environment().get_template("compare.html.jinja").render(
        title=title or f"{len(runs)} runs compared",
        answer=_answer(entries),
        entries=entries,
        shared=_shared(entries),
        paired=any(e.against_first for e in entries),
        forest_svg=_forest(entries),
        tries_svg=_tries(entries),
        differing=_differing(runs),
        gallery=_gallery(entries),
        notes=_notes(runs),
        confidence=runs[0].confidence,
    )  # fmt: skip


def _entries(runs: Sequence[Run], links: Sequence[str]) -> list[Entry]:
    titles = Counter(run.title for run in runs)
    entries = []
    for i, (run, link) in enumerate(zip(runs, links, strict=True)):
        n = len(run.robust.any_of_n)
        alone = titles[run.title] == 1
        entries.append(
            Entry(
                number=i + 1,
                label=run.title if alone else f"{run.title} ({plain(run.folder.resolve().name)})",
                link=link,
                run=run,
                defence=defence_in_short(run.setting),
                bound=bound(run.setting["threat"]["ball"]),
                knows=knowledge(run.setting),
                attack=attack_in_short(run.setting),
                worst=(n, run.robust.any_of_n[-1]) if n > 1 else None,
                against_first=_against(runs[0], run) if i else None,
                checks=_checks(run),
                calls=words.count(run.card["cost"]["calls_per_image"]),
            )
        )
    return entries


def _against(first: Run, run: Run) -> Interval | None:
    """Attacked accuracy minus that of the first run, paired by image; None on other images."""
    if first.tables is None or run.tables is None or not _same_images([first, run]):
        return None
    here, there = ((t.adversarial == t.y[:, None]).numpy() for t in (run.tables, first.tables))
    return statistics.difference(here, there)


def _same_images(runs: Sequence[Run]) -> bool:
    return len({(run.setting["data"]["fingerprint"], run.images) for run in runs}) == 1


def _checks(run: Run) -> tuple[str, str]:
    bad = [c for c in run.checks if c.verdict != "pass"]
    if not run.checks:
        return "warn", "none made"
    if not bad:
        return "pass", f"all {len(run.checks)}"
    return (
        "fail" if any(c.verdict == "fail" for c in bad) else "warn",
        ", ".join(c.name for c in bad),
    )


def _answer(entries: Sequence[Entry]) -> list[tuple[str, bool]]:
    """The range of attacked accuracies, with the runs at its ends; True marks what to stress."""
    ranked = sorted(entries, key=lambda e: e.run.robust.single.value)

    def told(e: Entry) -> list[tuple[str, bool]]:
        single, nbsp = e.run.robust.single, words.NBSP
        ci = f"{e.run.confidence}{nbsp}% CI {words.interval(single, 0)}"
        return [
            (words.percent(single.value, 0), True),
            (f" (run{nbsp}{e.number}, {e.label}; {ci})", False),
        ]

    begin = f"Over {len(entries)} runs, accuracy under attack goes from "
    return [(begin, False), *told(ranked[0]), (" to ", False), *told(ranked[-1]), (".", False)]


def _shared(entries: Sequence[Entry]) -> list[str]:
    """What all runs have in common, said once above the table."""
    settings = [e.run.setting for e in entries]
    said = [
        [f"{s['data']['name']}, {words.plural(s['data']['images'], 'image')}" for s in settings],
        [f"bound {e.bound}" for e in entries],
        [e.attack for e in entries],
        [f"seed {s['seed']}" for s in settings],
    ]
    return [values[0] for values in said if len(set(values)) == 1]


def _lines(entries: Sequence[Entry]) -> list[figures.Line]:
    from depure.reporting import figures  # matplotlib: only when a report is built

    return [
        figures.Line(f"{e.number}  {e.label}", e.run.clean, e.run.robust, e.run.known)
        for e in entries
    ]


def _forest(entries: Sequence[Entry]) -> Markup:
    from depure.reporting import figures

    described = "Clean and attacked accuracy of every run, with intervals"
    return Markup(figures.svg(figures.forest_figure(_lines(entries)), "forest", described))


def _tries(entries: Sequence[Entry]) -> Markup:
    """Empty if every run was judged on one draw."""
    from depure.reporting import figures

    if all(e.run.draws == 1 for e in entries):
        return Markup()
    figure = figures.tries_figure(_lines(entries))
    return Markup(figures.svg(figure, "tries", "Worst-of-N accuracy of every run"))


def _differing(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Settings that are not the same in all runs: name, and every value with its runs' numbers."""
    tables = [_named(run) for run in runs]
    found = []
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [table.get(key, "none") for table in tables]
        if len(set(values)) > 1:
            where = [
                (v, words.ranges([i for i, other in enumerate(values, 1) if other == v]))
                for v in dict.fromkeys(values)
            ]
            found.append((key, where))
    return found


def _named(run: Run) -> dict[str, str]:
    """The setting as {"Attack: iterations": "20", ...}."""
    named: dict[str, str] = {}
    for group, rows in setting_rows(run.setting).items():
        for row in rows:
            key = row.label if row.label.startswith(group) else f"{group}: {row.label}"
            named[key] = f"{named[key]}, {row.value}" if key in named else row.value
    return named


def _gallery(entries: Sequence[Entry]) -> Gallery | None:
    """None where the runs judge other images, or a folder lacks its pixels."""
    runs = [e.run for e in entries]
    tables = runs[0].tables
    if tables is None or not _same_images(runs) or any(run.tables is None for run in runs):
        return None
    names = class_names(runs[0])
    truth = [name(names, int(y)) for y in tables.y[: len(tables.x)]]
    return Gallery(truth, [uri(x) for x in tables.x], [(e, pairs(e.run)) for e in entries])


def _notes(runs: Sequence[Run]) -> list[str]:
    """What keeps the numbers from being comparable as they stand."""
    notes = []
    if not _same_images(runs):
        notes.append(
            "The runs do not judge the same images: part of a difference may be the images'."
        )
    if len({str(run.setting["threat"]["ball"]) for run in runs}) > 1:
        notes.append("The bounds differ: a larger one takes more from any defence.")
    if len({str(run.setting["attack"]) for run in runs}) > 1:
        notes.append(
            "The attacks differ: a higher number under a weaker attack is no better defence."
        )
    if len({knowledge(run.setting) for run in runs if run.setting["model"]["stages"]}) > 1:
        notes.append(
            "The attackers know different things: compare defences under the same knowledge."
        )
    approximate = [
        i
        for i, run in enumerate(runs, 1)
        if run.gradient_check.rows and not run.gradient_check.rows[0].exact
    ]
    if approximate:
        which = "Run {} was" if len(approximate) == 1 else "Runs {} were"
        notes.append(
            f"{which.format(words.ranges(approximate))} attacked with approximate gradients: "
            f"exact ones may take more."
        )
    if len({run.draws for run in runs}) > 1:
        notes.append("The numbers of draws differ: compare worst-of-N figures at the same N only.")
    return notes
