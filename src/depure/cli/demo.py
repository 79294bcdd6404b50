"""`depure demo`: the main job on bundled data and weights."""

from __future__ import annotations

import os
import shlex
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from depure.cli.show import console, percent
from depure.cli.values import Count


@dataclass(frozen=True)
class Row:
    """One evaluation of the demo: its folder, its title and the options that make it."""

    name: str
    title: str
    options: str
    checked: bool = False  # whether to try stronger attacks, on 16 images

    def command(self, out: Path, quick: bool) -> list[str]:
        """The whole command line of this row."""
        size = QUICK if quick else USUAL
        steps = "" if "--steps" in self.options else "--steps 5"
        parts = shlex.split(f"evaluate --eps 0.2 --t-star 0.1 {steps} {size} {self.options}")
        parts += ["--check-images", "16" if self.checked and not quick else "0"]
        return ["depure", *parts, "--title", self.title, "--out", str(out / self.name)]


USUAL = "--images 128 --attack-steps 20 --eot 5 --draws 20 --shard-size 32"
QUICK = "--images 16 --attack-steps 5 --eot 2 --draws 8 --shard-size 16"

ROWS = (
    Row("undefended", "undefended", "--denoiser none"),
    Row("ddpm-bpda", "DDPM, BPDA", "--backprop straight"),
    Row("ddpm-white-box", "DDPM, white-box EoT", "", checked=True),
    Row("ddpm-dw-forward", "DDPM, DW-forward", "--knows forward"),
    Row("ddpm-dw-reverse", "DDPM, DW-reverse", "--knows reverse"),
    Row("ddpm-dw-both", "DDPM, DW-both", "--knows forward,reverse --attack-steps 40"),
    Row("ddim-bpda", "DDIM, BPDA", "--sampler ddim --backprop straight"),
    Row("ddim-white-box", "DDIM, white-box EoT", "--sampler ddim", checked=True),
    Row("ddim-dw-both", "DDIM, DW-both", "--sampler ddim --knows forward --attack-steps 40"),
)


def _trained() -> tuple[Row, ...]:
    """What training buys: the bundled models, in two samplers, 5 and 20 steps."""
    models = {"plain": "digits", "control": "digits-control", "ADDT": "digits-addt"}
    samplers = {"DDPM": ("ddpm", "forward,reverse"), "DDIM": ("ddim", "forward")}
    found = [
        Row("adversarial", "adversarially trained classifier, no purifier",
            "--denoiser none --classifier digits-adversarial --attack-steps 40"),
    ]  # fmt: skip
    for sampler, (name, noise) in samplers.items():
        for steps in (5, 20):
            for model, denoiser in models.items():
                base = f"--sampler {name} --steps {steps} --denoiser {denoiser}"
                key, title = f"{name}-{steps}-{model.lower()}", f"{sampler} {steps}, {model}"
                box = f"{base} --knows {noise} --attack-steps 40"
                found.append(Row(f"{key}-white-box", f"{title}, white-box EoT", base))
                found.append(Row(f"{key}-dw-both", f"{title}, DW-both", box))
    return tuple(found)


LEGEND = """\
BPDA: the attacker's gradient skips the purifier. White-box EoT: exact gradients, averaged over
fresh noise. DW-forward, -reverse, -both: the attacker also knows the noise of the noising, of the
denoising, of both, and the judge uses that very noise (DDIM's denoising draws none)."""


