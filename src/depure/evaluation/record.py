"""The record of a run: what was asked, as plain data, fingerprints included."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from depure import __version__
from depure.attacks.base import Attack
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.threat import Ball, Norm, Threat
from depure.weights import fingerprint

SCHEMA = "depure.card/3"


def settings_of(thing: Attack | Ball) -> dict[str, Any]:
    """A frozen dataclass as data: its class under "name", then its fields that matter."""
    fields = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}  # type: ignore[arg-type]
    return {"name": type(thing).__name__, **{k: _plain(v) for k, v in fields.items()}}


def _plain(value: Any) -> Any:
    """Attacks inside attacks, and the networks that some have, as data."""
    if isinstance(value, nn.Module):
        purifier = value.purifier.record() if isinstance(value, Defended) else None
        return {
            "kind": _kind(value),
            "weights": fingerprint(value.state_dict()),
            "settings": _settings_fingerprint(value),
            **({} if purifier is None else {"purifier": purifier}),
        }
    if isinstance(value, Attack):
        return settings_of(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _resolved(attack: Any, ball: Ball) -> Any:
    """The step size that is used, where an attack leaves it to the ball."""
    if isinstance(attack, list):
        return [_resolved(a, ball) for a in attack]
    if not isinstance(attack, dict):
        return attack
    inner = {k: _resolved(v, ball) for k, v in attack.items()}
    if "step_size" in inner and inner["step_size"] is None:
        inner["step_size"] = ball.default_step if isinstance(ball, Norm) else None
    return inner


def describe(
    model: Defended, images: Images, attack: Attack, threat: Threat, *, draws: int, seed: int
) -> dict[str, Any]:
    """Everything that decides the result of an evaluation; equal descriptions, equal results."""
    x = {"x": images.x, "y": images.y, "index": images.index}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "data": {
            "name": images.name,
            "images": len(images),
            "shape": list(images.x.shape[1:]),
            "classes": list(images.classes),
            "fingerprint": fingerprint(x),
        },
        "model": {
            "purifier": model.purifier.record(),
            "classifier": _kind(model.classifier),
            "stages": list(model.stages),
            "weights": fingerprint(tensors),
            "settings": _settings_fingerprint(model),
            "dtype": str(images.x.dtype).removeprefix("torch."),
        },
        "threat": {
            "ball": settings_of(threat.ball),
            "knows": list(threat.knows),
            "pool": threat.pool,
            "mix": threat.mix,
        },
        "attack": _resolved(settings_of(attack), threat.ball),
        "draws": draws,
        "seed": seed,
    }


def _settings_fingerprint(model: nn.Module) -> str:
    """Hash of every part's class and plain public attributes, which no weight and no repr tells."""
    plain = (bool, int, float, str, tuple)
    found = {
        name: [type(part).__name__]
        + [f"{k}={v!r}" for k, v in sorted(vars(part).items())
           if not k.startswith("_") and k != "training" and isinstance(v, plain)]
        for name, part in model.named_modules()
    }  # fmt: skip
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _kind(classifier: nn.Module) -> str:
    weights = sum(p.numel() for p in classifier.parameters())
    return f"{type(classifier).__name__}({weights:,} weights)"


def versions(device: torch.device) -> dict[str, str]:
    """What computed a result, for the record; not part of its description."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "device": gpu,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "depure": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
    }


def packages(modules: Iterable[nn.Module]) -> dict[str, str]:
    """Versions of the packages that a model's classes come from, torch and Depure among them."""
    names = {type(module).__module__.split(".")[0] for module in modules}
    found = {"depure": __version__, "torch": torch.__version__}
    for name in sorted(names - found.keys()):
        with suppress(metadata.PackageNotFoundError):  # a user's own file
            found[name] = metadata.version(name)
    return found


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Where two records differ, as "attack.steps: 20, now 40"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(k for k in new if k not in old)]
        nested = (differences(old.get(k), new.get(k), f"{at}.{k}".lstrip(".")) for k in keys)
        return [line for lines in nested for line in lines]
    return [] if old == new else [f"{at}: {_short(old)}, now {_short(new)}"]


def refuse_other(
    folder: Path, begun: dict[str, Any], now: dict[str, Any], *, work_left: bool
) -> None:
    """Refuse to go on with what a run folder holds.

    Args:
        folder: the run folder.
        begun: what it says of itself: a description with "versions".
        now: what is asked for now.
        work_left: whether something is still to be computed, so that versions matter.

    Raises:
        ValueError: if it is of another configuration, or unfinished work of other versions.
    """
    changed = differences({**begun, "versions": None}, {**now, "versions": None})
    if changed:
        raise ValueError(
            f"{folder} holds a run of another configuration "
            f"({'; '.join(changed[:3])}{'; ...' if len(changed) > 3 else ''}): choose "
            f"another folder, or delete this one"
        )
    moved = differences(begun.get("versions"), now["versions"])
    if moved and work_left:
        raise ValueError(
            f"{folder} was begun with other versions, whose results may differ in the last bits "
            f"({'; '.join(moved)}): finish it with those, or choose another folder"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def title_of(model: Defended, threat: Threat) -> str:
    """What a report calls a run that has no title of its own."""
    knows = f", {' and '.join(threat.knows)} noise known" if threat.knows else ""
    knows += f" up to a pool of {threat.pool}" if threat.pool > 1 else ""
    knows += f" but for a share of {threat.mix:g}" if threat.mix else ""
    ball = f"{type(threat.ball).__name__}(eps={threat.ball.eps})"  # its repr may have a network
    return f"{type(model.purifier).__name__} under {ball}{knows}"
