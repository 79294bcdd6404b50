"""The one training loop: classifiers, diffusion models, ADDT; it resumes exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from depure.data.images import Images
from depure.noise import Noise
from depure.training.augment import Augment
from depure.training.ema import EMA
from depure.training.loop import (
    check_positive,
    device_of,
    finite,
    finite_weights,
    seeded,
    warm_cosine,
)
from depure.training.objectives.base import Objective
from depure.training.plan import Plan, batch_rows, layer_seed
from depure.training.state import Position, State, description


class Progress(Protocol):
    """Called after every update, on every process."""

    def __call__(self, update: int, updates: int, loss: float, average: EMA) -> None:
        """Update 1, 2, ... of `updates`, its loss before the step, the averaged weights after.

        A resumed run begins by calling it once more for the update of its checkpoint, for what
        it did then may have been cut short.
        """


@runtime_checkable
class Remembers(Protocol):
    """A watch whose memory travels in the checkpoints, so that a resumed run has it again."""

    def memory(self) -> dict[str, Any]:
        """Plain data, finite: what it knows before it is called for an update."""

    def recall(self, memory: dict[str, Any]) -> None:
        """Know that again."""


class Processes(Protocol):
    """The part of an accelerate `Accelerator` that the loop uses; pass one of those."""

    num_processes: int
    process_index: int
    is_main_process: bool

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The mean of a tensor over all processes."""

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision, if it was asked for."""

    def wait_for_everyone(self) -> None:
        """A barrier."""


def train(
    network: nn.Module,
    objective: Objective,
    images: Images,
    plan: Plan,
    *,
    augment: Sequence[Augment] = (),
    checkpoint: Path | None = None,
    watch: Progress | None = None,
    processes: Processes | None = None,
    record: Mapping[str, Any] | None = None,
) -> list[tuple[int, str]]:
    """Train `network` in place; at the end it holds the average of its weights, in eval mode.

    Every update is a pure function of the weights, its number and the seed: noise is keyed by the
    images' indices. So a run killed at any moment and called again with the same `checkpoint`
    ends with the very same weights (bit by bit on a CPU), and several processes train what one
    would, up to rounding, dropout and batch statistics.

    Args:
        network: any weights it has are where training starts. Batches go to its device.
        objective: what is minimised.
        images: the training set; its data-set indices key all randomness.
        plan: length and optimiser.
        augment: changes each batch, such as `Shift`.
        checkpoint: file of the running state, written every `plan.save_every` updates and at the
            end. It stays, so does the one before: `remove_checkpoint` when the network is saved.
        watch: called after every update; one that `Remembers` is resumed, too.
        processes: an accelerate `Accelerator`, for several devices or mixed precision. Each
            process works on its share of every batch; gradients are averaged.
        record: what a checkpoint must belong to; the `description` if omitted.

    Returns:
        What computed it, each with its first update: one, if no resumed run found another torch.

    Raises:
        ValueError: see the objective; or the checkpoint is damaged or of another configuration,
            or a batch cannot be shared among the processes.
        FloatingPointError: the loss or a weight is not finite; the last checkpoint is kept.
        OSError: a checkpoint cannot be written; the one before is kept.
    """
    rank, count = _place(images, plan, processes)
    record = record or description(network, objective, images, plan, augment)
    state = State.begin(network, plan, record, count)
    done = _resume(state, plan, checkpoint, watch, processes)
    for update in range(done + 1, plan.updates + 1):
        rows = batch_rows(len(images), plan.batch, update, plan.seed)[rank::count]
        with seeded(layer_seed(plan.seed, update, rank), network):
            loss = _backward(network, objective, images[rows], augment, plan, update, processes)
        value = _agree(network, loss, update, processes)
        _step(network, state, plan, update)
        if update % plan.save_every == 0 or update == plan.updates:
            finite_weights(network, update)
            if checkpoint is not None and rank == 0:
                state.save(checkpoint, Position(update, value, _memory(watch)))
        if watch:
            watch(update, plan.updates, value, state.ema)
    state.ema.copy_to(network)
    network.eval().requires_grad_(False)
    return state.made_with


def _resume(
    state: State,
    plan: Plan,
    checkpoint: Path | None,
    watch: Progress | None,
    processes: Processes | None,
) -> int:
    """The number of updates that are done, after the watch has seen the last of them again."""
    at = state.load(checkpoint, plan.updates) if checkpoint is not None else None
    if processes:
        processes.wait_for_everyone()  # nobody replaces it before all have read it
    state.network.train()
    if at is None:
        return 0
    if isinstance(watch, Remembers) and at.memory is not None:
        watch.recall(at.memory)
    if watch:
        watch(at.update, plan.updates, at.loss, state.ema)
    return at.update


def _memory(watch: Progress | None) -> dict[str, Any] | None:
    return watch.memory() if isinstance(watch, Remembers) else None


def _place(images: Images, plan: Plan, processes: Processes | None) -> tuple[int, int]:
    """The rank of this process and the number of all."""
    check_positive(images=len(images))
    rank, count = (processes.process_index, processes.num_processes) if processes else (0, 1)
    if plan.batch % count:
        raise ValueError(f"batch must be a multiple of the {count} processes; got {plan.batch}")
    return rank, count


def _backward(
    network: nn.Module,
    objective: Objective,
    batch: Images,
    augment: Sequence[Augment],
    plan: Plan,
    update: int,
    processes: Processes | None,
) -> Tensor:
    noise, x = Noise.of(plan.seed, batch.index).fold("update", update), batch.x
    for i, change in enumerate(augment):
        x = change(x, noise.fold("augment", i))
    device = device_of(network)
    moved = replace(batch, x=x.to(device), y=batch.y.to(device))
    with processes.autocast() if processes else nullcontext():
        loss = objective(network, moved, noise)
    network.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    return loss


def _agree(network: nn.Module, loss: Tensor, update: int, processes: Processes | None) -> float:
    """The same gradients and running statistics in all processes, and the mean loss."""
    loss = loss.detach().float()
    if processes is None or processes.num_processes == 1:
        return finite(loss, update)
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad = processes.reduce(parameter.grad, "mean")
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(processes.reduce(buffer, "mean"))
    return finite(processes.reduce(loss, "mean"), update)


def _step(network: nn.Module, state: State, plan: Plan, update: int) -> None:
    share = warm_cosine(update - 1, plan.updates) if plan.rate == "cosine" else 1.0
    state.optimizer.param_groups[0]["lr"] = plan.lr * share
    nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
    state.optimizer.step()
    state.ema.update(network)
