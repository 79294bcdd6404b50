"""From words on the command line to parts of the library: the one place that maps names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import torch
from torch import nn

from depure.cli.values import Count, ends_of_betas, shown, told
from depure.data import Images, cifar, digits, image_folder, is_cifar, match_classes, read_classes
from depure.data.classes import Classes
from depure.defences import Defended
from depure.diffusion import (
    DDIM,
    DDPM,
    VPSDE,
    Backprop,
    Blind,
    Checkpoint,
    Denoiser,
    EulerMaruyama,
    Full,
    Heun,
    ProbabilityFlow,
    Sampler,
    Straight,
    Surrogate,
    VPDiscrete,
)
from depure.purifiers import DiffPure, Identity, Purifier
from depure.weights import first_line
from depure.zoo import load_classifier, load_denoiser

Loaded = TypeVar("Loaded")
CONTINUOUS = ("sde", "ode", "ode-heun")  # along the VP-SDE


def named(option: str, load: Callable[[], Loaded]) -> Loaded:
    """What `load` gives; an error names the option that asked for it.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        return load()
    except OSError as error:  # those of the system itself name what they say last
        raise ValueError(f"{option}: {told(error)}") from error
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def build_images(options: dict[str, Any], channels: int | None = None) -> Images:
    """The images asked for: class-balanced and the same for every run of that number."""
    return _labelled(options, "test", channels or 3)


def build_training_images(options: dict[str, Any]) -> Images:
    """The images to train on, class-balanced where they are limited."""
    images = _labelled(options, "train", options["channels"])
    if options["data"] != "digits":
        _say_once(f"data: {images!r}")
    return images


def _labelled(options: dict[str, Any], split: Literal["train", "test"], channels: int) -> Images:
    """Images of `--data` with the labels that `--classes`, if given, says."""
    file = options.get("classes")
    classes = None if file is None else named("--classes", lambda: read_classes(file))
    where, size, limit = options["data"], options["image_size"], options["images"]
    return named("--data", lambda: load_images(where, split, size, channels, limit, classes))


def load_images(
    name: str,
    split: Literal["train", "test"],
    size: int | None,
    channels: int,
    limit: int | None,
    classes: Classes | None = None,
) -> Images:
    """The bundled digits, CIFAR as it lies on disk, or a folder of images."""
    if name != "digits" and not is_cifar(Path(name)):
        return image_folder(
            Path(name), size=size, channels=channels, limit=limit, classes=classes, split=split
        )
    found = _published(name, split, size, channels, limit)
    return found if classes is None else match_classes(found, classes)


def _published(
    name: str, split: Literal["train", "test"], size: int | None, channels: int, limit: int | None
) -> Images:
    if name == "digits":
        found = digits(split)
        return found if limit is None else found.sample(limit)
    if size not in (None, 32) or channels != 3:
        raise ValueError(
            f"{name} holds CIFAR, 3x32x32; got image size {size} and {channels} channels"
        )
    return cifar(Path(name), split, limit=limit)


def numbered(images: Images, outputs: int, *, given: bool) -> Images:
    """The images with the labels of a classifier of so many outputs; says what it had to assume.

    Args:
        images: as they were loaded.
        outputs: how many classes the classifier tells apart.
        given: whether `--classes` named them, so that the images are numbered already.

    Raises:
        ValueError: the classes do not fit.
    """
    if given and len(images.classes) != outputs:
        raise ValueError(
            f"--classes names {len(images.classes)} classes, but the classifier tells {outputs} "
            f"apart: name every class of the classifier, in the order of its outputs"
        )
    if not given:
        images = named("--data", lambda: match_classes(images, outputs))
    if len(images.classes) > outputs:
        raise ValueError(
            f"the data have {len(images.classes)} classes, but the classifier tells only "
            f"{outputs} apart: choose a classifier trained on these classes"
        )
    if images.assumed:
        _say_once(f"Warning: {images.assumed}")
    return images


