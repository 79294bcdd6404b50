"""Fine-tune a denoiser: ADDT, its variants and the plain control; resumes exactly."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from depure.data.images import Images
from depure.noise import Noise
from depure.training.addt import ADDT, addt_loss
from depure.training.ema import EMA
from depure.training.family import Family
from depure.training.loop import Progress, check_positive, device_of, finite, seeded


@dataclass(frozen=True)
class Plan:
    """The optimiser's side of a fine-tuning; the published settings of ADDT, but for the length.

    Args:
        updates: optimiser steps (ADDT: 19,600 on CIFAR-10).
        batch: images an update (ADDT: 256).
        lr, betas, weight_decay: of AdamW, constant.
        clip: largest norm of the gradient.
        dropout: probability set in every dropout layer while training (ADDT: 0.1).
        max_decay: of the running average of the weights.
        seed: fixes images, times, noise and dropout.
        save_every: updates between two checkpoints.
    """

    updates: int = 2000
    batch: int = 64
    lr: float = 2e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    clip: float = 1.0
    dropout: float = 0.1
    max_decay: float = 0.999
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        check_positive(
            updates=self.updates, batch=self.batch, lr=self.lr, clip=self.clip,
            save_every=self.save_every,
        )  # fmt: skip
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")


def fine_tune(
    network: nn.Module,
    classifier: nn.Module | None,
    family: Family,
    images: Images,
    settings: ADDT,
    plan: Plan,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train `network` in place; at the end it holds the average of its weights, in eval mode.

    Every update is a pure function of the weights, the update's number and the seed: noise is
    keyed by the images' indices. So a run killed at any moment and called again with the same
    `checkpoint` ends with the very same weights (bit by bit on a CPU).

    Args:
        network: the raw network of the family, e.g. a `UNet2DModel`; any weights it has are
            where training starts.
        classifier: the guide, frozen and in eval mode; None where none is needed.
        family: the kind of diffusion model.
        images: the training set; its data-set indices key the noise.
        settings: the perturbation; `ADDT(perturbation="none")` is the plain control.
        plan: length and optimiser.
        checkpoint: file of the running state, written every `plan.save_every` updates and
            deleted at the end.
        progress: called after every update with its number, their total, and the loss.

    Raises:
        ValueError: see `addt_loss`; or the checkpoint is damaged or of another configuration.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
    """
    device = device_of(network)
    state = _begin(network, family, images, settings, plan)
    done = state.load(checkpoint) if checkpoint is not None and checkpoint.exists() else 0
    network.train()
    for update in range(done + 1, plan.updates + 1):
        rows = batch_rows(len(images), plan.batch, update, plan.seed)
        noise = Noise.of(plan.seed, images.index[rows]).fold("update", update)
        with seeded(_dropout_seed(plan.seed, update), network):
            loss = _loss(network, classifier, family, images[rows], noise, settings, device)
            value = finite(loss, update)
            state.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
        state.optimizer.step()
        state.ema.update(network)
        if checkpoint is not None and update % plan.save_every == 0:
            state.save(checkpoint, update)
        if progress:
            progress(update, plan.updates, value)
    state.ema.copy_to(network)
    network.eval().requires_grad_(False)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _begin(
    network: nn.Module, family: Family, images: Images, settings: ADDT, plan: Plan
) -> _State:
    """Weights that train, dropout as planned, a fresh optimiser and average."""
    network.requires_grad_(True)
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = plan.dropout
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay
    )
    record = {
        "plan": asdict(plan), "settings": asdict(settings), "family": repr(family),
        "images": [images.name, len(images)],
    }  # fmt: skip
    plain = json.loads(json.dumps(record))  # tuples become lists, as when read back
    return _State(network, EMA(network, plan.max_decay), optimizer, plain)


def _loss(
    network: nn.Module,
    classifier: nn.Module | None,
    family: Family,
    batch: Images,
    noise: Noise,
    settings: ADDT,
    device: torch.device,
) -> Tensor:
    x0, y = (2.0 * batch.x - 1.0).to(device), batch.y.to(device)
    t = family.times(noise.uniform("time", 0, x0[:, 0, 0, 0].double()))
    return addt_loss(network, classifier, family, x0, y, t, noise, settings)


def batch_rows(images: int, batch: int, update: int, seed: int) -> Tensor:
    """Rows of update 1, 2, ...: every image once an epoch, a new order each, none left over.

    A function of its arguments alone, so that a resumed run sees the same batches. Epochs follow
    one another without a gap: a batch may end one and begin the next.
    """
    first = (update - 1) * batch
    places = torch.arange(first, first + batch)
    epochs = places // images
    orders = {
        e: torch.randperm(images, generator=torch.Generator().manual_seed(_mix(seed, e)))
        for e in set(epochs.tolist())
    }
    return torch.stack([orders[int(p) // images][int(p) % images] for p in places])


def _mix(seed: int, number: int) -> int:
    return int(Noise.of(seed, [number]).fold("order").keys.item()) & (2**63 - 1)


def _dropout_seed(seed: int, update: int) -> int:
    return int(Noise.of(seed, [update]).fold("dropout").keys.item()) & (2**63 - 1)


@dataclass(frozen=True, eq=False)
class _State:
    """Weights, their average and the optimiser, as one safetensors file."""

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    record: dict[str, Any]

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"weight.{k}": v for k, v in self.network.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.ema.average.items()}
        for name, p in self.network.named_parameters():
            for key, value in self.optimizer.state[p].items():
                found[f"optimizer.{name}/{key}"] = value
        return {k: v.detach().cpu().clone().contiguous() for k, v in found.items()}

    def save(self, path: Path, update: int) -> None:
        """Write atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        facts = {"update": str(update), "averages": str(self.ema.updates)}
        save_file(self._tensors(), temporary, {**facts, "record": json.dumps(self.record)})
        temporary.replace(path)

    def load(self, path: Path) -> int:
        """Take over a checkpoint; the number of updates it has seen."""
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
            raise ValueError(
                f"the checkpoint {path} belongs to another configuration: choose another folder, "
                f"or delete it"
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
            slots["step"] = slots["step"].cpu()
            self.optimizer.state[p] = slots
