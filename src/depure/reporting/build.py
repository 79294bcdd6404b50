"""From run folders to files: pages and figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from jinja2 import TemplateError

from depure.files import write_text
from depure.reporting.compare import render_compare
from depure.reporting.load import Run, load_run
from depure.reporting.page import render_page

_NAME = "report.html"
_AGAIN = (
    "an entry is missing, or not what it should be; delete it and finish the run again with the "
    "same `depure evaluate` command"
)
# What comes of cards with entries of another kind, wherever they are used.
_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, TemplateError)


def report(
    runs: Sequence[str | Path] | str | Path, out: str | Path | None = None, title: str = ""
) -> Path:
    """Write one self-contained HTML page about a run, or about several compared; its path.

    The page needs nothing beside it and asks the network for nothing. A comparison links to the
    pages of its runs, which are written too, each in its own folder.

    Args:
        runs: run folders, in the order in which a comparison shows them.
        out: the file to write, or a folder for `report.html`; by default the run's folder, or
            for several runs the folder that holds them all.
        title: the page's heading, instead of the run's own title.

    Raises:
        FileNotFoundError: if a folder does not exist or holds no finished run.
        ValueError: for no runs, a card of another schema, a damaged file, or several runs
            without a folder of their own above them (pass `out`).

    Example:
        >>> report(["runs/ddpm", "runs/ddim"], title="Which sampler?")  # doctest: +SKIP
        PosixPath('runs/report.html')
    """
    if not isinstance(runs, str | Path | Sequence):
        raise ValueError(f"runs must be run folders; got {type(runs).__name__}")
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    if not folders:
        raise ValueError("report needs at least one run folder; got none")
    loaded = [load_run(folder) for folder in folders]
    if len(loaded) == 1:
        target = _target(out, loaded[0].folder)
        return _write(target, _page(loaded[0], title))
    target = _target(out, _common(loaded) if out is None else Path())
    pages = [run.folder / _NAME for run in loaded]
    if target.resolve() in [page.resolve() for page in pages]:
        raise ValueError(f"{target} is the page of one of the runs: pass another file as out")
    for run, page in zip(loaded, pages, strict=True):
        _write(page, _page(run))
    try:
        html = render_compare(loaded, [_link(page, target) for page in pages], title)
    except _ODD as error:
        cards = ", ".join(str(run.folder / "card.json") for run in loaded)
        raise ValueError(f"one of the cards {cards} is damaged: {_AGAIN}") from error
    return _write(target, html)


def save_figures(run: str | Path) -> list[Path]:
    """Write a run's figures beside its card, for papers: accuracy, trace, calls, svg and png.

    A figure that would show nothing is left out: accuracy against draws for one draw, the trace
    of an attack that recorded none, the calls of one that is no ensemble.

    Raises:
        FileNotFoundError, ValueError: as `report`.
    """
    from depure.reporting import figures  # matplotlib: only when a report is built

    loaded = load_run(run)
    paths: list[Path] = []
    if loaded.draws > 1:
        figure = figures.accuracy_figure(loaded.clean, loaded.robust)
        paths += figures.save(figure, loaded.folder, "accuracy")
    trace = loaded.trace
    if trace["loss"]:
        figure = figures.trace_figure(
            trace["loss"], trace["accuracy"], loaded.robust.single, fresh=not loaded.known
        )
        paths += figures.save(figure, loaded.folder, "trace")
    calls = loaded.calls
    if calls["calls"]:
        figure = figures.calls_figure(
            calls["calls"], calls["accuracy"], loaded.members, loaded.robust.single
        )
        paths += figures.save(figure, loaded.folder, "calls")
    return paths


def _page(run: Run, title: str = "") -> str:
    try:
        return render_page(run, title)
    except _ODD as error:
        raise ValueError(f"{run.folder / 'card.json'} is damaged: {_AGAIN}") from error


def _common(runs: Sequence[Run]) -> Path:
    try:
        return Path(os.path.commonpath([run.folder.resolve() for run in runs]))
    except ValueError as error:  # on different drives
        raise ValueError(f"the runs share no folder ({error}): pass out") from error


def _target(out: str | Path | None, default: Path) -> Path:
    if out is None:
        return default / _NAME
    path = Path(out)
    return path if path.suffix.lower() in (".html", ".htm") else path / _NAME


def _link(page: Path, target: Path) -> str:
    try:
        relative = os.path.relpath(page.resolve(), target.resolve().parent)
    except ValueError:  # on different drives
        return page.resolve().as_uri()
    return quote(os.fsencode(Path(relative).as_posix()))


def _write(path: Path, html: str) -> Path:
    """Whole, or not at all; one that is as it should be may lie in a read-only folder."""
    with suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == html:
            return path
    write_text(path, html)
    return path
