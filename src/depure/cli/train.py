"""`depure train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from depure.cli import train_options as opts
from depure.cli.build import build_training_images, check_device, named
from depure.cli.checks import classifier_measure, denoiser_measure, sample_sheet
from depure.cli.config import config
from depure.cli.monitor import Measure, Monitor
from depure.cli.options import common
from depure.cli.show import console, plain_warnings, progress_bar
from depure.cli.train_folder import RECORD, Folder
from depure.cli.train_parts import check_start, known_to, process_of
from depure.data import Images
from depure.diffusion import Denoiser, Schedule, VPDiscrete
from depure.files import locked
from depure.threat import L2, Linf
from depure.training import (
    ADDT,
    TRADES,
    Augment,
    CrossEntropy,
    Denoising,
    Flip,
    Objective,
    PGDTraining,
    Plan,
    Shift,
    accuracy,
    description,
    remove_checkpoint,
    seeded,
    train,
)
from depure.weights import fingerprint
from depure.zoo import load_classifier, load_denoiser
from depure.zoo.build import new_classifier, new_unet
from depure.zoo.save import save_classifier, save_denoiser


@click.group("train", short_help="Train diffusion models that purify better, and classifiers.")
def command() -> None:
    """Train classifiers, diffusion models, and diffusion models that purify better.

    \b
    From nothing to a defended classifier, on the bundled digits, in minutes:
      depure train classifier --preset digits --out models/classifier
      depure train diffusion  --preset digits --out models/diffusion
      depure train addt --preset digits --denoiser models/diffusion \\
             --classifier small-cnn:models/classifier/classifier.safetensors --out models/addt
      depure evaluate --denoiser models/addt --steps 5 --eps 0.2 --images 64
    The rival defence:
      depure train adversarial --preset digits --out models/adversarial

    Killed at any moment, the same command continues and ends with the very same weights; when it
    has finished, it says so and does nothing. A folder that holds another training is refused.
    Many GPUs: accelerate launch -m depure train ...
    """


@command.command("classifier", short_help="Train a classifier (cross-entropy).")
@opts.preset
@config
@opts.training(updates=2000, lr=3e-3, rate="cosine", out="models/classifier")
@opts.classifier_to_train
@common
def classifier_command(**options: Any) -> None:
    """Train a classifier with cross-entropy and the usual augmentation."""
    _train_classifier(options, CrossEntropy())


@command.command("adversarial", short_help="Train a classifier adversarially (PGD-AT, TRADES).")
@opts.preset
@config
@opts.training(updates=2000, lr=3e-3, rate="cosine", out="models/adversarial")
@opts.classifier_to_train
@opts.inner_attack
@common
def adversarial_command(**options: Any) -> None:
    """Adversarial training of the classifier: what a purifier competes with.

    PGD-AT (Madry et al., 1706.06083) trains on attacked images; TRADES (Zhang et al., 1901.08573)
    on clean ones, with a penalty for predictions that change under attack.
    """
    ball = {"linf": Linf, "l2": L2}[options["ball"]](options["eps"])
    steps, size = options["attack_steps"], options["step_size"]
    objective: Objective = PGDTraining(ball, steps, size)
    if options["method"] == "trades":
        objective = TRADES(ball, options["beta"], steps, size)
    _train_classifier(options, objective)


def _train_classifier(options: dict[str, Any], objective: Objective) -> None:
    images, held = _data(options)
    if isinstance(objective, PGDTraining | TRADES):
        objective.ball.check_images(images.x)
    with seeded(options["seed"]):
        network = new_classifier(options["arch"], images.x.shape[1], len(images.classes))
    arch = "small-cnn" if options["arch"].startswith("small-cnn") else options["arch"]
    file = Path("classifier.safetensors")

    def save(network: nn.Module, folder: Path) -> list[Path]:
        return save_classifier(network, folder / file)

    checks = Checks()
    if len(held):
        measure = partial(classifier_measure, held=held, eps=options["check_eps"])
        checks = Checks(measure, record=_checks_record(options, held))
    trained = _run(options, network, objective, images, save, checks)
    if _main():
        if trained:
            found = accuracy(network, held if len(held) else images)
            where = "held-out" if len(held) else "training"
            console().print(f"accuracy on the {where} images: {100 * found:.1f} %")
        _say(f"use it with --classifier {arch}:{options['out'] / file}")


@command.command("diffusion", short_help="Train a diffusion model (DDPM, VP-SDE, EDM).")
@opts.preset
@config
@opts.training(updates=5000, lr=2e-3, rate="cosine", out="models/diffusion")
@opts.unet_to_train
@opts.family
@opts.guide(checks_only=True)
@common
def diffusion_command(**options: Any) -> None:
    """Train a diffusion model from nothing with the plain denoising loss."""
    images, held = _data(options)
    with seeded(options["seed"]):
        network = new_unet(
            images.x.shape[-1], images.x.shape[1], options["widths"],
            layers=options["layers"], attention=options["attention"],
            dropout=options["dropout"] or 0.0,
        )  # fmt: skip
    process, schedule = process_of(options, VPDiscrete.linear())
    _train_denoiser(options, network, Denoising(process), schedule, images, held)


@command.command("addt", short_help="Fine-tune a diffusion model adversarially (ADDT).")
@opts.preset
@config
@opts.training(updates=2000, lr=2e-4, rate="constant", out="models/addt")
@opts.denoiser_to_tune
@opts.family
@opts.guide(checks_only=False)
@opts.perturbation
@common
def addt_command(**options: Any) -> None:
    """Adversarial denoising diffusion training (Liu et al., ICLR 2025).

    Starts from a trained denoiser; the result is a folder for `--denoiser`:

    \b
      depure train addt --out models/addt
      depure evaluate --denoiser models/addt --steps 10 --eps 0.2

    `--perturbation none` is plain fine-tuning with the same settings, the control that every
    claim about ADDT needs.
    """
    images, held = _data(options)
    start = named("--denoiser", lambda: load_denoiser(options["denoiser"]))
    check_start(start, images)
    guide = _guide(options)
    plain = options["perturbation"] == "none"
    if (options["guide_loss"] == "ce" and not plain) or len(held):
        images, held = known_to(guide, images, held, options)
    process, schedule = process_of(options, start.schedule)
    objective: Objective = Denoising(process)
    if not plain:
        step = options["eps"] / 2 if options["step_size"] is None else options["step_size"]
        chosen = {name: options[name] for name in _ADDT.split()}
        objective = ADDT(process, guide.to(_device(options)), step=step, **chosen)
    _train_denoiser(options, start.network, objective, schedule, images, held)


def _train_denoiser(
    options: dict[str, Any],
    network: nn.Module,
    objective: Objective,
    schedule: Schedule,
    images: Images,
    held: Images,
) -> None:
    def purifier(network: nn.Module) -> Denoiser:
        return Denoiser(network, schedule, schedule.predictions[0])

    def save(network: nn.Module, folder: Path) -> list[Path]:
        return save_denoiser(network, schedule, folder)

    measure, record = None, {"every": options["check_every"]}
    if len(held):
        held = known_to(guide := _guide(options), images, held, options)[1]
        guide = guide.to(_device(options))
        measure = partial(
            denoiser_measure, wrap=purifier, guide=guide, held=held, eps=options["check_eps"]
        )
        record = _checks_record(options, held, guide)
    picture = partial(sample_sheet, wrap=purifier, images=images, t_max=options["t_max"])
    record["schedule"] = repr(schedule)
    _run(options, network, objective, images, save, Checks(measure, picture, record))
    if _main():
        _say(f"use it with --denoiser {options['out']}")


_ADDT = "perturbation iterations accumulate guide_loss lambda_unit lambda_max rank_within eps"


@dataclass(frozen=True)
class Checks:
    """What is looked at while training, and what decides its outcome, for the record."""

    measure: Measure | None = None
    picture: Callable[[nn.Module, Path], None] | None = None
    record: dict[str, Any] = field(default_factory=dict)


def _checks_record(
    options: dict[str, Any], held: Images, guide: nn.Module | None = None
) -> dict[str, Any]:
    return {
        "every": options["check_every"],
        "eps": options["check_eps"],
        "images": fingerprint({"x": held.x, "y": held.y, "index": held.index}),
        "classifier": fingerprint(guide.state_dict()) if guide else "itself",
    }


def _run(
    options: dict[str, Any],
    network: nn.Module,
    objective: Objective,
    images: Images,
    save: Callable[[nn.Module, Path], list[Path]],
    checks: Checks,
) -> bool:
    """Train under watch; write the last weights, the best ones if they are known, and a card.

    False if that was done before.
    """
    plan = Plan(
        options["updates"], options["batch"], options["lr"], options["rate"],
        betas=(options["beta1"], options["beta2"]), weight_decay=options["weight_decay"],
        dropout=options["dropout"], max_decay=options["max_decay"], seed=options["seed"],
        save_every=options["save_every"],
    )  # fmt: skip
    augment: tuple[Augment, ...] = (Shift(options["shift"]),) if options["shift"] else ()
    augment += (Flip(),) if options["flip"] else ()
    record = description(network, objective, images, plan, augment)
    record |= {"precision": options["precision"], "checks": checks.record}
    folder = Folder(options["out"], record)
    network.to(_device(options))
    with plain_warnings(), locked(folder.path / RECORD) if _main() else nullcontext():
        if folder.finished():
            if _main():
                remove_checkpoint(folder.checkpoint)
                _say(f"finished before: {folder.path} holds the model that this command makes")
            return False
        job = partial(
            train, network, objective, images, plan, augment=augment,
            checkpoint=folder.checkpoint, record=folder.training,
        )  # fmt: skip
        look = partial(
            Monitor, folder.path, network, measure=checks.measure, picture=checks.picture,
            save_best=lambda n: save(n, folder.path / "best"), check_every=options["check_every"],
            tensorboard=options["tensorboard"], claim=folder.claim,
        )  # fmt: skip
        made_with = _train(options, folder, job, look)
        if _main():
            files = save(network, folder.path)
            folder.card(objective, plan, augment, images, made_with)
            folder.finish(files)
            _say(f"saved {folder.path}")
    return True


def _train(
    options: dict[str, Any],
    folder: Folder,
    job: Callable[..., list[tuple[int, str]]],
    look: Callable[..., Monitor],
) -> list[tuple[int, str]]:
    """Run the job, on the main process under watch."""
    if _main():
        folder.check_writable()
        folder.sweep()
    with progress_bar("training", options["updates"], not _main(), "updates") as bar:
        watch = look(bar=bar) if _main() else None
        try:
            return job(watch=watch, processes=_processes(options))
        except FloatingPointError as error:
            raise ValueError(f"{error} (--lr); a checkpoint of before is kept") from error


def _say(text: str) -> None:
    console().print(text)


def _guide(options: dict[str, Any]) -> nn.Module:
    return named("--classifier", lambda: load_classifier(options["classifier"]))


def _data(options: dict[str, Any]) -> tuple[Images, Images]:
    """Training images, and those held out of them for checks."""
    _device(options)
    images = build_training_images(options)
    held = options["check_images"]
    if not held:
        return images, images[:0]
    if held >= len(images):
        raise ValueError(f"--check-images must be below the {len(images)} images; got {held}")
    apart = images.sample(held, seed=1)
    kept = ~torch.isin(images.index, apart.index)
    return images[kept], apart


def _many() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _processes(options: dict[str, Any]) -> Any:
    """An accelerate `Accelerator` where it is needed: many processes, or mixed precision."""
    if not _many() and options["precision"] == "float32":
        return None
    from accelerate import Accelerator

    mixed = "no" if options["precision"] == "float32" else "bf16"
    return Accelerator(mixed_precision=mixed, cpu=options["device"] == "cpu")


def _device(options: dict[str, Any]) -> torch.device:
    if _many() and options["device"].startswith("cuda"):
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    check_device(options["device"])
    return torch.device(options["device"])
