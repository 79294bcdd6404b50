"""The options that several commands share: each group is a decorator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from depure.cli.config import given_with_recipe
from depure.cli.values import SEED, Betas, Count, Number

Command = Callable[..., Any]

ATTACKS = (
    "pgd", "pgd200+eot20", "mi-pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "bpda", "transfer",
    "diffattack", "diffattack-published", "full-intermediate", "full-intermediate-published",
    "diffhammer", "square", "spsa", "rays", "stadv", "recolor", "ppgd", "lpa", "low-frequency",
    "autoattack", "autoattack-rand", "autoattack-stochastic", "autoattack-fixed", "strongest",
)  # fmt: skip


# Of an L-inf ball, and of any: the library knows what is too large for each.
PIXELS = Number(0, 1, above=True, hint="; did you mean 8/255?")
EPS = Number(0, above=True)


def _stack(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    settings.setdefault("show_default", True)
    return click.option(*names, **settings)


classes = _option(
    "--classes",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="The classifier's class names in the order of its outputs, to which the class folders are "
    "matched: one a line, or JSON (a list, index and name, ImageNet's). Without it, folders named "
    "by whole numbers are class indices, wnids are ImageNet's where there are 1000 classes, "
    "CIFAR's names are CIFAR's; others are taken in sorted order, with a warning.",
)

data = _stack(
    [
        _option(
            "--data",
            default="digits",
            callback=given_with_recipe,
            metavar="digits|FOLDER",
            help="Bundled 8x8 digits (test split); a folder with CIFAR; or FOLDER/CLASS/image "
            "files. Of FOLDER/train, val and test, test is taken, else val.",
        ),
        classes,
        _option(
            "--classifier",
            default="digits",
            callback=given_with_recipe,
            metavar="digits|digits-adversarial|ARCH:FILE",
            help="Bundled classifier (trained plainly, or adversarially), or architecture and "
            "safetensors file, e.g. resnet56:FILE, or wrn-28-10:FILE as RobustBench has it.",
        ),
        _option(
            "--image-size",
            type=Count(1, 8192),
            default=None,
            help="Resize and centre-crop images of a folder to this size.",
        ),
        _option(
            "--images",
            type=Count(1, 10**9),
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
            callback=given_with_recipe,
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
        _option(
            "--eta", default=0.0, type=Number(0, 1), help="Of ddim: 0 deterministic, 1 ancestral."
        ),
        _option(
            "--churn",
            default=0.0,
            type=Number(0, 1e3),
            help="Of edm: S_churn (ADDT: 6, between noise levels 0.01 and 0.46, noise 1.007).",
        ),
        _option(
            "--s-min", default=0.01, type=Number(0), help="Of edm with churn: lowest noise level."
        ),
        _option("--s-max", default=0.46, type=Number(0), help="Of edm with churn: highest one."),
        _option(
            "--s-noise", default=1.007, type=Number(0, 10), help="Of edm with churn: its scale."
        ),
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
            type=Count(),
            help="Reverse steps a round (every index, if omitted).",
        ),
        _option("--rounds", default=1, type=Count(), help="Purifications in sequence."),
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
            "--memory-limit",
            default=None,
            type=Number(1, 2**30),
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
            type=Count(),
            help="Iterations (square, rays: queries).",
        ),
        _option(
            "--step-size",
            default=None,
            type=EPS,
            help="Of pgd: size of one iteration (default: eps/4 for linf, eps/5 for l2).",
        ),
        _option("--eot", default=None, type=Count(), help="Noise draws an iteration."),
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
        _option("--restarts", default=None, type=Count(), help="Of apgd and fab."),
        _option("--targets", default=None, type=Count(), help="Classes apgd-t and fab try."),
        _option(
            "--target",
            default=None,
            type=click.Choice(["runner_up", "least_likely"]),
            help="Of pgd: aim at a class instead of away from the label.",
        ),
        _option(
            "--queries",
            default=None,
            type=Count(),
            help="Of autoattack and -stochastic: Square's (square itself: --attack-steps).",
        ),
        _option(
            "--calls",
            default=None,
            type=Count(1, 10**9),
            help="Of strongest: network calls an image (default: 2000).",
        ),
        _option(
            "--chunk",
            default=None,
            type=Count(),
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
            type=Count(),
            help="Fixed draws an image has of the known noise; the attacker knows all of them, "
            "not which comes (DW-semi-128: 128).",
        ),
        _option(
            "--mix",
            default=0.0,
            type=Number(0, 1),
            help="Fresh share of the known noise: 0 is DW-box, 1 the ordinary white-box.",
        ),
    ]
)

common = _stack(
    [
        _option("--seed", default=0, type=Count(*SEED), help="Of all randomness."),
        _option("--device", default="cpu", help="cpu, cuda, cuda:1, mps."),
    ]
)
