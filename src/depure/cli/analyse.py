"""`depure analyse`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import torch
from matplotlib.figure import Figure

from depure.analysis.common import decides
from depure.analysis.gradients import gradients
from depure.analysis.inception import inception_features
from depure.analysis.landscape import landscape
from depure.analysis.purification import purification
from depure.analysis.quality import quality
from depure.analysis.stochasticity import stochasticity
from depure.analysis.store import Cells, write_arrays
from depure.analysis.trajectories import trajectories
from depure.analysis.transfer import transfer
from depure.cli import options as opts
from depure.cli.attacks import build_attack, build_threat
from depure.cli.build import build_model, load_images, named
from depure.cli.config import config
from depure.cli.evaluate import command_line
from depure.cli.show import console, progress_bar
from depure.cli.values import SEED, Count, Number, Several, shown
from depure.data import Images
from depure.defences import Defended
from depure.files import plain, replacing, write_json, write_text
from depure.reporting.explain import all_answers, explain_page, no_better_than_guessing
from depure.reporting.plots.gradients import gradients_figure
from depure.reporting.plots.landscape import landscape_figure
from depure.reporting.plots.purification import purification_figure
from depure.reporting.plots.quality import quality_figure
from depure.reporting.plots.stochasticity import stochasticity_figure
from depure.reporting.plots.trajectories import trajectories_figure
from depure.reporting.plots.transfer import transfer_figure
from depure.rows import Chunk, chunked
from depure.threat import Ball, Threat, as_norm


class Finding(Protocol):
    """What every instrument gives."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decided it."""

    def arrays(self) -> Mapping[str, Any]:
        """All numbers by name."""


Found = TypeVar("Found", bound=Finding)

_SIGNS = ".,+-()"  # in names of figures, where $ is mathematics, and of folders below --out
_NAME = re.compile(rf"\w[\w{re.escape(_SIGNS)} ]{{0,63}}")
_DECIDES, _ASSUMED = "decides", "assumed"  # entries of the options: of the numbers, the labels
_APART = {"out", "batch", "device", "memory_limit", "chunk", "features"}  # decide no number
# Small enough for a first look at the bundled digits.
_DEFAULTS = {"steps": "5", "eps": "0.2", "attack_steps": "10", "eot": "5"}


@click.group("analyse", short_help="Where does the robustness come from? Instruments and figures.")
def command() -> None:
    """Instruments that explain a defence: numbers as plain arrays, and a figure.

    Each writes a folder with arrays.npz, settings.json, figure.png and figure.pdf. Killed at any
    moment, the same command continues. Defaults suit the bundled digits (5 purifier steps, eps
    0.2, 10 attack steps, 32 images, 512 for quality); `--beside NAME=DENOISER` puts other
    denoisers beside the one of `--denoiser`:

    \b
      depure analyse stochasticity --beside ADDT=digits-addt
      depure analyse landscape --images 16
    """


def _instrument(
    name: str, help_line: str, *extra: Callable[[Any], Any], images: int = 32
) -> Callable[[Callable[..., None]], Any]:
    """A subcommand with the options that all instruments share."""

    def decorate(function: Callable[..., None]) -> Any:
        shared = [
            *extra,
            click.option("--out", type=click.Path(path_type=Path), default=Path("analysis") / name,
                         show_default=True, help="Folder for arrays, figure and settings."),
            click.option("--draws", default=8, show_default=True, type=Count(),
                         help="Fresh noise draws of every judgement."),
            click.option("--batch", default=32, show_default=True, type=Count(),
                         help="Images between two savings."),
            opts.common, opts.attack, opts.gradient, opts.purifier, opts.data, config,
        ]  # fmt: skip
        for option in shared:
            function = option(function)
        settings = {"default_map": {**_DEFAULTS, "images": str(images)}}
        return command.command(name, short_help=help_line, context_settings=settings)(function)

    return decorate


beside = click.option(
    "--beside", multiple=True, metavar="NAME=DENOISER",
    help="Another denoiser in the same figure; repeatable.",
)  # fmt: skip


def _list(name: str, default: str, each: Number | Count, text: str) -> Any:
    return click.option(name, default=default, show_default=True, type=Several(each), help=text)


