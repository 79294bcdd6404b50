"""What decides a gradient check, as one word: a cached check of another word is made anew."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

import torch

from depure import __version__
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.weights import fingerprint


def key_of(
    model: Defended, described: dict[str, Any], images: Images, chunk: int, *, short: bool
) -> str:
    """SHA-256 of what decides a check: runs that differ in anything else share it.

    Args:
        model: the defence; the source of its classes counts.
        described: of the run; its model, threat and seed count.
        images: those that are looked at.
        chunk: rows of one forward pass of the attack.
        short: whether the look is a short one.
    """
    kinds = {type(m) for m in model.modules()}
    sources = sorted(_source(kind) for kind in kinds)
    part = {name: described[name] for name in ("model", "threat", "seed")}
    seen = fingerprint({"x": images.x, "y": images.y, "index": images.index})
    known = [sources, __version__, torch.__version__, part, seen, chunk, short]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=repr).encode()).hexdigest()


def _source(kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return f"{name}\n{inspect.getsource(kind)}"
    except (OSError, TypeError):
        return name  # typed into a shell, or compiled
