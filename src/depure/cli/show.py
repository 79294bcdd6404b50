"""What commands print: tables, progress and results."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from depure.evaluation import GradientCheck, Interval, Result
from depure.evaluation.run import Progress as Report

_MARKS = {
    "pass": Text("✓ pass", "green"), "warn": Text("! warn", "yellow"), "fail": Text("✗ fail", "red")
}  # fmt: skip


def console(quiet: bool = False) -> Console:
    """Standard output; texts are shown as they are, brackets and all."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)


@contextmanager
def progress_bar(
    what: str, total: int, quiet: bool = False, unit: str = "images"
) -> Iterator[Report]:
    """A bar on standard error with time left; yields `(done, total) -> None`."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr, quiet=quiet)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of the package as one line each on standard error, without the place in the code."""

    def show(message: Warning | str, *_: Any) -> None:
        click.echo(f"Warning: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module="depure")
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def percent(estimate: Interval) -> str:
    """53.1 (46-60), in per cent."""
    value, low, high = (100 * v for v in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} ({low:.0f}-{high:.0f})"


def show_result(result: Result, page: Path) -> None:
    """The headline, the checks and where the report lies."""
    out, results = console(), result.card["results"]
    title = Text(f"{result.card['title']}: accuracy in %, 95 % confidence intervals")
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for name in ("no attack (null control)", "under attack"):
        table.add_column(name, justify="right", no_wrap=True)
    drawn = len(results["clean"]["any_of_n"])
    worst, votes = f"right in all of {drawn} draws", f"majority of {drawn} draws"
    rows = [("one fresh draw", "accuracy", None), (worst, "any_of_n", -1)]
    for name, key, item in [*rows, (votes, "majority_of_k", -1)]:
        cells = (results[c][key] if item is None else results[c][key][item] for c in _COLUMNS)
        table.add_row(name, *(percent(Interval(**c)) for c in cells))
    out.print(table)
    out.print(f"n = {results['images']} images, {results['draws']} fresh draw(s) each")
    for check in result.card["checks"]:
        out.print(_MARKS[check["verdict"]] + Text(f"  {check['name']}: {check['text']}"))
    out.print(f"report: {page}")


_COLUMNS = ("clean", "robust")


def show_gradient_check(gradient_check: GradientCheck) -> None:
    """The gradient check as a table."""
    out = console()
    table = Table(
        title=f"gradients against {gradient_check.reference}, {gradient_check.images} images"
    )
    for name in ("gradient", "rel. error", "cosine", "equal signs", "claims exact"):
        justify: Literal["left", "right"] = "left" if name == "gradient" else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for row in gradient_check.rows:
        table.add_row(
            row.name, f"{row.relative_error:.1e}", f"{row.cosine:.6f}",
            f"{100 * row.sign_agreement:.1f} %", "yes" if row.exact else "no",
        )  # fmt: skip
    out.print(table)
    out.print(f"finite differences: relative error {gradient_check.finite_difference_error:.1e}")
    out.print(gradient_check.verdict)
