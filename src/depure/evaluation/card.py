"""The card of a run: its results with their protocol, as plain, diffable data."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from depure.answers import NOBODY, mean_of
from depure.evaluation import statistics
from depure.evaluation.checks import Check
from depure.evaluation.cost import Cost
from depure.evaluation.fitting import Fitting
from depure.evaluation.gradient_check import GradientCheck
from depure.evaluation.record import SCHEMA, versions
from depure.evaluation.shards import Shard
from depure.files import read_json, write_json
from depure.pieces import Pieces

_CURVE = 128  # longest curve written to a card
_FILE = "card.json"


def results_of(shard: Shard) -> dict[str, Any]:
    """Clean and robust accuracy, curves over draws, and the attack's effect, with intervals.

    "clean" is the null control: the unattacked images, judged on the same draws as "robust".
    """
    labels = shard.y.numpy()
    tables = {"clean": shard.clean.numpy(), "robust": shard.adversarial.numpy()}
    correct = {name: t == labels[:, None] for name, t in tables.items()}
    effect = statistics.difference(correct["clean"], correct["robust"])
    return {
        "images": len(labels),
        "draws": int(shard.clean.shape[1]),
        "confidence": 0.95,
        **{name: _accuracies(table, labels) for name, table in tables.items()},
        "effect": asdict(effect),
    }


def _accuracies(predictions: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, Any]:
    correct = predictions == labels[:, None]
    votes = statistics.majority_of_k(predictions[:, :_CURVE].astype(np.int64), labels)
    return {
        "accuracy": asdict(statistics.mean_accuracy(correct)),
        "any_of_n": [asdict(e) for e in statistics.any_of_n(correct, most=_CURVE)],
        "majority_of_k": [asdict(e) for e in votes],
    }


def trace_of(shard: Shard) -> dict[str, list[float | None]]:
    """Mean loss and mean accuracy at every attack iterate, over images and EoT draws.

    The loss is that of the images where it is finite; None where there are none.
    """
    loss = shard.loss.double()
    means = mean_of(loss.T, loss.T.isfinite()).tolist()
    return {
        "loss": [round(v, 6) if isfinite(v) else None for v in means],
        "accuracy": [round(v, 6) for v in shard.accuracy.double().mean(0).tolist()],
    }


def answers_of(shard: Shard) -> dict[str, dict[str, int]]:
    """Images and draws without a finite answer, which count as wrong, before and after."""
    tables = {"clean": shard.clean == NOBODY, "adversarial": shard.adversarial == NOBODY}
    return {
        name: {"images": int(bad.any(1).sum()), "draws": int(bad.sum())}
        for name, bad in tables.items()
    }


def gradients_of(shard: Shard) -> dict[str, float]:
    """Shares of images at which, at some iterate of the attack, the gradient was not the loss's.

    "followed_margin": the loss's was lost to rounding in at least one draw; "flat": it was zero
    in every pixel, that of the margin too.
    """
    if not shard.flat.shape[1]:
        return {"followed_margin": 0.0, "flat": 0.0}
    return {
        "followed_margin": round(float((shard.followed > 0).any(1).double().mean()), 6),
        "flat": round(float(shard.flat.any(1).double().mean()), 6),
    }


def calls_of(shard: Shard) -> dict[str, list[float]]:
    """What an ensemble's best proposals left, after the images and each member, for which calls.

    Means over images, calls of the classifier. Accuracies are those by which the ensemble chose: a
    little below what fresh draws say. Empty for any other attack.
    """
    return {
        "calls": [round(v, 1) for v in shard.spent.mean(0).tolist()],
        "accuracy": [round(v, 6) for v in shard.best.double().mean(0).tolist()],
    }


def card_of(
    description: dict[str, Any],
    shard: Shard,
    gradient_check: GradientCheck,
    checks: list[Check],
    cost: Cost,
    *,
    title: str,
    command: str,
    memory: int,
    fitting: Fitting,
    device: torch.device,
) -> dict[str, Any]:
    """Everything needed to read a result and to repeat it; volatile facts stand under "run"."""
    return {
        "schema": SCHEMA,
        "title": title,
        "command": command,
        "setting": description,
        "results": results_of(shard),
        "not_answered": answers_of(shard),
        "gradients": gradients_of(shard),
        "trace": trace_of(shard),
        "calls": calls_of(shard),
        "gradient_check": gradient_check.record(),
        "checks": [asdict(c) for c in checks],
        "cost": {
            "purifier_calls": cost.purifier_calls,
            "recomputed_calls": cost.recomputed_calls,
            "classifier_calls": cost.classifier_calls,
            "calls_per_image": round(
                (cost.purifier_calls + cost.recomputed_calls) / len(shard.y), 1
            ),
        },
        "run": {
            "seconds": round(cost.seconds, 2),
            "peak_memory_mib": round(memory / 2**20),
            "rows_at_once": fitting.chunk.rows,
            "rows_planned": fitting.planned,
            "versions": versions(device),
        },
    }


def keep_card(pieces: Pieces, card: dict[str, Any]) -> dict[str, Any]:
    """Write `card.json`, unless one is there that differs in date, time and memory alone; it.

    Raises:
        OSError: it cannot be written.
    """
    card["run"]["seal"] = pieces.seal(_FILE, _lasting(card))
    path = pieces.folder / _FILE
    if path.exists():
        with suppress(ValueError, KeyError, TypeError):  # damaged: it is written anew
            old = read_json(path)
            if old["run"]["seal"] == card["run"]["seal"]:
                check_card(path, old)
                return {**card, "run": old["run"]}
    write_json(path, card)
    return card


def check_card(path: Path, card: dict[str, Any]) -> Pieces:
    """The files of the run that a card is of.

    Raises:
        ValueError: the card is damaged, or not sealed.
    """
    run = card.get("run")
    seal = run.get("seal") if isinstance(run, dict) else None
    pieces = Pieces(path.parent, str(seal.get("run")) if isinstance(seal, dict) else "")
    pieces.check(_FILE, seal, _lasting(card))
    return pieces


def _lasting(card: dict[str, Any]) -> dict[str, Any]:
    """What a clock or a machine does not decide."""
    return {name: value for name, value in card.items() if name != "run"}