@_instrument(
    "stochasticity", "Accuracy and loss from known to fresh noise.", beside,
    _list("--levels", "0,0.5,1", Number(0, 1),
          "Mix levels: 0 is DW-box, 1 the ordinary white-box."),
    _list("--pools", "1,2,8,32,128", Count(), "Numbers of fixed draws that the attacker knows."),
)  # fmt: skip
def stochasticity_command(**options: Any) -> None:
    """What the attacker's knowledge of the noise takes: how much robustness is stochasticity."""
    models, images, ball = _defences(options)
    _write(
        options,
        lambda cells: stochasticity(
            models, images, as_norm(ball), attack=build_attack(options), levels=options["levels"],
            pools=options["pools"], draws=options["draws"], seed=options["seed"],
            batch=options["batch"], cells=cells,
        ),
        stochasticity_figure,
    )  # fmt: skip


@_instrument(
    "landscape", "Loss over the plane of two attack directions.",
    click.option("--points", default=11, show_default=True, type=Count(3, 999),
                 help="Grid points in each direction."),
)  # fmt: skip
def landscape_command(**options: Any) -> None:
    """Loss over the DW-box direction and what the EoT direction adds, fixed and fresh noise."""
    models, images, ball = _defences(options)
    _write(
        options,
        lambda cells: landscape(
            _only(models), images, as_norm(ball), attack=_pgd(options), points=options["points"],
            draws=options["draws"], seed=options["seed"], batch=min(8, options["batch"]),
            cells=cells,
        ),
        landscape_figure,
    )  # fmt: skip


@_instrument("trajectories", "Paths of attacks, and whether they agree.")
def trajectories_command(**options: Any) -> None:
    """Paths of DW-box, white-box EoT and white-box single-draw attacks, in one projection."""
    models, images, ball = _defences(options)
    _write(
        options,
        lambda cells: trajectories(
            _only(models), images, as_norm(ball), attack=_pgd(options), draws=options["draws"],
            seed=options["seed"], batch=min(8, options["batch"]), cells=cells,
        ),
        trajectories_figure,
    )  # fmt: skip


@_instrument(
    "purification", "What the purifier does to a perturbation.",
    _list("--t-stars", "0.05,0.1,0.2,0.3", Number(0, above=True), "Noise levels of the grid."),
    _list("--grid-steps", "1,2,5,10", Count(), "Numbers of steps of the grid."),
)  # fmt: skip
def purification_command(**options: Any) -> None:
    """Share of a perturbation removed, damage done, per step; accuracy over t* and steps."""
    models, images, ball = _defences(options)
    _write(
        options,
        lambda cells: purification(
            _only(models), images, as_norm(ball), attack=_pgd(options), t_stars=options["t_stars"],
            steps=options["grid_steps"], draws=options["draws"], seed=options["seed"],
            batch=options["batch"], cells=cells,
        ),
        purification_figure,
    )  # fmt: skip


@_instrument(
    "gradients", "Noise of EoT gradients, approximations, what draws buy.", beside,
    _list("--eots", "1,2,5,10,20", Count(), "EoT draws of the attacks that are compared."),
    click.option("--reference", default=64, show_default=True, type=Count(2),
                 help="Independent draws of the expected gradient."),
)  # fmt: skip
def gradients_command(**options: Any) -> None:
    """Signal-to-noise of EoT gradients, agreement of approximations, norms along the chain."""
    models, images, ball = _defences(options)
    _write(
        options,
        lambda cells: gradients(
            models, images, as_norm(ball), attack=_pgd(options), eots=options["eots"],
            reference=options["reference"], judge=options["draws"],
            knows=build_threat(options).knows, seed=options["seed"], batch=options["batch"],
            cells=cells,
        ),
        gradients_figure,
    )  # fmt: skip