def _say_once(text: str) -> None:
    """On standard error, once a command, however many models it builds."""
    context = click.get_current_context(silent=True)
    said = set() if context is None else context.meta.setdefault("depure.said", set())
    if text not in said:
        said.add(text)
        click.echo(text, err=True)


def build_backprop(options: dict[str, Any], option: str = "--backprop") -> Backprop:
    """A loop driver from its name, which was given to an option.

    Raises:
        ValueError: for an unknown name or a bad number behind the colon.
    """
    name, _, number = str(options["backprop"]).partition(":")
    if name == "checkpoint":
        return Checkpoint(memory_limit(options))
    if name == "surrogate" and number:
        return Surrogate(_steps(number, option))
    if name == "adjoint":
        from depure.diffusion.backprop import Adjoint

        return Adjoint()
    plain: dict[str, Backprop] = {"full": Full(), "straight": Straight(), "blind": Blind()}
    if name not in plain or number:
        raise ValueError(
            f"{option} must be checkpoint, full, straight, surrogate:STEPS, adjoint or blind; "
            f"got {shown(options['backprop'])}"
        )
    return plain[name]


def _steps(number: str, option: str) -> int:
    try:
        return Count(1, 100_000).parse(number)
    except ValueError as error:
        raise ValueError(f"{option} must be surrogate:STEPS; {shown(number)} is {error}") from None


def memory_limit(options: dict[str, Any]) -> int | None:
    """Bytes that gradients may take; None if it is not said."""
    budget = options["memory_limit"]
    return None if budget is None else int(budget * 2**20)


def build_sampler(options: dict[str, Any]) -> Sampler:
    """A reverse rule from its name."""
    name, clip = options["sampler"], options["clip_x0"]
    if clip and name in (*CONTINUOUS, "edm"):
        raise ValueError(f"--clip-x0 applies to ddpm and ddim; the sampler is {name}")
    if options["eta"] and name != "ddim":
        raise ValueError(f"--eta applies to ddim; the sampler is {name}")
    if options["churn"] and name != "edm":
        raise ValueError(f"--churn applies to edm; the sampler is {name}")
    if name == "edm":
        return _heun(options)
    return {
        "ddpm": DDPM("small", clip),
        "ddpm-large": DDPM("large", clip),
        "ddim": DDIM(options["eta"], clip),
        "sde": EulerMaruyama(denoise_last=options["convention"] == "addt"),
        "ode": ProbabilityFlow("euler"),
        "ode-heun": ProbabilityFlow("heun"),
    }[name]


def _heun(options: dict[str, Any]) -> Heun:
    if not options["churn"]:
        return Heun()
    return Heun.churned(
        options["churn"], options["steps"] or 18, s_min=options["s_min"], s_max=options["s_max"],
        s_noise=options["s_noise"],
    )  # fmt: skip


def build_purifier(options: dict[str, Any]) -> Purifier:
    """The defence, or `Identity` for the denoiser "none"."""
    check_device(options["device"])
    if options["denoiser"] == "none":
        return Identity()
    denoiser = named("--denoiser", lambda: load_denoiser(options["denoiser"]))
    if options["betas"] is not None:
        denoiser = _with_betas(denoiser, options["betas"], options["sampler"])
    if options["sampler"] in CONTINUOUS:
        denoiser = _continuous(denoiser, options["sampler"])
    return DiffPure(
        denoiser,
        build_sampler(options),
        t_star=options["t_star"],
        steps=options["steps"],
        rounds=options["rounds"],
        backprop=build_backprop(options) if "backprop" in options else None,
        convention=options["convention"],
        clamp=options["clamp"],
    ).to(options["device"])


