"""From words on the command line to attacks and threats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from depure.attacks import (
    APGD,
    FAB,
    LPA,
    MIPGD,
    PGD,
    PPGD,
    SPSA,
    Attack,
    DiffAttack,
    DiffHammer,
    FullIntermediate,
    LowFrequency,
    RayS,
    ReColorAdv,
    ScoreStart,
    Square,
    StAdv,
    SubstituteAttack,
    Transfer,
    autoattack,
    strongest,
)
from depure.cli.build import named
from depure.cli.values import shown
from depure.defences import Defended
from depure.diffusion import Straight
from depure.networks.features.distance import FeatureDistance
from depure.purifiers import BPDA, Chained
from depure.threat import L1, L2, Ball, Flow, Linf, Perceptual, Threat
from depure.zoo import load_classifier
from depure.zoo.lpips import NETWORKS, load_lpips

_PRESETS: dict[str, Attack] = {
    "pgd": PGD(),
    "pgd200+eot20": PGD.strong(),
    "mi-pgd": MIPGD(),
    "apgd-ce": APGD(eot=20),
    "apgd-dlr": APGD(loss="dlr", eot=20),
    "apgd-t": replace(APGD.targeted(), eot=20),
    "fab": FAB(eot=20),
    "diffattack": APGD(eot=20),
    "diffattack-published": APGD(eot=20),
    "full-intermediate": APGD(eot=20),
    "full-intermediate-published": APGD(eot=20),
    "bpda": PGD(50, eot=15, average="logits"),
    "transfer": APGD(),
    "diffhammer": DiffHammer(),
    "square": Square(),
    "spsa": SPSA(),
    "rays": RayS(),
    "stadv": StAdv(),
    "recolor": ReColorAdv(),
    "ppgd": PPGD(),
    "lpa": LPA(),
    "low-frequency": LowFrequency(),
}
_ENSEMBLES = (
    "autoattack", "autoattack-rand", "autoattack-stochastic", "autoattack-fixed", "strongest",
)  # fmt: skip
_BALLS = {"linf": Linf, "l2": L2, "l1": L1, "flow": Flow}
_OWN = {"queries": ("autoattack", "autoattack-stochastic"), "calls": ("strongest",)}
_OWN_BALL = {"stadv": "flow", "ppgd": "perceptual", "lpa": "perceptual"}


def build_attack(
    options: dict[str, Any], model: Defended | None = None, classes: int = 10
) -> Attack:
    """The attack with the settings that were given; some need the defence and its classes.

    Raises:
        ValueError: a setting that this attack does not have, or no defence where it needs one.
    """
    _check_own(options)
    if options["start"] is not None and not hasattr(_PRESETS.get(options["attack"]), "start"):
        raise ValueError(f"--start does not apply to the attack {options['attack']}: leave it")
    if options["start"] == "bpda" and options["attack"] == "transfer":
        raise ValueError(
            "--start bpda goes past the purifier, --attack transfer meets the bare classifier: "
            "leave one out"
        )
    if options["start"] is not None and options["random_start"]:
        raise ValueError("--start and --random-start exclude each other: leave one out")
    if options["attack"] in _ENSEMBLES:
        return _ensemble(options, model, classes)
    preset: Any = _PRESETS[options["attack"]]
    names = {"steps": "attack_steps"}
    fields = (
        "steps", "eot", "step_size", "average", "loss", "random_start", "restarts", "targets",
        "target",
    )  # fmt: skip
    given = {f: options[names.get(f, f)] for f in fields if options[names.get(f, f)] is not None}
    unknown = [f for f in given if not hasattr(preset, f)]
    if unknown:
        option = names.get(unknown[0], unknown[0]).replace("_", "-")
        raise ValueError(f"--{option} does not apply to the attack {options['attack']}: leave it")
    if options["start"] is not None:
        given["start"] = _start(options, model)
    attack: Attack = replace(preset, **given)
    match options["attack"]:
        case "diffattack" | "diffattack-published":
            return DiffAttack(attack, balanced=options["attack"] == "diffattack")
        case "full-intermediate" | "full-intermediate-published":
            return FullIntermediate(attack, balanced=options["attack"] == "full-intermediate")
        case "bpda" | "transfer":
            return _through_substitute(attack, options, model)
    return attack


def _check_own(options: dict[str, Any]) -> None:
    """Raise ValueError for an option that belongs to other attacks or another ball."""
    for field, attacks in _OWN.items():
        if options[field] is not None and options["attack"] not in attacks:
            raise ValueError(
                f"--{field} is for {', '.join(attacks)}; the attack is {options['attack']}: "
                f"leave it"
            )
    if options["perceptual_net"] is not None and _ball_name(options) != "perceptual":
        raise ValueError("--perceptual-net is for the perceptual ball: add --ball perceptual")


def _start(options: dict[str, Any], model: Defended | None) -> Attack:
    """An attack that is cheap beside the one that begins where it ends."""
    if model is None:
        raise ValueError("--start is for `depure evaluate`: leave it here")
    plain = PGD(eot=1)
    match options["start"]:
        case "score" | "score-along":
            entry, along = model.purifier.entry, options["start"] == "score-along"
            if entry is None:
                raise ValueError(f"--start {options['start']} needs a diffusion model: leave it")
            return ScoreStart(*entry, along=along)
        case "transfer":
            return Transfer(plain, model.classifier)
    return _through_substitute(plain, {**options, "attack": "bpda"}, model)


def _through_substitute(attack: Attack, options: dict[str, Any], model: Defended | None) -> Attack:
    """The attack on something simpler than the defence, which then meets its images."""
    if model is None:
        raise ValueError(f"the attack {options['attack']} is for `depure evaluate`: take pgd here")
    if options["attack"] == "transfer":
        return Transfer(attack, model.classifier)
    purifier = model.purifier
    blunt = purifier.with_backprop(Straight()) if isinstance(purifier, Chained) else BPDA(purifier)
    return SubstituteAttack(attack, Defended(blunt, model.classifier))


def _ensemble(options: dict[str, Any], model: Defended | None, classes: int) -> Attack:
    threat, name = build_threat(options), options["attack"]
    lacks = ["step_size", "average", "loss", "random_start", "restarts", "targets", "target"]
    lacks += ["attack_steps", "eot"] if name == "strongest" else []
    for field in lacks:
        if options[field] is not None:
            raise ValueError(
                f"--{field.replace('_', '-')} does not apply to the attack {name}: leave it"
            )
    found: Attack
    if name == "strongest":
        known = set(threat.knows) if threat.pool == 1 and threat.mix == 0.0 else set()
        random = model is None or bool(set(model.stages) - known)
        found = strongest(
            options["calls"] or 2000, threat.ball, model.classifier if model else None,
            classes=classes, random=random,
        )  # fmt: skip
    else:
        version: Any = name.removeprefix("autoattack").removeprefix("-") or "standard"
        found = autoattack(
            version, threat.ball, steps=options["attack_steps"] or 100,
            queries=options["queries"] or 5000, eot=options["eot"] or 20, classes=classes,
        )  # fmt: skip
    return found


def build_threat(options: dict[str, Any]) -> Threat:
    """The ball (the attack's own, if none is named) and the stages known."""
    names = {s.strip() for group in options["knows"] for s in group.split(",")} - {"none"}
    return Threat(_ball(options), tuple(sorted(names)), options["pool"], options["mix"])


def _ball_name(options: dict[str, Any]) -> str:
    named: str = options["ball"] or _OWN_BALL.get(options["attack"], "linf")
    return named


def _ball(options: dict[str, Any]) -> Ball:
    name = _ball_name(options)
    given = {} if options["eps"] is None else {"eps": options["eps"]}
    if name == "perceptual":
        return Perceptual(_distance(options), **given)
    plain: Any = _BALLS[name]
    ball: Ball = plain(**given)
    return ball


def _distance(options: dict[str, Any]) -> FeatureDistance:
    """Of a classifier's features, or LPIPS from files named alexnet:FILE[,LINEAR]."""
    name = options["perceptual_net"] or options["classifier"]
    kind, _, paths = name.partition(":")
    if kind not in NETWORKS:
        compared = named("--perceptual-net", lambda: load_classifier(name))
        return FeatureDistance(compared.to(options["device"]))
    files = [Path(p) for p in paths.split(",")]
    if not all(paths.split(",")) or len(files) > 2:
        raise ValueError(
            f"--perceptual-net must be {kind}:FILE or {kind}:FILE,LINEAR; got {shown(name)}"
        )
    network, layers, weights = named("--perceptual-net", lambda: load_lpips(kind, *files))
    return FeatureDistance(network.to(options["device"]), layers, weights)
