"""What decides a gradient check, as one word: a cached check of another word is made anew."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

import torch

from depure import __version__
from depure.defences.defended import Defended


def key_of(model: Defended, described: dict[str, Any], chunk: int) -> str:
    """SHA-256 of the source of the model's classes, the versions, the run and the rows."""
    kinds = {type(m) for m in model.modules()}
    sources = sorted(_source(kind) for kind in kinds)
    known = [sources, __version__, torch.__version__, described, chunk]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=repr).encode()).hexdigest()


def _source(kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return f"{name}\n{inspect.getsource(kind)}"
    except (OSError, TypeError):
        return name  # typed into a shell, or compiled
