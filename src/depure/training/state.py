"""The running state of a training: weights, their average, the optimiser, and whose they are."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depure import __version__
from depure.data.images import Images
from depure.training.augment import Augment
from depure.training.checkpoint import read_checkpoint, write_checkpoint
from depure.training.ema import EMA
from depure.training.loop import device_of
from depure.training.objectives.base import Objective
from depure.training.plan import Plan
from depure.weights import fingerprint


def description(
    network: nn.Module, objective: Objective, images: Images, plan: Plan, augment: Sequence[Augment]
) -> dict[str, Any]:
    """Everything that decides what a training ends with, as plain data.

    Equal descriptions, equal weights. The network counts with the weights that it begins with and
    the settings of its layers, the images with their pixels, labels and indices; how often a
    checkpoint is written does not count.
    """
    config = getattr(network, "config", None)
    public = config.items() if isinstance(config, Mapping) else ()  # diffusers' private ones vary
    settings = f"{network!r} {sorted((k, repr(v)) for k, v in public if not k.startswith('_'))}"
    data = {"x": images.x, "y": images.y, "index": images.index}
    record = {
        "plan": {k: v for k, v in asdict(plan).items() if k != "save_every"},
        "objective": objective.describe(),
        "augment": repr(tuple(augment)),
        "network": {
            "class": type(network).__name__,
            "settings": hashlib.sha256(settings.encode()).hexdigest()[:16],
            "weights at the start": fingerprint(network.state_dict()),
        },
        "images": {
            "name": images.name,
            "count": len(images),
            "shape": list(images.x.shape[1:]),
            "classes": list(images.classes),
            "fingerprint": fingerprint(data),
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))  # tuples become lists, as read back
    return plain


@dataclass(frozen=True)
class Position:
    """Where a training stands: the last update, its loss, and what its watch remembered then."""

    update: int
    loss: float
    memory: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class State:
    """Weights, their average, the optimiser, what they belong to, and what computed them."""

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    record: dict[str, Any]
    made_with: list[tuple[int, str]]  # from which update on

    @staticmethod
    def begin(network: nn.Module, plan: Plan, record: Mapping[str, Any], processes: int) -> State:
        """Weights that train, dropout as planned, a fresh optimiser and average."""
        device_of(network)  # refuses a network without weights
        network.requires_grad_(True)
        if plan.dropout is not None:
            for layer in network.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = plan.dropout
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay
        )
        average = EMA(network, plan.max_decay)
        return State(
            network, average, optimizer, dict(record), [(1, _versions(network, processes))]
        )

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"weight.{k}": v for k, v in self.network.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.ema.average.items()}
        for name, p in self.network.named_parameters():
            for key, value in self.optimizer.state[p].items():
                found[f"optimizer.{name}/{key}"] = value
        return {k: v.detach().cpu().clone().contiguous() for k, v in found.items()}

    def save(self, path: Path, at: Position) -> None:
        """Write atomically; the checkpoint before stays beside it.

        Raises:
            OSError: it cannot be written (a full disk); what was there stays.
        """
        facts = {
            "record": self.record,
            "update": at.update,
            "loss": at.loss,
            "watch": at.memory,
            "averages": self.ema.updates,
            "made with": self.made_with,
        }
        write_checkpoint(path, self._tensors(), facts)

    def load(self, path: Path, updates: int) -> Position | None:
        """Take over a checkpoint, if there is one: where it stands, of so many updates.

        Raises:
            ValueError: it is damaged, and no earlier one whole; or of another configuration.
            OSError: it cannot be read.
        """
        found = read_checkpoint(path, self.record)
        if found is None:
            return None
        tensors, facts = found
        self._restore(tensors)
        self.ema.updates = facts["averages"]
        at = Position(facts["update"], facts["loss"], facts["watch"])
        made_with = [(first, text) for first, text in facts["made with"]]
        if at.update < updates:
            self._continue_with(made_with, path, at.update)
        self.made_with[:] = made_with
        return at

    def _continue_with(self, made_with: list[tuple[int, str]], path: Path, update: int) -> None:
        (_, now), (_, before) = self.made_with[0], made_with[-1]
        if now != before:
            warnings.warn(
                f"the checkpoint {path} was made with {before}; this is {now}: the training goes "
                f"on at update {update + 1}, but may end with slightly other weights than either "
                f"alone gives, and its card says so",
                stacklevel=4,
            )
            made_with.append((update + 1, now))

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        device = device_of(self.network)

        def part(prefix: str) -> dict[str, Tensor]:
            size = len(prefix)
            return {k[size:]: v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

        self.network.load_state_dict(part("weight."))
        for name, value in part("average.").items():
            self.ema.average[name].copy_(value)
        for name, p in self.network.named_parameters():
            slots = part(f"optimizer.{name}/")
            if slots:
                slots["step"] = slots["step"].cpu()
                self.optimizer.state[p] = slots


def _versions(network: nn.Module, processes: int) -> str:
    """What computes: equal words, equal bits (on a CPU)."""
    home = type(network).__module__.partition(".")[0]
    other = getattr(sys.modules.get(home), "__version__", None)
    words = [f"depure {__version__}", f"torch {torch.__version__}"]
    words += [f"{home} {other}"] if other and home not in ("depure", "torch") else []
    words += [device_of(network).type] + ([f"{processes} processes"] if processes > 1 else [])
    return ", ".join(words)