@_instrument(
    "transfer", "Attacked under one setting, judged under another.", beside,
    _list("--seeds", "0,1", Count(*SEED), "DW-box: the seeds whose known noise is crossed."),
)  # fmt: skip
def transfer_command(**options: Any) -> None:
    """A matrix: attacked in DW-box (each seed) or white-box, judged under all the others."""
    models, images, ball = _defences(options)
    settings = {}
    for name, model in models.items():
        for seed in options["seeds"]:
            threat = Threat(ball, model.stages)
            settings[f"{name}, DW-box seed {seed}"] = (model, threat, seed)
        settings[f"{name}, white-box"] = (model, Threat(ball), options["seed"])
    _write(
        options,
        lambda cells: transfer(
            settings, images, attack=build_attack(options), draws=options["draws"],
            batch=options["batch"], cells=cells,
        ),
        transfer_figure,
    )  # fmt: skip


@_instrument(
    "quality", "FID and KID of generated and purified images.",
    click.option("--reference-data", default=None, metavar="FOLDER",
                 help="Images to compare with (default: the train split of --data)."),
    click.option("--features", default="classifier", show_default=True, metavar="classifier|FILE",
                 help="What FID and KID are made of: the classifier's last hidden layer; or, for "
                 "the published FID, Inception with the weights of a file that you have: "
                 "pt_inception-2015-12-05-6726825d.pth of the pytorch-fid releases, or its tensors "
                 "as .safetensors."),
    images=512,  # features need many
)  # fmt: skip
def quality_command(**options: Any) -> None:
    """FID and KID of held-out, purified and generated images.

    On the classifier's features these are not the published FID and KID. With the published file
    in --features they are, and compare with published numbers only on the same reference images
    and from at least 10,000 images a set: with few, FID is biased upwards. Grey images are repeated
    in three channels.
    """
    own = options["features"] == "classifier"
    load = partial(inception_features, options["features"])
    features = None if own else named("--features", load)
    models, images, _ = _defences(options)
    source = options["reference_data"] or options["data"]
    option = "--reference-data" if options["reference_data"] else "--data"
    reference = named(option, lambda: load_images(
        source, "train", options["image_size"], images.x.shape[1], None
    ))  # fmt: skip
    found, _ = _write(
        options,
        lambda cells: quality(
            _only(models), images, reference, features=features, seed=options["seed"],
            batch=options["batch"], cells=cells, blocks=max(1, min(8, len(images) // 4)),
        ),
        quality_figure,
    )  # fmt: skip
    smallest = min(*found.counts.tolist(), found.reference)
    console().print(f"features: {found.features}: {found.about}; smallest set: {smallest} images")


@_instrument(
    "explain", "One page: where does the robustness come from?", beside,
    click.option("--points", default=7, show_default=True, type=Count(3, 999),
                 help="Grid points in each direction of the loss surface."),
)  # fmt: skip
def explain_command(**options: Any) -> None:
    """Run a sensible subset of all instruments and write a page with answers and figures.

    Does the purifier remove perturbations or hide them? How much is left when the noise is known?
    What did adversarial training change? Is the attack converged? On the bundled digits the ADDT
    model stands beside the plain one unless --beside says otherwise; a few minutes.
    """
    if options["denoiser"] == "digits" and not options["beside"]:
        options["beside"] = ("ADDT=digits-addt",)
    models, images, ball = _defences(options)
    out, attack, seed, norm = options["out"], _pgd(options), options["seed"], as_norm(ball)
    few = images[torch.arange(min(16, len(images)))]

    def run(name: str, compute: Callable[[Cells], Any], draw: Callable[[Any], Figure]) -> Any:
        found, figure = _write({**options, "out": out / name}, compute, draw, name.split("/")[0])
        figures.setdefault(name.split("/")[0], []).append((name.replace("/", ": "), figure))
        return found

    figures: dict[str, list[tuple[str, Figure]]] = {}
    stochastic = run(
        "stochasticity",
        lambda cells: stochasticity(
            models, images, norm, attack=attack, levels=(0.0, 0.5, 1.0), pools=(1, 8, 128),
            stages=("both",), draws=options["draws"], batch=options["batch"], cells=cells,
            seed=seed,
        ),
        stochasticity_figure,
    )  # fmt: skip
    purified = {}
    for name, model in models.items():
        purify = partial(purification, model, images, norm, attack=attack, draws=4, seed=seed)
        purified[name] = run(f"purification/{name}", _with(purify), purification_figure)
        surface = partial(
            landscape, model, few, norm, attack=attack, points=options["points"], draws=2, seed=seed
        )
        run(f"landscape/{name}", _with(surface), landscape_figure)
    found = run(
        "gradients",
        lambda cells: gradients(
            models, images, norm, attack=attack, eots=(1, 5, 20), reference=32,
            draws=(1, 2, 4, 8, 16), judge=options["draws"], cells=cells, seed=seed,
        ),
        gradients_figure,
    )  # fmt: skip
    facts = [f"{name}: {model.purifier!r}" for name, model in models.items()]
    facts.append(f"{images!r}; {ball!r}; {attack!r}; seed {options['seed']}")
    assumed = [f"Warning: {images.assumed}"] if images.assumed else []
    facts += assumed + no_better_than_guessing(stochastic.mix, len(images.classes))
    answers, page = all_answers(stochastic, purified, found, figures), out / "explain.html"
    line = command_line(click.get_current_context(), "analyse explain")
    write_text(page, explain_page("Where the robustness comes from", facts, answers, line))
    for answer in answers:
        console().print(f"\n{answer.question}", style="bold")
        for sentence in answer.sentences:
            console().print(sentence)
    console().print(f"\npage: {page}")


def _with(compute: Callable[..., Any]) -> Callable[[Cells], Any]:
    return lambda cells: compute(cells=cells)


def _defences(options: dict[str, Any]) -> tuple[dict[str, Defended], Images, Ball]:
    """The defence of the options under its denoiser's name, and those beside it."""
    model, images = build_model(options)
    found = {_label(options["denoiser"]): model}
    for entry in options.get("beside", ()):
        name, _, denoiser = entry.partition("=")
        if not (denoiser and _NAME.fullmatch(name)):
            raise ValueError(
                f"--beside must be NAME=DENOISER, such as ADDT=digits-addt, with a name of at most "
                f"64 letters, digits, spaces and signs of {_SIGNS}; got {shown(entry)}"
            )
        if name in found:
            raise ValueError(f"--beside names {name!r} twice: give every denoiser its own name")
        found[name] = build_model({**options, "denoiser": denoiser})[0]
    instrument = click.get_current_context().info_name or ""
    said = {k: str(v) for k, v in sorted(options.items()) if k not in _APART}
    options[_DECIDES] = decides(instrument, said, found, images)
    options[_ASSUMED] = {"assumed": images.assumed} if images.assumed else {}
    ball = build_threat(options).ball
    ball.check_images(images.x)
    if options["chunk"] is not None:
        click.get_current_context().with_resource(chunked(Chunk(options["chunk"])))
    return found, images, ball


def _label(denoiser: str) -> str:
    """A denoiser's name as it may stand in a figure and as the name of a folder."""
    name = re.sub(rf"[^\w{re.escape(_SIGNS)} ]", "_", plain(Path(denoiser).name)).strip(" .")
    return name[:64] or "denoiser"


def _only(models: dict[str, Defended]) -> Defended:
    return next(iter(models.values()))


def _pgd(options: dict[str, Any]) -> Any:
    if not options["attack"].startswith("pgd"):
        raise ValueError(f"this instrument follows PGD; got --attack {options['attack']}")
    return build_attack(options)


def _write(
    options: dict[str, Any],
    compute: Callable[[Cells], Found],
    draw: Callable[[Found], Figure],
    what: str = "analysing",
) -> tuple[Found, Figure]:
    """Compute with a progress bar; write arrays, settings and figure."""
    out: Path = options["out"]
    with progress_bar(what, 1, unit="pieces") as bar:
        found = compute(Cells(out, options[_DECIDES], progress=bar))
    write_arrays(out / "arrays.npz", found.arrays())
    settings = {**found.settings, **options[_ASSUMED]}
    write_json(out / "settings.json", json.loads(json.dumps(settings, default=repr)))
    figure = draw(found)
    for suffix, undated in (("png", {}), ("pdf", {"CreationDate": None})):
        with replacing(out / f"figure.{suffix}") as file:
            figure.savefig(file, format=suffix, dpi=150, metadata=undated)
    console().print(f"figure: {out / 'figure.png'}\narrays: {out / 'arrays.npz'}")
    return found, figure
