"""`depure evaluate`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from depure.attacks import Attack
from depure.cli import options as opts
from depure.cli.attacks import build_attack, build_threat
from depure.cli.build import build_model, memory_limit
from depure.cli.config import config
from depure.cli.show import console, progress_bar, show_result
from depure.cli.values import Count, shown
from depure.evaluation import Evaluation, Result, read_saved
from depure.reporting import report


@click.command("evaluate", short_help="Attack a defence and report what holds.")
@config
@opts.data
@opts.purifier
@opts.gradient
@opts.attack
@opts.common
@click.option(
    "--draws",
    default=20,
    show_default=True,
    type=Count(),
    help="Fresh noise draws an image on which the judge decides.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/latest"),
    show_default=True,
    help="Run folder; the same command continues a stopped run.",
)
@click.option("--title", default="", help="Title of the report.")
@click.option(
    "--check-images",
    default=16,
    show_default=True,
    type=Count(0),
    help="Images on which to try twice the steps and draws, and transfer (0: none).",
)
@click.option(
    "--gradient-check",
    default="full",
    show_default=True,
    type=click.Choice(["full", "short", "none"]),
    help="How thoroughly the defence's gradient is compared with finite differences first.",
)
@click.option(
    "--shard-size",
    default=32,
    show_default=True,
    type=Count(),
    help="Images between two savings.",
)
@click.option(
    "--adversarial",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Judge images that someone else made instead of attacking: .safetensors, .npz, .npy or "
    "RobustBench's .pt, in the order of the images (or with their indices).",
)
@click.option(
    "--part",
    default="1/1",
    show_default=True,
    metavar="I/N",
    help="Compute only every N-th shard, from the I-th; N processes may share --out.",
)
@click.option(
    "--join",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Take over finished shards from another run folder; repeatable.",
)
def command(**options: Any) -> None:
    """Attack a defence with exact gradients and judge it on fresh noise draws.

    Writes a run folder with card.json (all results and settings), report.html, the adversarial
    images and every image x draw outcome. The gradient is checked first. Killed at any moment,
    the same command continues and ends with the same numbers.

    \b
    Examples:
      depure evaluate --images 64 --eps 0.15 --steps 10
      depure evaluate --sampler ddim --steps 10 --knows forward --eps 0.15
      depure evaluate --backprop straight --eps 0.15          # BPDA
      depure evaluate --denoiser none --eps 0.15              # undefended
      depure evaluate --data cifar/test --classifier resnet56:resnet56.safetensors \\
                      --denoiser ddpm-cifar10 --images 512 --out runs/cifar
    """
    finished = evaluate_with(options, command_line(click.get_current_context()), talk=True)
    if finished is not None:
        show_result(*finished)


def command_line(ctx: click.Context, name: str = "evaluate") -> str:
    """The command that repeats this one without its --config file: every setting that was given."""
    words = ["depure", *name.split()]
    for option in ctx.command.params:
        source, value = (
            ctx.get_parameter_source(option.name or ""),
            ctx.params.get(option.name or ""),
        )
        if source in (ParameterSource.DEFAULT, None) or option.name not in ctx.params:
            continue
        if isinstance(value, bool):
            words.append(option.opts[0] if value else option.secondary_opts[0])
        else:
            for item in value if isinstance(value, tuple) else (value,):
                words += [option.opts[0], str(item)]
    return shlex.join(words)


def evaluate_with(
    options: dict[str, Any], command_line: str, *, talk: bool = False
) -> tuple[Result, Path] | None:
    """Run the evaluation that the options describe: its result and page, or None if parts miss."""
    part = _part(options["part"])
    model, images = build_model(options)
    attack: Attack
    if options["adversarial"] is None:
        attack = build_attack(options, model, len(images.classes))
    else:  # made by someone else: nothing to attack anew with
        attack, images = read_saved(options["adversarial"], images, build_threat(options).ball)
        options = {**options, "check_images": 0}
    run = Evaluation(
        model, images, attack, build_threat(options), options["out"],
        draws=options["draws"], seed=options["seed"], shard_size=options["shard_size"],
        chunk=options["chunk"] or 1024, check_images=options["check_images"],
        title=options["title"],
        command=command_line, device=torch.device(options["device"]),
        memory_limit=memory_limit(options), gradient_check=options["gradient_check"],
    )  # fmt: skip
    out = console(quiet=not talk)
    with progress_bar("checking the gradient", 100, quiet=not talk, unit="%") as share:
        verdict = run.prepare(lambda done: share(100 * done, 100)).verdict
    out.print(verdict)
    run.join(options["join"])
    with progress_bar("attacking", len(images), quiet=not talk) as progress:
        run.compute(part, progress)
    if run.missing():
        out.print(
            f"{len(run.missing())} of {len(run.shard_paths())} shards are still to be computed: "
            f"run the other parts, then this command without --part."
        )
        return None
    return run.finish(), report([options["out"]])


def _part(text: str) -> tuple[int, int]:
    this, _, parts = text.partition("/")
    number = Count(1, 10**9)
    try:
        place = number.parse(this), number.parse(parts)
    except ValueError:
        place = 1, 0
    if place[0] > place[1]:
        raise ValueError(f"--part must be I/N with 1 <= I <= N, such as 1/4; got {shown(text)}")
    return place[0] - 1, place[1]
