"""The options of `depure train`: each group is a decorator."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import get_args

import click
import yaml

from depure.cli.config import given_with_recipe
from depure.cli.options import EPS, PIXELS, Command, _option, _stack, classes
from depure.cli.values import Count, Number, Several
from depure.training.objectives.addt import Accumulate
from depure.training.objectives.guide import GuideLoss
from depure.training.objectives.rbgm import RankWithin

PRESETS = ("digits", "cifar10-small", "paper-cifar10")


def _load_preset(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Make the preset's entries for this command its defaults; --config and options win."""
    if value is None:
        return
    text = (files("depure.recipes") / "presets" / f"{value}.yaml").read_text()
    entries = yaml.safe_load(text)[str(ctx.info_name)]
    settings = {str(k).replace("-", "_"): str(v) for k, v in entries.items()}
    ctx.default_map = {**settings, **(ctx.default_map or {})}


preset = _option(
    "--preset",
    type=click.Choice(PRESETS),
    is_eager=True,
    expose_value=False,
    callback=_load_preset,
    show_default=False,
    help="Settings that were tried together: bundled digits in minutes, CIFAR-10 on a CPU, or "
    "the paper's (for GPUs). Other options win over it.",
)


def training(*, updates: int, lr: float, rate: str, out: str) -> Callable[[Command], Command]:
    """Data, optimiser, watch and folder, with the defaults of one command."""
    return _stack(
        [
            _option("--data", default="digits", metavar="digits|FOLDER",
                    callback=given_with_recipe,
                    help="Bundled digits (train split); FOLDER/CLASS/image files (of "
                    "FOLDER/train, val and test, train is taken); or a folder with CIFAR-10 or "
                    "CIFAR-100, binary or as torchvision keeps them."),
            classes,
            _option("--image-size", type=Count(1, 8192), default=None,
                    help="Resize and centre-crop images of a folder to this."),
            _option("--channels", type=click.Choice(["1", "3"]), default="3",
                    help="Of a folder's images: 3 colour, 1 grey.",
                    callback=lambda ctx, param, value: int(value)),
            _option("--images", type=Count(1, 10**9), default=None,
                    help="Train on so many, classes balanced (all, if omitted)."),
            _option("--updates", default=updates, type=Count(1, 10**9), help="Optimiser steps."),
            _option("--batch", default=64, type=Count(),
                    help="Images an update, over all processes."),
            _option("--lr", default=lr, type=Number(0, 1e30, above=True),
                    help="Learning rate of AdamW."),
            _option("--rate", default=rate, type=click.Choice(["constant", "cosine"]),
                    help="cosine climbs for a tenth of the updates, then falls to 0."),
            _option("--beta1", default=0.9, type=Number(0, 1, below=True), help="Of AdamW."),
            _option("--beta2", default=0.999, type=Number(0, 1, below=True), help="Of AdamW."),
            _option("--weight-decay", default=0.0, type=Number(0, 1e3), help="Of AdamW."),
            _option("--max-decay", default=0.999, type=Number(0, 1, below=True),
                    help="Share that the average of the weights keeps an update; 0: no average."),
            _option("--dropout", default=None, type=Number(0, 1, below=True),
                    help="Probability in every dropout layer (as the network has it, if omitted)."),
            _option("--shift", default=0, type=Count(0, 8192),
                    help="Augment: move images by up to so many pixels."),
            _option("--flip/--no-flip", default=False, help="Augment: mirror half of the images."),
            _option("--save-every", default=200, type=Count(1, 10**9),
                    help="Updates between two checkpoints."),
            _option("--check-images", default=0, type=Count(0),
                    help="Hold so many training images out, and measure accuracy on them, clean "
                    "and attacked, while training; the best weights go to OUT/best."),
            _option("--check-every", default=500, type=Count(1, 10**9),
                    help="Updates between two such checks, and between two sheets of samples."),
            _option("--check-eps", default="8/255", type=PIXELS, help="L-inf eps of the checks."),
            _option("--tensorboard/--no-tensorboard", default=False,
                    help="Also log to OUT/tensorboard (needs the package tensorboard)."),
            _option("--precision", default="float32", type=click.Choice(["float32", "bf16"]),
                    help="bf16: mixed precision, faster on GPUs, less exact."),
            _option("--out", type=click.Path(path_type=Path), default=Path(out),
                    help="Folder for the model, its card, metrics.jsonl and samples; the same "
                    "command continues a stopped training."),
        ]
    )  # fmt: skip


