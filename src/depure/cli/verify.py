"""`depure verify-gradient`."""

from __future__ import annotations

import json
from typing import Any

import click

from depure.cli import options as opts
from depure.cli.build import build_backprop, build_model
from depure.cli.config import config
from depure.cli.show import show_gradient_check


@click.command("verify-gradient", short_help="Prove a defence's gradient, or refuse it.")
@config
@opts.data
@opts.purifier
@opts.gradient
@opts.common
@click.option(
    "--approximations",
    default="straight,surrogate:2",
    show_default=True,
    metavar="NAMES",
    help="Loop drivers to put beside it, separated by commas.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the gradient check as JSON.")
def command(**options: Any) -> int:
    """Compare a defence's gradient with finite differences.

    Noise is frozen; it runs in float64 where the defence does. Exit status 1 if the gradient is
    not that of the defence (also if it is an approximation by choice of --backprop).

    \b
    Examples:
      depure verify-gradient --steps 10
      depure verify-gradient --sampler sde --steps 20 --approximations adjoint,straight
    """
    from depure.evaluation import verify_gradient
    from depure.evaluation.shards import base_noise
    from depure.threat import Linf, Threat

    model, images = build_model({**options, "images": options["images"] or 4})
    names = [n for n in str(options["approximations"]).split(",") if n and n != "none"]
    others = [
        build_backprop({**options, "backprop": name.strip()}, "--approximations") for name in names
    ]
    noise = base_noise(model, images.index, Threat(Linf()), options["seed"])
    device = options["device"]
    if options["denoiser"] == "none":
        others = []
    gradient_check = verify_gradient(
        model,
        images.x.to(device),
        images.y.to(device),
        noise,
        approximations=others,
    )
    if options["as_json"]:
        click.echo(json.dumps(gradient_check.record(), indent=2))
    else:
        show_gradient_check(gradient_check)
    return 0 if gradient_check.passed else 1
