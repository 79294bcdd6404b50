"""`depure report`."""

from __future__ import annotations

from pathlib import Path

import click

from depure.cli.show import console


@click.command("report", short_help="Build the page of one run, or compare several.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="File to write (default: report.html in the run's or the common folder).",
)
@click.option("--title", default="", help="Title of a comparison.")
def command(runs: tuple[Path, ...], out: Path | None, title: str) -> None:
    """(Re)build the self-contained HTML page of one run, or of several side by side.

    \b
    Examples:
      depure report runs/latest
      depure report runs/ddpm runs/ddim --out compare.html --title "DDPM or DDIM?"
    """
    from depure.reporting import report

    page = report(runs, out=out, title=title)
    console().print(f"report: {page}")
