"""Run folders, read and checked, as a report needs them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depure.evaluation.card import check_card
from depure.evaluation.checks import Check
from depure.evaluation.examples import EXAMPLES
from depure.evaluation.gradient_check import Agreement, GradientCheck
from depure.evaluation.record import SCHEMA
from depure.evaluation.shards import Shard, shard_name
from depure.evaluation.statistics import Interval
from depure.files import plain, read_json
from depure.pieces import Pieces

SHOWN = 8  # images whose pixels are kept


@dataclass(frozen=True)
class Accuracies:
    """One line of a card's results: clean or attacked images."""

    single: Interval  # one fresh draw
    any_of_n: list[Interval]  # right in all of N draws, N = 1, 2, ...
    majority_of_k: list[Interval]  # right by the vote of k draws, k = 1, 2, ...

    @staticmethod
    def of(data: dict[str, Any]) -> Accuracies:
        """Read a card's entry."""
        curves = ([Interval(**e) for e in data[key]] for key in ("any_of_n", "majority_of_k"))
        return Accuracies(Interval(**data["accuracy"]), *curves)

    def odd_votes(self) -> list[tuple[int, Interval]]:
        """(k, accuracy) for odd k: at even k a tie counts as wrong, which is no fair vote."""
        return list(enumerate(self.majority_of_k, 1))[::2]


@dataclass(frozen=True, eq=False)
class Tables:
    """What the shards hold, all images; pixels of the first `SHOWN` only."""

    y: Tensor  # (n,)
    clean: Tensor  # (n, R) predicted classes
    adversarial: Tensor  # (n, R)
    x: Tensor  # (m, C, H, W)
    x_adv: Tensor  # (m, C, H, W)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run. `tables` is None and `purified` empty where the folder lacks the files."""

    folder: Path
    card: dict[str, Any]
    clean: Accuracies
    robust: Accuracies
    effect: Interval
    gradient_check: GradientCheck
    checks: tuple[Check, ...]
    tables: Tables | None
    purified: dict[str, Tensor]  # "clean", "adversarial": (m, C, H, W)

    @property
    def title(self) -> str:
        """What the run is called."""
        return str(self.card["title"] or plain(self.folder.name))

    @property
    def setting(self) -> dict[str, Any]:
        """What was asked."""
        return dict(self.card["setting"])

    @property
    def images(self) -> int:
        """Number of images judged."""
        return int(self.card["results"]["images"])

    @property
    def draws(self) -> int:
        """Number of draws judged, 1 where all would coincide."""
        return int(self.card["results"]["draws"])

    @property
    def confidence(self) -> int:
        """Confidence of the intervals, in percent."""
        return round(100 * float(self.card["results"]["confidence"]))

    @property
    def known(self) -> bool:
        """Whether attacker and judge use the same noise, or there is none: no draw is fresh."""
        threat = self.setting["threat"]
        certain = threat.get("pool", 1) == 1 and threat.get("mix", 0.0) == 0.0
        stages = set(self.setting["model"]["stages"])
        return not stages or (certain and stages <= set(threat["knows"]))

    @property
    def trace(self) -> dict[str, list[float]]:
        """Mean loss (NaN where no image had a finite one) and accuracy at every attack iterate."""
        given = self.card["trace"].items()
        return {name: [nan if v is None else v for v in values] for name, values in given}

    @property
    def calls(self) -> dict[str, list[float]]:
        """Calls an image and accuracy after each member of an ensemble; empty for others."""
        return dict(self.card.get("calls", {"calls": [], "accuracy": []}))

    @property
    def members(self) -> list[str]:
        """Names of the attacks of an ensemble, with their loss if they have one; else none."""
        found = self.setting["attack"].get("members", [])
        return [", ".join(str(m[k]) for k in ("name", "loss") if k in m) for m in found]


def load_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        FileNotFoundError: if there is no such folder, or no finished run in it.
        ValueError: if its card is of another schema, or a file in it is damaged or another run's.
    """
    folder = Path(folder)
    card = _card(folder)
    pieces = check_card(folder / "card.json", card)
    try:
        results = card["results"]
        run = Run(
            folder=folder,
            card=card,
            clean=Accuracies.of(results["clean"]),
            robust=Accuracies.of(results["robust"]),
            effect=Interval(**results["effect"]),
            gradient_check=_gradient_check(card["gradient_check"]),
            checks=tuple(Check(**c) for c in card["checks"]),
            tables=_tables(pieces, int(results["images"])),
            purified=_purified(pieces),
        )
        _ = (card["title"], card["command"], card["setting"], card["trace"], card["cost"])
        _ = (card["run"], run.draws, run.confidence)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'card.json'} is damaged ({_missing(error)}): delete it and "
            f"finish the run again with the same `depure evaluate` command"
        ) from error
    return run


def _missing(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return "an entry is missing, or not what it should be"


def _card(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}: pass the folder of a finished run")
    path = folder / "card.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no card.json: finish the run with the same `depure evaluate` command"
        )
    card = read_json(path)
    if card.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has the schema {card.get('schema')!r}, but this version of Depure reads "
            f"{SCHEMA!r}: evaluate again, or use the version of Depure that wrote it"
        )
    return card


def _gradient_check(data: dict[str, Any]) -> GradientCheck:
    rows = tuple(Agreement(**row) for row in data["rows"])
    return GradientCheck(**{**data, "rows": rows})


def _tables(pieces: Pieces, images: int) -> Tables | None:
    """All shards, one at a time, or None if they are not (all) there."""
    parts, kept = [], 0
    for number in count():
        name = shard_name(number)
        if not (pieces.folder / name).exists():
            break
        shard, _ = Shard.load(pieces, name)
        room = slice(0, max(SHOWN - kept, 0))
        pixels = (shard.x[room].clone(), shard.x_adv[room].clone())
        parts.append((shard.y, shard.clean, shard.adversarial, *pixels))
        kept += len(pixels[0])
    if sum(len(part[0]) for part in parts) != images:
        return None
    return Tables(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _purified(pieces: Pieces) -> dict[str, Tensor]:
    if not (pieces.folder / EXAMPLES).is_file():
        return {}
    tensors, _ = pieces.read_tensors(EXAMPLES)
    try:
        return {name: tensors[name][:SHOWN] for name in ("clean", "adversarial")}
    except KeyError as error:
        pieces.damaged(EXAMPLES, error)
