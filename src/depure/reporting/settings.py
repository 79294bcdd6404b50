"""What was asked, for humans: every field of a run's description, with a word on each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from depure.reporting.words import NBSP, TIMES, count, plural

_LABELS = {  # path in a card's "setting" -> what a reader calls it, a word of explanation
    "data.name": ("Data set", ""),
    "data.images": ("Images", ""),
    "data.shape": ("Image size", "channels, height, width"),
    "data.classes": ("Classes", ""),
    "data.fingerprint": ("Data fingerprint", "hash of images, labels and indices"),
    "model.classifier": ("Classifier", ""),
    "model.stages": ("Draws noise at", "stages of the purifier at which it is random"),
    "model.weights": ("Weights fingerprint", "hash of all weights"),
    "model.dtype": ("Number format", ""),
    "threat.ball": ("Bound", "how far an image may be changed"),
    "threat.knows": ("Attacker knows", "besides all weights and the algorithm"),
    "threat.pool": ("Pool of draws", "fixed draws of the known noise, of which one comes"),
    "threat.mix": ("Fresh share", "of the known noise: 0 is DW-box, 1 the ordinary white-box"),
    "attack.name": ("Method", ""),
    "attack.steps": ("Iterations", ""),
    "attack.step_size": ("Step size", "change per iteration"),
    "attack.eot": ("EoT draws", "expectation over transformation: noise draws per iteration"),
    "attack.average": ("EoT averages", "what is averaged over these draws"),
    "attack.loss": ("Loss", "what the attack raises"),
    "attack.random_start": ("Random start", "begins at a random point of the ball"),
    "attack.start": ("Start", "the attack from whose proposals it begins"),
    "attack.target": ("Target class", ""),
    "draws": ("Draws asked for", "fresh draws of the noise per image, for judging"),
    "seed": ("Seed", "of all randomness"),
    "shard_size": ("Images per shard", "attacked together; does not change the result"),
}
_GROUPS = {"data": "Data", "model": "Defence", "threat": "Attacker", "attack": "Attack"}
_METHODS = {"PGD": "projected gradient ascent"}
_LOSSES = {"ce": "cross-entropy", "margin": "margin", "dlr": "difference of logits ratio"}
_PURIFIER = {  # entry of a purifier's record -> what a reader calls it, a word of explanation
    "networks": ("Networks", "weights, what is predicted, noise schedule"),
    "sampler": ("Sampler", "the rule of one denoising step"),
    "t_star": ("Noised up to", "t*, a share of the diffusion (EDM: a noise level)"),
    "steps": ("Denoising steps", "in each round"),
    "rounds": ("Rounds", "of noising and denoising in sequence"),
    "convention": ("Index arithmetic", "whose of the published ones"),
    "backprop": ("Gradient by", "how the chain of steps is differentiated"),
    "clamp": ("Clamped", "whether the purified image is cut to the range of pixels"),
}


@dataclass(frozen=True)
class Row:
    """One line of the setting; `code` marks a value that is a name in the code."""

    label: str
    value: str
    note: str = ""
    code: bool = False


def setting_rows(setting: dict[str, Any]) -> dict[str, list[Row]]:
    """Groups of rows that cover every field of a run's description."""
    groups: dict[str, list[Row]] = {}
    for key, value in setting.items():
        rows = groups.setdefault(_GROUPS.get(key, "Judging"), [])
        if not isinstance(value, dict) or key not in _GROUPS:
            rows.append(_row(key, value, setting))
            continue
        for name, item in value.items():
            path = f"{key}.{name}"
            rows += purifier_rows(item) if path == "model.purifier" else [_row(path, item, setting)]
    return groups


def _row(path: str, value: Any, setting: dict[str, Any]) -> Row:
    label, note = _LABELS.get(path, (path.rpartition(".")[2].replace("_", " ").capitalize(), ""))
    special = {
        "data.shape": lambda: f" {TIMES} ".join(str(v) for v in value),
        "data.classes": lambda: _classes(value),
        "threat.ball": lambda: bound(value),
        "threat.knows": lambda: knowledge(setting),
        "attack.name": lambda: f"{value}, {_METHODS[value]}" if value in _METHODS else str(value),
        "attack.step_size": lambda: "the bound's default" if value is None else f"{value:g}",
        "attack.loss": lambda: _LOSSES.get(value, str(value)),
        "attack.target": lambda: "none: any wrong class counts" if value is None else plain(value),
    }
    text = special[path]() if path in special else plain(value)
    return Row(label, text, note, code="fingerprint" in path or path == "model.weights")


