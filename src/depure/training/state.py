"""The running state of a training, as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from depure.data.images import Images
from depure.training.augment import Augment
from depure.training.ema import EMA
from depure.training.loop import device_of
from depure.training.objective import Objective
from depure.training.plan import Plan
from depure.weights import write_safetensors


@dataclass(frozen=True, eq=False)
class State:
    """Weights, their average, the optimiser, and what they belong to."""

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    record: dict[str, Any]

    @staticmethod
    def begin(
        network: nn.Module,
        objective: Objective,
        images: Images,
        plan: Plan,
        augment: Sequence[Augment],
    ) -> State:
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
        record = {
            "plan": asdict(plan), "objective": objective.describe(), "augment": repr(augment),
            "images": [images.name, len(images)],
        }  # fmt: skip
        plain = json.loads(json.dumps(record))  # tuples become lists, as when read back
        return State(network, EMA(network, plan.max_decay), optimizer, plain)

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"weight.{k}": v for k, v in self.network.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.ema.average.items()}
        for name, p in self.network.named_parameters():
            for key, value in self.optimizer.state[p].items():
                found[f"optimizer.{name}/{key}"] = value
        return {k: v.detach().cpu().clone().contiguous() for k, v in found.items()}

    def save(self, path: Path, update: int) -> None:
        """Write atomically.

        Raises:
            OSError: it cannot be written (a full disk); the file that was there stays.
        """
        facts = {"update": str(update), "averages": str(self.ema.updates)}
        write_safetensors(self._tensors(), path, {**facts, "record": json.dumps(self.record)})

    def load(self, path: Path) -> int:
        """Take over a checkpoint; the number of updates it has seen.

        Raises:
            ValueError: it is damaged, or of another configuration.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata()
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            record = json.loads(facts["record"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint {path} is damaged ({error}): delete it and train again"
            ) from error
        if record != self.record:
            names = [k for k in self.record if record.get(k) != self.record[k]]
            raise ValueError(
                f"the checkpoint {path} belongs to another configuration (another "
                f"{', '.join(names)}): choose another folder, or delete it"
            )
        self._restore(tensors)
        self.ema.updates = int(facts["averages"])
        return int(facts["update"])

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
