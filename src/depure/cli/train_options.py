"""The options of `depure train`: each group is a decorator."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import get_args

import click
import yaml

from depure.cli.options import Command, _option, _stack
from depure.cli.values import Number
from depure.training.addt import Accumulate, Perturbation
from depure.training.guide import Guide
from depure.training.rbgm import Scope

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
                    help="Bundled digits (train split); FOLDER/CLASS/image files; or a folder "
                    "with CIFAR-10 or CIFAR-100, binary or as torchvision keeps them."),
            _option("--image-size", type=click.IntRange(1), default=None,
                    help="Resize and centre-crop images of a folder to this."),
            _option("--channels", type=click.Choice(["1", "3"]), default="3",
                    help="Of a folder's images: 3 colour, 1 grey.",
                    callback=lambda ctx, param, value: int(value)),
            _option("--images", type=click.IntRange(1), default=None,
                    help="Train on so many, classes balanced (all, if omitted)."),
            _option("--updates", default=updates, type=click.IntRange(1), help="Optimiser steps."),
            _option("--batch", default=64, type=click.IntRange(1),
                    help="Images an update, over all processes."),
            _option("--lr", default=lr, type=float, help="Learning rate of AdamW."),
            _option("--rate", default=rate, type=click.Choice(["constant", "cosine"]),
                    help="cosine climbs for a tenth of the updates, then falls to 0."),
            _option("--beta1", default=0.9, type=float, help="Of AdamW."),
            _option("--beta2", default=0.999, type=float, help="Of AdamW."),
            _option("--weight-decay", default=0.0, type=float, help="Of AdamW."),
            _option("--max-decay", default=0.999, type=float,
                    help="Share that the average of the weights keeps an update; 0: no average."),
            _option("--dropout", default=None, type=float,
                    help="Probability in every dropout layer (as the network has it, if omitted)."),
            _option("--shift", default=0, type=click.IntRange(0),
                    help="Augment: move images by up to so many pixels."),
            _option("--flip/--no-flip", default=False, help="Augment: mirror half of the images."),
            _option("--save-every", default=200, type=click.IntRange(1),
                    help="Updates between two checkpoints."),
            _option("--check-images", default=0, type=click.IntRange(0),
                    help="Hold so many training images out, and measure accuracy on them, clean "
                    "and attacked, while training; the best weights go to OUT/best."),
            _option("--check-every", default=500, type=click.IntRange(1),
                    help="Updates between two such checks, and between two sheets of samples."),
            _option("--check-eps", default="8/255", type=Number(), help="L-inf eps of the checks."),
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
        _option("--eps", default="8/255", type=Number(), help="Radius, images in [0, 1]."),
        _option("--attack-steps", default=10, type=click.IntRange(1), help="Of the inner attack."),
        _option("--step-size", default=None, type=Number(),
                help="Of the inner attack (default: eps/4 for linf, eps/5 for l2)."),
        _option("--beta", default=6.0, type=float, help="Of TRADES: weight of the penalty."),
    ]
)  # fmt: skip

unet_to_train = _stack(
    [
        _option("--widths", default="32,64", help="Features of each resolution, from the full."),
        _option("--layers", default=1, type=click.IntRange(1), help="Blocks a resolution."),
        _option("--attention", default="", metavar="16,8",
                help="Resolutions that attend, besides the lowest."),
    ]
)  # fmt: skip

denoiser_to_tune = _option(
    "--denoiser", default="digits", metavar="digits|FOLDER",
    help="Where training starts: a bundled model, or a folder that diffusers saved.",
)  # fmt: skip

family = _stack(
    [
        _option("--family", default="ddpm", type=click.Choice(["ddpm", "vpsde", "edm"]),
                help="Discrete times (DDPM, DDIM), the continuous VP-SDE, or EDM."),
        _option("--t-max", default=1.0, type=Number(),
                help="Train only this share of the chain, from the clean end: a small network "
                "that only purifies can spend itself there."),
        _option("--p-mean", default=-1.2, type=float, help="EDM: mean of log sigma."),
        _option("--p-std", default=1.2, type=float, help="EDM: deviation of log sigma."),
    ]
)  # fmt: skip


def guide(*, checks_only: bool) -> Callable[[Command], Command]:
    """The classifier behind the purifier."""
    use = "of --check-images" if checks_only else "that guides, and of --check-images"
    return _option(
        "--classifier", default="digits", metavar="digits|ARCH:FILE",
        help=f"The classifier {use}, as in `depure evaluate`.",
    )  # fmt: skip


perturbation = _stack(
    [
        _option("--perturbation", default="rbgm", type=click.Choice(list(get_args(Perturbation))),
                help="rbgm: ADDT. pgd: ADDT without RBGM (the classifier-guided adversarial "
                "training of its earlier form). none: plain fine-tuning, the control."),
        _option("--iterations", default=5, type=click.IntRange(1), help="Of CGPO."),
        _option("--accumulate", default="sum", type=click.Choice(list(get_args(Accumulate))),
                help="Rank the sum of CGPO's gradients, or the last."),
        _option("--guide", default="ce", type=click.Choice(list(get_args(Guide))),
                help="ce: the classifier's loss. eps: the denoiser's own error."),
        _option("--unit", default=0.03, type=float,
                help="lambda_unit: adversarial noise in terms of the image; the paper's 0.03 is "
                "half of its eps 8/255 in [-1, 1]."),
        _option("--high", default=0.3, type=float, help="lambda_max."),
        _option("--scope", default="channel", type=click.Choice(list(get_args(Scope))),
                help="Where RBGM ranks."),
        _option("--eps", default="8/255", type=Number(), help="Of pgd: radius."),
        _option("--step-size", default=None, type=Number(), help="Of pgd (default: eps/2)."),
    ]
)  # fmt: skip
