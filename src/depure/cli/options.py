"""The options that several commands share: each group is a decorator."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import yaml

from depure.cli.values import Betas, Number

RECIPE = "depure.recipe"  # the key of its name in a context's notes
Command = Callable[..., Any]

ATTACKS = (
    "pgd", "pgd200+eot20", "mi-pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "bpda", "transfer",
    "diffattack", "diffattack-published", "full-intermediate", "full-intermediate-published",
    "diffhammer", "square", "spsa", "rays", "stadv", "recolor", "ppgd", "lpa", "low-frequency",
    "autoattack", "autoattack-rand", "autoattack-stochastic", "autoattack-fixed", "strongest",
)  # fmt: skip


def _stack(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    settings.setdefault("show_default", True)
    return click.option(*names, **settings)


def recipe_names() -> list[str]:
    """Published settings that `--config` knows by name."""
    found = files("depure.recipes").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in found if f.name.endswith(".yaml"))


def _load_config(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Make the file's entries the defaults of this command; the command line wins."""
    if value is None:
        return None
    if value in recipe_names():
        ctx.meta[RECIPE] = value
        text = (files("depure.recipes") / f"{value}.yaml").read_text()
    elif Path(value).is_file():
        try:
            text = Path(value).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise click.BadParameter(f"{value} is not UTF-8 text") from error
    else:
        known = ", ".join(recipe_names())
        raise click.BadParameter(f"{value!r} is no file and no recipe; recipes: {known}")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise click.BadParameter(f"{value} uses YAML aliases (*name): write the values out")
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise click.BadParameter(f"{value} is not valid YAML: {problem}") from error
    if not isinstance(entries, dict):
        raise click.BadParameter(f"{value} must hold `option: value` lines")
    known_options = {p.name for p in ctx.command.params} - {"config"}
    settings: dict[str, object] = {
        str(k).replace("-", "_"): _as_typed(k, v) for k, v in entries.items()
    }
    if "knows" in settings:
        settings["knows"] = [settings["knows"]]
    unknown = sorted(set(settings) - known_options)
    if unknown:
        raise click.BadParameter(
            f"{value} sets {', '.join(unknown)}, which this command does not know; "
            f"options: {', '.join(sorted(o for o in known_options if o))}"
        )
    ctx.default_map = {**(ctx.default_map or {}), **settings}
    return value


def _as_typed(name: object, value: object) -> str:
    """A YAML value as one would type it, so that the option's own parser judges it."""
    if isinstance(value, list):
        return ",".join(str(v) for v in value)
    if value is None or isinstance(value, dict):
        raise click.BadParameter(f"{name} has no single value: write `{name}: VALUE`")
    return str(value)


config = _option(
    "--config",
    is_eager=True,
    expose_value=False,
    callback=_load_config,
    metavar="FILE|RECIPE",
    help=(
        "YAML file of `option: value` lines (names as here), or a recipe of published settings: "
        + ", ".join(recipe_names())
        + ". The command line wins."
    ),
)

data = _stack(
    [
        _option(
            "--data",
            default="digits",
            metavar="digits|FOLDER",
            help="Bundled 8x8 digits (test split), or FOLDER/CLASS/image files.",
        ),
        _option(
            "--classifier",
            default="digits",
            metavar="digits|digits-adversarial|ARCH:FILE",
            help="Bundled classifier (trained plainly, or adversarially), or architecture and "
            "safetensors file, e.g. resnet56:FILE, or wrn-28-10:FILE as RobustBench has it.",
        ),
        _option(
            "--image-size",
            type=click.IntRange(1),
            default=None,
            help="Resize and centre-crop images of a folder to this size.",
        ),
        _option(
            "--images",
            type=click.IntRange(1),
            default=None,
            help="How many images, classes balanced (all, if omitted).",
        ),
    ]
)

purifier = _stack(
    [
        _option(
            "--denoiser",
            default="digits",
            metavar="digits|digits-addt|digits-control|FOLDER|none",
            help="Bundled diffusion model (plain, fine-tuned by ADDT, fine-tuned plainly), a "
            "folder that diffusers saved (safetensors), or none for the undefended classifier.",
        ),
        _option(
            "--sampler",
            default="ddpm",
            type=click.Choice(["ddpm", "ddpm-large", "ddim", "sde", "ode", "ode-heun", "edm"]),
            help="Reverse rule: ancestral (small or large variance), implicit, Euler-Maruyama on "
            "the VP-SDE (DiffPure), probability-flow ODE; edm for models trained with EDM.",
        ),
        _option("--eta", default=0.0, type=float, help="Of ddim: 0 deterministic, 1 ancestral."),
        _option(
            "--churn",
            default=0.0,
            type=click.FloatRange(0.0),
            help="Of edm: S_churn (ADDT: 6, between noise levels 0.01 and 0.46, noise 1.007).",
        ),
        _option("--s-min", default=0.01, type=float, help="Of edm with churn: lowest noise level."),
        _option("--s-max", default=0.46, type=float, help="Of edm with churn: highest one."),
        _option("--s-noise", default=1.007, type=float, help="Of edm with churn: its scale."),
        _option(
            "--t-star",
            default=0.1,
            type=Number(),
            help="How far to noise, as a fraction of the chain; for edm the noise level (ADDT: "
            "0.5).",
        ),
        _option(
            "--steps",
            default=None,
            type=click.IntRange(1),
            help="Reverse steps a round (every index, if omitted).",
        ),
        _option("--rounds", default=1, type=click.IntRange(1), help="Purifications in sequence."),
        _option(
            "--convention",
            default="diffpure",
            type=click.Choice(["diffpure", "addt", "adbm"]),
            help="Which published index arithmetic to follow.",
        ),
        _option(
            "--betas",
            default=None,
            type=Betas(),
            metavar="FIRST:LAST",
            help="Linear betas in place of those of the denoiser's own schedule, with as many "
            "steps (ADBM: 1e-6:0.02).",
        ),
        _option(
            "--clip-x0/--no-clip-x0",
            default=False,
            help="Clamp every estimate of the clean image (zeroes gradients where it saturates).",
        ),
        _option("--clamp/--no-clamp", default=False, help="Clamp the purified image to [0, 1]."),
    ]
)