@click.command("demo", short_help="See a defence attacked and judged, in minutes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the runs and the report; the same command continues a stopped demo.",
)
@click.option(
    "--what",
    type=click.Choice(["attacks", "training"]),
    default="attacks",
    show_default=True,
    help="attacks: one defence under nine attacks, minutes. training: diffusion models trained "
    "plainly, fine-tuned, and fine-tuned by ADDT, beside an adversarially trained classifier, "
    "25 rows, of which half take 20 steps.",
)
@click.option("--quick", is_flag=True, help="Few images, a weak attack.")
@click.option(
    "--jobs",
    type=Count(1, 4 * (os.cpu_count() or 1)),
    default=min(4, os.cpu_count() or 1),
    show_default="CPU cores, at most 4",
    help="Evaluations at a time, one thread each.",
)
def command(out: Path, what: str, quick: bool, jobs: int) -> int:
    """Defend a digit classifier with a small diffusion model, attack it nine ways, and report.

    Everything is bundled: real 8x8 digits, a classifier, a diffusion model. Each row of the
    report is one `depure evaluate` command, printed there, that you can repeat and change.
    """
    begin = time.perf_counter()
    rows = ROWS if what == "attacks" else _trained()
    failed = _run_all(rows, out, quick, jobs)
    if failed:
        for row, error in failed:
            click.echo(f"Error: {row.title}: {error}", err=True)
        return 1
    from depure.reporting import report

    title = "Depure demo" + (" (quick: few images, weak attack)" if quick else "")
    page = report([out / row.name for row in rows], out=out / "report.html", title=title)
    _show([_card(out / row.name) for row in rows], quick)
    console().print(f"\nreport: {page} ({time.perf_counter() - begin:.0f} s)")
    return 0


def _run_all(
    rows: tuple[Row, ...], out: Path, quick: bool, jobs: int
) -> list[tuple[Row, BaseException]]:
    """Run every row, long ones first; the rows that failed with their errors."""
    longest_first = sorted(rows, key=lambda r: "white" not in r.name and "ward" not in r.name)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {row.name: pool.submit(_work, row.command(out, quick)) for row in longest_first}
        try:
            _watch(rows, futures, out)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    errors = [(row, futures[row.name].exception()) for row in rows]
    return [(row, error) for row, error in errors if error is not None]


def _work(line: list[str]) -> None:
    """One evaluation in a process of its own."""
    import torch

    from depure.cli.evaluate import command, evaluate_with

    torch.set_num_threads(1)
    sys.argv = line
    options = command.make_context("evaluate", line[2:]).params
    evaluate_with(options, shlex.join(line))


def _watch(rows: tuple[Row, ...], futures: dict[str, Future[None]], out: Path) -> None:
    """Bars that follow the finished shards on disk, until every row is done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(file=sys.stderr)) as bar:
        tasks = {row.name: bar.add_task(row.title, total=None, start=False) for row in rows}
        pending = True
        while pending:
            pending = bool(wait(futures.values(), timeout=0.5).not_done)
            for name, task in tasks.items():
                done, total = _state(out / name)
                if futures[name].running() or done:
                    bar.start_task(task)
                complete = total if futures[name].done() else done
                bar.update(task, completed=complete, total=total)


def _state(folder: Path) -> tuple[int, int]:
    """Shards finished and in all (one more for the checks at the end)."""
    from depure.files import read_json

    if not (folder / "config.json").exists():
        return 0, 1
    config = read_json(folder / "config.json")
    total = -(-config["data"]["images"] // config["shard_size"]) + 1
    return len(list((folder / "shards").glob("[0-9]*.safetensors"))), total


def _card(folder: Path) -> dict[str, Any]:
    from depure.files import read_json

    return read_json(folder / "card.json")


def _show(cards: list[dict[str, Any]], quick: bool) -> None:
    from depure.evaluation import Interval

    table = Table(title="accuracy in %, with 95 % confidence intervals")
    for name in ("setting", "no attack", "under attack", "right in all draws"):
        wide = name == "setting"  # the one that may be wrapped on a narrow terminal
        table.add_column(name, justify="left" if wide else "right", no_wrap=not wide)
    for card in cards:
        results = card["results"]
        cells = [results["clean"]["accuracy"], results["robust"]["accuracy"]]
        cells.append(results["robust"]["any_of_n"][-1])
        table.add_row(card["title"], *(percent(Interval(**cell)) for cell in cells))
    out = console()
    out.print(table)
    images, draws = (max(c["results"][key] for c in cards) for key in ("images", "draws"))
    out.print(
        f"n = {images} held-out digits, {draws} fresh draws each (1 where all noise is known), "
        f"Linf eps = 0.2, seed 0"
    )
    out.print(LEGEND)
    if quick:
        out.print("Quick: too few images and too weak an attack to quote; run `depure demo`.")
