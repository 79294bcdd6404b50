"""Small parts that all instruments share."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depure.analysis.store import Array, Arrays, Cells
from depure.data.images import Images
from depure.defences.defended import Defended
from depure.evaluation.record import packages
from depure.weights import fingerprint


def mean_known(values: Array, axis: int) -> Array:
    """Mean over an axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def device_of(model: Defended, otherwise: Tensor) -> torch.device:
    """Where the defence's weights are; where the given tensor is, if it has none."""
    return next((p.device for p in model.parameters()), otherwise.device)


def slices(n: int, size: int) -> list[slice]:
    """0 .. n in slices of at most `size`."""
    return [slice(a, min(a + size, n)) for a in range(0, n, size)]


def short_hash(record: dict[str, Any]) -> str:
    """Ten letters that tell apart what decides a result."""
    text = json.dumps(record, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def decides(
    instrument: str, options: dict[str, str], models: dict[str, Defended], images: Images
) -> dict[str, Any]:
    """What decides an instrument's numbers: equal records, equal numbers."""
    parts = [part for model in models.values() for part in model.modules()]
    return {
        "instrument": instrument,
        "options": options,
        "images": fingerprint({"x": images.x, "y": images.y, "index": images.index}),
        "weights": {name: fingerprint(model.state_dict()) for name, model in models.items()},
        "versions": packages(parts),
    }


def join(parts: list[Arrays]) -> Arrays:
    """All rows of several pieces, in order."""
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def expect_cells(cells: Cells | None, count: int) -> Cells:
    """The cells given, or some in memory, with `count` more to come."""
    cells = Cells(None, {}) if cells is None else cells
    cells.total += count
    return cells


def check_counts(**counts: int) -> None:
    """Raise ValueError unless every number is at least 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