gradient = _stack(
    [
        _option(
            "--backprop",
            default="checkpoint",
            metavar="NAME",
            help="How gradients are made: checkpoint (exact, bounded memory), full (exact, plain "
            "autograd), straight (BPDA), surrogate:STEPS, adjoint, blind.",
        ),
        _option(
            "--memory-budget",
            default=None,
            type=Number(least=0.0),
            help="MiB that gradients may take: decides the rows run at once and the steps whose "
            "graphs are kept (default: 1024, on a GPU half of what is free).",
        ),
    ]
)

attack = _stack(
    [
        _option(
            "--attack",
            default="pgd",
            type=click.Choice(list(ATTACKS)),
            help="pgd is ADDT's (20 steps, EoT 10), mi- with momentum; "
            "apgd finds its step sizes; fab looks for the smallest change; bpda and "
            "transfer attack something simpler; diffattack and full-intermediate also disturb "
            "the purifier's steps (-published: as in the papers); "
            "diffhammer follows the draws that can be won; square, spsa "
            "and rays see no gradient; stadv bends, recolor recolours, ppgd and lpa "
            "keep the looks, low-frequency smooths; autoattack-stochastic is the ensemble for "
            "random defences, -fixed that of ADDT's authors, -rand and plain the published ones; "
            "strongest is a battery within --calls. The options below change what the attack has.",
        ),
        _option(
            "--ball",
            default=None,
            type=click.Choice(["linf", "l2", "l1", "flow", "perceptual"]),
            help="What bounds the change: a norm, how far pixels move, or the distance of a "
            "network's features (default: the attack's own: flow for stadv, perceptual for ppgd "
            "and lpa, else linf).",
        ),
        _option(
            "--eps",
            default=None,
            type=Number(),
            help="Radius for images in [0, 1] (default: 8/255 for linf, 0.5 for l2, 12 for l1, "
            "0.05 for flow, 0.5 for perceptual).",
        ),
        _option(
            "--perceptual-net",
            default=None,
            metavar="CLASSIFIER|alexnet:FILE|vgg16:FILE",
            help="Of the perceptual ball: the network that compares (default: the classifier); "
            "alexnet:FILE,LINEAR takes LPIPS' own weights (safetensors), whose root it bounds.",
        ),
        _option(
            "--attack-steps",
            default=None,
            type=click.IntRange(1),
            help="Iterations (square, rays: queries).",
        ),
        _option(
            "--step-size",
            default=None,
            type=Number(),
            help="Of pgd: size of one iteration (default: eps/4 for linf, eps/5 for l2).",
        ),
        _option("--eot", default=None, type=click.IntRange(1), help="Noise draws an iteration."),
        _option(
            "--average",
            default=None,
            type=click.Choice(["gradients", "logits"]),
            help="What EoT averages (default: gradients).",
        ),
        _option(
            "--loss",
            default=None,
            type=click.Choice(["ce", "margin", "dlr"]),
            help="What pgd and apgd raise (default: ce).",
        ),
        _option(
            "--random-start/--no-random-start",
            default=None,
            help="Begin anywhere in the ball (pgd: no, apgd: on its edge).",
        ),
        _option(
            "--start",
            default=None,
            type=click.Choice(["transfer", "bpda", "score", "score-along"]),
            help="Begin where another attack ends: PGD-20 on the bare classifier, PGD-20 past the "
            "purifier (kept where 150 draws confirm it), one step down or up the diffusion "
            "model's score.",
        ),
        _option("--restarts", default=None, type=click.IntRange(1), help="Of apgd and fab."),
        _option(
            "--targets", default=None, type=click.IntRange(1), help="Classes apgd-t and fab try."
        ),
        _option(
            "--target",
            default=None,
            type=click.Choice(["runner_up", "least_likely"]),
            help="Of pgd: aim at a class instead of away from the label.",
        ),
        _option(
            "--queries",
            default=None,
            type=click.IntRange(1),
            help="Of autoattack and -stochastic: Square's (square itself: --attack-steps).",
        ),
        _option(
            "--calls",
            default=None,
            type=click.IntRange(1),
            help="Of strongest: network calls an image (default: 2000).",
        ),
        _option(
            "--chunk",
            default=None,
            type=click.IntRange(1),
            help="Most rows a forward pass (default: what work and memory of a row suggest).",
        ),
        _option(
            "--knows",
            default=("none",),
            multiple=True,
            metavar="none|forward|reverse|forward,reverse",
            help="Noise that the attacker knows and the judge uses.",
        ),
        _option(
            "--pool",
            default=1,
            type=click.IntRange(1),
            help="Fixed draws an image has of the known noise; the attacker knows all of them, "
            "not which comes (DW-semi-128: 128).",
        ),
        _option(
            "--mix",
            default=0.0,
            type=click.FloatRange(0.0, 1.0),
            help="Fresh share of the known noise: 0 is DW-box, 1 the ordinary white-box.",
        ),
    ]
)

common = _stack(
    [
        _option("--seed", default=0, type=int, help="Of all randomness."),
        _option("--device", default="cpu", help="cpu, cuda, cuda:1, mps."),
    ]
)