def _with_betas(denoiser: Denoiser, betas: str, sampler: str) -> Denoiser:
    """The network on a linear schedule of its own length."""
    trained = denoiser.schedule
    if trained.indices is None or sampler in CONTINUOUS:
        raise ValueError(
            f"--betas replaces the betas of a discrete schedule (--sampler ddpm, ddpm-large or "
            f"ddim); got {trained!r} with --sampler {sampler}: leave --betas out"
        )
    schedule = VPDiscrete.linear(trained.indices, *ends_of_betas(betas))
    return Denoiser(denoiser.network, schedule, denoiser.prediction)


def _continuous(denoiser: Denoiser, sampler: str) -> Denoiser:
    """The network along the VP-SDE, if the indices it was trained on are that SDE's steps."""
    trained, sde = denoiser.schedule, VPSDE()
    steps = sde.discrete()
    if trained.indices != len(steps):
        raise ValueError(f"--sampler {sampler} needs a network of 1000 steps; got {trained!r}")
    if max(abs(trained.alpha(i) ** 2 - a) for i, a in enumerate(steps.alpha_bar)) > 1e-3:
        raise ValueError(
            f"--sampler {sampler} runs the VP-SDE of betas 0.1 to 20, but the network was trained "
            f"on {trained!r}: use ddpm or ddim"
        )
    return Denoiser(denoiser.network, sde, denoiser.prediction)


def channels_of(purifier: Purifier) -> int | None:
    """Image channels that the purifier's network takes, where it says so."""
    entry = purifier.entry
    return None if entry is None else entry.denoiser.channels


def build_model(options: dict[str, Any]) -> tuple[Defended, Images]:
    """The defended classifier and the images, known to fit each other.

    Raises:
        ValueError: if the classifier or denoiser does not take the images.
    """
    check_device(options["device"])
    purifier = build_purifier(options)
    classifier = named("--classifier", lambda: load_classifier(options["classifier"]))
    classifier.to(options["device"])
    channels = channels_of(purifier) or getattr(classifier, "channels", None)
    images = build_images(options, channels)
    model = Defended(purifier, classifier)
    outputs = _check_fit(model, images, options["device"])
    images = numbered(images, outputs, given=options.get("classes") is not None)
    if options["data"] != "digits":
        _say_once(f"data: {images!r}")
    return model, images


def check_device(device: str) -> None:
    """Refuse a device that is not there, or holds no numbers.

    Raises:
        ValueError: names it.
    """
    try:
        if torch.empty(1, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except Exception as error:  # every backend has its own kind
        reason = first_line(error) if isinstance(error, RuntimeError) else "no such backend"
        raise ValueError(
            f"device {shown(device)} is not available ({reason}): choose another --device"
        ) from error


def _check_fit(model: Defended, images: Images, device: str) -> int:
    """Run one image through, so that misfits are told before the work begins: how many logits."""
    one = images.x[:1].to(device)
    shape = "x".join(str(n) for n in one.shape[1:])
    channels = channels_of(model.purifier)
    if channels is not None and channels != one.shape[1]:
        raise ValueError(f"the denoiser takes {channels}-channel images; the data are {shape}")
    check_size(model.purifier, one)
    parts: list[tuple[str, nn.Module]] = [("classifier", model.classifier), ("defence", model)]
    for name, part in parts:
        try:
            with torch.no_grad():
                logits = part(one)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"the {name} does not take images of {shape} ({reason}): choose models made for "
                f"these images, or --image-size"
            ) from error
    return int(logits.shape[1])


def check_size(purifier: Purifier, x: torch.Tensor) -> None:
    """Raise ValueError if the denoiser says that it was trained on images of another size."""
    pair = None if purifier.entry is None else purifier.entry.denoiser.size
    if pair is not None and pair != tuple(x.shape[-2:]):
        got, trained = ("x".join(str(n) for n in s) for s in (x.shape[-2:], pair))
        raise ValueError(
            f"the denoiser was trained on {trained} images; got {got}: pass --image-size, or "
            f"another --denoiser"
        )
