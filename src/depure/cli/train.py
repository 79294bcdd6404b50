"""`depure train`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import click

from depure.cli import options as opts
from depure.cli.show import console, progress_bar
from depure.data import Images, digits, image_folder
from depure.diffusion import VPSDE, VPDiscrete
from depure.training import ADDT, ContinuousVP, DiscreteVP, Family, Plan, fine_tune
from depure.training.addt import Perturbation
from depure.zoo import load_classifier, load_denoiser


@click.group("train", short_help="Train diffusion models that purify better.")
def command() -> None:
    """Train diffusion models that purify better."""


@command.command("addt", short_help="Fine-tune a denoiser adversarially (ADDT).")
@opts.config
@click.option(
    "--data",
    default="digits",
    show_default=True,
    metavar="digits|FOLDER",
    help="Bundled digits (train split), or FOLDER/CLASS/image files.",
)
@click.option("--image-size", type=click.IntRange(1), default=None, help="Resize and crop to this.")
@click.option(
    "--denoiser",
    default="digits",
    show_default=True,
    metavar="digits|FOLDER",
    help="Where training starts: the bundled model, or a folder that diffusers saved.",
)
@click.option(
    "--classifier",
    default="digits",
    show_default=True,
    metavar="digits|ARCH:FILE",
    help="The guide, as in `depure evaluate`.",
)
@click.option(
    "--family",
    default="ddpm",
    show_default=True,
    type=click.Choice(["ddpm", "vpsde"]),
    help="Times and labels: discrete indices, or the continuous VP-SDE.",
)
@click.option(
    "--perturbation",
    default="rbgm",
    show_default=True,
    type=click.Choice(list(get_args(Perturbation))),
    help="rbgm: ADDT. pgd: ADDT without RBGM (classifier-guided adversarial training). "
    "none: plain fine-tuning, the control.",
)
@click.option("--unit", default=0.03, show_default=True, type=float, help="ADDT's lambda_unit.")
@click.option("--high", default=0.3, show_default=True, type=float, help="ADDT's lambda_max.")
@click.option("--iterations", default=5, show_default=True, type=click.IntRange(1), help="CGPO.")
@click.option("--updates", default=2000, show_default=True, type=click.IntRange(1))
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1))
@click.option("--lr", default=2e-4, show_default=True, type=float)
@opts.common
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("models/addt"),
    show_default=True,
    help="Folder for the trained model (diffusers layout); the same command continues a "
    "stopped training.",
)
def addt(**options: Any) -> None:
    """Adversarial denoising diffusion training (Liu et al., ICLR 2025).

    Starts from a trained denoiser. Killed at any moment, the same command continues and ends
    with the very same weights. The result is a folder for `--denoiser`:

    \b
      depure train addt --out models/addt
      depure evaluate --denoiser models/addt --steps 10 --eps 0.2
    """
    denoiser = load_denoiser(options["denoiser"])
    network = denoiser.network.to(options["device"])
    classifier = load_classifier(options["classifier"]).to(options["device"])
    family = _family(options["family"], denoiser.schedule)
    images = _images(options, getattr(classifier, "channels", 3))
    settings = ADDT(
        perturbation=options["perturbation"],
        iterations=options["iterations"],
        unit=options["unit"],
        high=options["high"],
    )
    plan = Plan(options["updates"], options["batch"], options["lr"], seed=options["seed"])
    folder: Path = options["out"]
    log = _Log(folder / "metrics.jsonl")
    with progress_bar("training", plan.updates, unit="updates") as bar:

        def report(update: int, total: int, loss: float) -> None:
            bar(update, total)
            log(update, loss)

        fine_tune(
            network, classifier, family, images, settings, plan,
            checkpoint=folder / "checkpoint.safetensors", progress=report,
        )  # fmt: skip
    _save(network, denoiser.schedule, folder, settings, plan, images, family)
    console().print(f"saved {folder}: use it with --denoiser {folder}")


def _family(name: str, schedule: object) -> Family:
    if name == "vpsde":
        return ContinuousVP(VPSDE())
    if not isinstance(schedule, VPDiscrete):
        raise ValueError(
            f"the family ddpm needs a discrete schedule; the denoiser has {schedule!r}"
        )
    return DiscreteVP(schedule)


def _images(options: dict[str, Any], channels: int) -> Images:
    if options["data"] == "digits":
        return digits("train")
    return image_folder(options["data"], size=options["image_size"], channels=channels)


class _Log:
    """One line of JSON for every 20th update; a resumed run appends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.losses: list[float] = []

    def __call__(self, update: int, loss: float) -> None:
        self.losses.append(loss)
        if update % 20 == 0:
            mean = sum(self.losses) / len(self.losses)
            with self.path.open("a") as file:
                file.write(json.dumps({"update": update, "loss": round(mean, 6)}) + "\n")
            self.losses.clear()


def _save(
    network: Any,
    schedule: object,
    folder: Path,
    settings: ADDT,
    plan: Plan,
    images: Images,
    family: Family,
) -> None:
    """The folder that diffusers would have saved, with a model card."""
    network.save_pretrained(folder / "unet", safe_serialization=True)
    betas = list(schedule.betas) if isinstance(schedule, VPDiscrete) else None
    scheduler = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": len(betas or []),
        "trained_betas": betas,
        "prediction_type": "epsilon",
    }
    (folder / "scheduler").mkdir(exist_ok=True)
    text = json.dumps(scheduler) + "\n"
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    command = shlex.join(["depure", *sys.argv[1:]])
    (folder / "MODEL_CARD.md").write_text(
        f"# A denoiser fine-tuned by Depure\n\n"
        f"- **Command**: `{command}`\n- **Data**: {images!r}\n- **Family**: {family!r}\n"
        f"- **Perturbation**: {settings!r}\n- **Plan**: {plan!r}\n"
        f"- **Weights**: their running average over training\n"
    )