def plain(value: Any) -> str:
    """Any JSON value as words."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, list):
        return ", ".join(plain(v) for v in value) or "none"
    if isinstance(value, dict) and "weights" in value:  # a network; its hashes are in the card
        return str(value["kind"])
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items())
    return str(value).replace("_", " ")


def _classes(names: list[str]) -> str:
    shown = names if len(names) <= 12 else [*names[:10], "\u2026", names[-1]]
    return f"{len(names)}: {', '.join(str(n) for n in shown)}"


def bound(ball: dict[str, Any]) -> str:
    """ "Linf <= 8/255", or a decimal where it is a round one."""
    name, eps = str(ball.get("name")), ball.get("eps")
    if not isinstance(eps, (int, float)):
        return plain(ball)
    norm = {"Linf": "L\u221e", "L2": "L2", "L1": "L1"}.get(name, name)
    levels = 255 * eps
    whole = name == "Linf" and abs(levels - round(levels)) < 1e-6 and len(f"{eps:g}") > 5
    size = f"{round(levels)}/255" if whole else f"{eps:g}"
    rest = {k: v for k, v in ball.items() if k not in ("name", "eps", "features")}
    return f"{norm}{NBSP}\u2264{NBSP}{size}" + (f", {plain(rest)}" if rest else "")


def bound_in_full(ball: dict[str, Any]) -> str:
    """The bound with its meaning."""
    eps = ball.get("eps")
    meaning = {
        "L2": "the Euclidean length of the whole change, pixels from 0 to 1",
        "L1": "the sum of all pixel changes, pixels from 0 to 1",
        "Flow": "how far pixels move along each axis, the image reaching from -1 to 1",
        "Perceptual": f"the distance of features, {ball.get('features')}",
    }
    if ball.get("name") == "Linf" and isinstance(eps, (int, float)):
        return f"no pixel changes by more than {100 * eps:.3g}{NBSP}% of its range"
    return meaning.get(str(ball.get("name")), "")


def knowledge(setting: dict[str, Any]) -> str:
    """What the attacker knows of the defence's random numbers."""
    stages, knows = setting["model"]["stages"], setting["threat"]["knows"]
    if not stages:
        return "everything: the defence draws no noise"
    if not knows:
        return "nothing of the noise (white-box)"
    hidden = [stage for stage in stages if stage not in knows]
    pool, mix = setting["threat"].get("pool", 1), setting["threat"].get("mix", 0.0)
    if pool > 1 or mix > 0:
        how = f"{pool} draws, one of which comes" if pool > 1 else f"all but a share of {mix:g}"
        return f"of the {' and '.join(knows)} noise {how}"
    if not hidden:
        return "all noise (deterministic white-box, DW-box)"
    return f"the {' and '.join(knows)} noise, not the {' and '.join(hidden)}"


def purifier_rows(record: dict[str, Any]) -> list[Row]:
    """A purifier's record, one row per entry."""
    rows = [Row("Purifier", str(record["name"]), "", code=True)]
    for key, value in record.items():
        if key == "name":
            continue
        if isinstance(value, dict) and key == "purifier":
            rows += purifier_rows(value)
            continue
        label, note = _PURIFIER.get(key, (key.replace("_", " ").capitalize(), ""))
        if key == "steps" and value is None:
            value, note = "every one", "all that the schedule has"
        code = isinstance(value, str | dict | list)
        rows.append(Row(label, written(value) if code else plain(value), note, code=code))
    return rows


def written(value: Any) -> str:
    """A part's record as its author would write it: `DDIM(eta=0.5)`."""
    if isinstance(value, dict) and "name" in value:
        settings = ", ".join(f"{k}={written(v)}" for k, v in value.items() if k != "name")
        return f"{value['name']}({settings})"
    if isinstance(value, list):
        return ", ".join(written(item) for item in value)
    return str(value)


def defence_in_short(setting: dict[str, Any]) -> str:
    """ "DiffPure, DDPM, t* = 0.1, 10 steps"; the purifier's name alone if it says no more."""
    record = setting["model"]["purifier"]
    names = []
    while isinstance(record.get("purifier"), dict):
        names.append(str(record["name"]))
        record = record["purifier"]
    names.append(str(record["name"]))
    if "sampler" in record:
        names.append(str(record["sampler"]["name"]))
    if "t_star" in record:
        names.append(f"t*{NBSP}={NBSP}{record['t_star']:g}")
    if "steps" in record:
        steps = record["steps"]
        names.append("all steps" if steps is None else f"{steps}{NBSP}steps")
    if record.get("rounds", 1) != 1:
        names.append(f"{record['rounds']}{NBSP}rounds")
    return ", ".join(names)


def attack_in_short(setting: dict[str, Any]) -> str:
    """ "PGD, 20 iterations, EoT 10"."""
    attack = setting["attack"]
    parts = [str(attack.get("name", "attack"))]
    if "steps" in attack:
        parts.append(plural(int(attack["steps"]), "iteration"))
    if "eot" in attack:
        parts.append(f"EoT{NBSP}{attack['eot']}")
    return ", ".join(parts)