classifier_to_train = _option(
    "--arch", default="small-cnn-32", metavar="small-cnn-WIDTH|resnetDEPTH|wrn-DEPTH-WIDTH",
    help="Architecture: a small network for any size, or for CIFAR a ResNet (resnet20, resnet56) "
    "or a wide one (wrn-28-10).",
)  # fmt: skip

inner_attack = _stack(
    [
        _option("--method", default="pgd-at", type=click.Choice(["pgd-at", "trades"]),
                help="Train on attacked images, or on clean ones with a penalty."),
        _option("--ball", default="linf", type=click.Choice(["linf", "l2"]), help="Norm."),
        _option("--eps", default="8/255", type=EPS, help="Radius, images in [0, 1]."),
        _option("--attack-steps", default=10, type=Count(), help="Of the inner attack."),
        _option("--step-size", default=None, type=EPS,
                help="Of the inner attack (default: eps/4 for linf, eps/5 for l2)."),
        _option("--beta", default=6.0, type=Number(0, 1e6),
                help="Of TRADES: weight of the penalty."),
    ]
)  # fmt: skip

unet_to_train = _stack(
    [
        _option("--widths", default="32,64", type=Several(Count(1, 4096), 12),
                help="Features of each resolution, from the full."),
        _option("--layers", default=1, type=Count(1, 64), help="Blocks a resolution."),
        _option("--attention", default="", metavar="16,8",
                type=Several(Count(1, 8192), 12, empty=True),
                help="Resolutions that attend, besides the lowest."),
    ]
)  # fmt: skip

denoiser_to_tune = _option(
    "--denoiser", default="digits", metavar="digits|FOLDER", callback=given_with_recipe,
    help="Where training starts: a bundled model, or a folder that diffusers saved.",
)  # fmt: skip

family = _stack(
    [
        _option("--family", default="ddpm", type=click.Choice(["ddpm", "vpsde", "edm"]),
                help="Discrete times (DDPM, DDIM), the continuous VP-SDE, or EDM."),
        _option("--t-max", default=1.0, type=Number(0, 1, above=True),
                help="Train only this share of the chain, from the clean end: a small network "
                "that only purifies can spend itself there."),
        _option("--p-mean", default=-1.2, type=Number(-20, 20), help="EDM: mean of log sigma."),
        _option("--p-std", default=1.2, type=Number(0, 20, above=True),
                help="EDM: deviation of log sigma."),
    ]
)  # fmt: skip


def guide(*, checks_only: bool) -> Callable[[Command], Command]:
    """The classifier behind the purifier."""
    use = "of --check-images" if checks_only else "that guides, and of --check-images"
    return _option(
        "--classifier", default="digits", metavar="digits|ARCH:FILE", callback=given_with_recipe,
        help=f"The classifier {use}, as in `depure evaluate`.",
    )  # fmt: skip


perturbation = _stack(
    [
        _option("--perturbation", default="rbgm", type=click.Choice(["rbgm", "pgd", "none"]),
                help="rbgm: ADDT. pgd: ADDT without RBGM (the classifier-guided adversarial "
                "training of its earlier form). none: plain fine-tuning, the control."),
        _option("--iterations", default=5, type=Count(), help="Of CGPO."),
        _option("--accumulate", default="sum", type=click.Choice(list(get_args(Accumulate))),
                help="Rank the sum of CGPO's gradients, or the last."),
        _option("--guide-loss", default="ce", type=click.Choice(list(get_args(GuideLoss))),
                help="ce: the classifier's loss. eps: the denoiser's own error."),
        _option("--lambda-unit", default=0.03, type=Number(0, 1e3),
                help="Adversarial noise in terms of the image; the paper's 0.03 is "
                "half of its eps 8/255 in [-1, 1]."),
        _option("--lambda-max", default=0.3, type=Number(0, 1), help="Largest share of it."),
        _option("--rank-within", default="channel", type=click.Choice(list(get_args(RankWithin))),
                help="Where RBGM ranks."),
        _option("--eps", default="8/255", type=PIXELS, help="Of pgd: radius."),
        _option("--step-size", default=None, type=EPS, help="Of pgd (default: eps/2)."),
    ]
)  # fmt: skip
