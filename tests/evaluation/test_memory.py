"""The chunk follows from counted work and measured memory, and a gradient stays within it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from depure import DDPM, Defended, DiffPure, Identity, Noise, load_classifier, load_denoiser
from depure.attacks.asking.gradients import expected_grad
from depure.attacks.asking.losses import LOSSES
from depure.diffusion import Backprop, Checkpoint, Full, Straight, Surrogate
from depure.evaluation.memory import need_of, peak_bytes, plan_chunk
from depure.rows import Chunk, chunked

MIB = 2**20
SLOW = pytest.mark.slow


def defence(backprop: Backprop, steps: int = 4) -> Defended:
    purifier = DiffPure(load_denoiser("digits"), DDPM(), t_star=0.1, steps=steps, backprop=backprop)
    return Defended(purifier, load_classifier("digits"))


def images(rows: int = 300, size: int = 8) -> Tensor:
    return torch.rand(rows, 1, size, size, generator=torch.Generator().manual_seed(0))


def noise(rows: int = 300) -> Noise:
    return Noise.of(0, range(rows))


def used(model: Defended, x: Tensor, chunk: Chunk, draws: int = 1) -> int:
    """Bytes at most while the attack's gradient is made."""
    y = torch.zeros(len(x), dtype=torch.long)

    def work() -> None:
        with chunked(chunk):
            expected_grad(model, x, y, LOSSES["ce"], noise(len(x)), draws)

    return peak_bytes(work)


@pytest.mark.parametrize("size", [8, pytest.param(16, marks=SLOW)])
@pytest.mark.parametrize("steps", [3, pytest.param(12, marks=SLOW)])
@pytest.mark.parametrize("limit", [4 * MIB, *(pytest.param(n * MIB, marks=SLOW) for n in (12, 64))])
def test_a_gradient_stays_within_the_limit(size: int, steps: int, limit: int) -> None:
    model, x = defence(Checkpoint(limit), steps), images(64, size)
    chunk = plan_chunk(model, x, noise())
    # What the whole batch is, whatever the chunk: images, their gradients, noise.
    batch = 16 * x.numel() * x.element_size()
    assert used(model, x, chunk) <= limit + batch
    if chunk.rows < len(x):
        assert used(model, x, Chunk(8 * chunk.rows, chunk.reserve)) > limit  # it binds


def test_many_draws_take_no_more_than_few() -> None:
    model, x = defence(Checkpoint(4 * MIB)), images(4, 16)
    chunk = plan_chunk(model, x, noise())
    few, many = (used(model, x, chunk, draws) for draws in (8, 64))
    assert many <= few + 3 * 64 * 4 * x[0].numel()  # the draws of one image, not of all four


def test_kept_steps_count_what_else_is_in_memory() -> None:
    x = images(2, 16)
    need = need_of(defence(Checkpoint()), x, noise())
    limit = int(1.5 * need.least * 8) + 3 * 8 * need.graph
    model = defence(Checkpoint(limit), steps=20)
    chain = model.purifier.prepared(images(8, 16), noise(8))  # type: ignore[operator]
    driver = model.purifier.backprop
    with chunked(Chunk(8, need.reserve)):
        kept = driver.kept(chain, images(8, 16))  # type: ignore[union-attr, operator]
    assert 2 <= kept < 20
    assert kept * 8 * need.graph + 8 * need.reserve <= limit


@pytest.mark.parametrize(
    ("backprop", "of_a_step"), [(Checkpoint(), 1), (Surrogate(2), 1), (Full(), 4), (Straight(), 0)]
)
def test_what_is_in_memory_at_once_follows_from_the_driver(
    backprop: Backprop, of_a_step: int
) -> None:
    one = need_of(defence(Checkpoint()), images(1), noise()).step
    step = need_of(defence(backprop), images(1), noise()).step
    assert abs(step / one - of_a_step) < 0.8


def test_flops_are_those_of_one_network_call() -> None:
    assert need_of(defence(Checkpoint()), images(1), noise()).flops == pytest.approx(
        need_of(defence(Full(), 12), images(1), noise()).flops
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model = Defended(Identity(), network)
    assert need_of(model, images(1), noise()).flops == 2 * 64 * 10


def test_work_decides_where_memory_is_ample() -> None:
    rows = [plan_chunk(defence(Checkpoint(2**34)), images(1, s), noise()).rows for s in (8, 16, 32)]
    flops = [need_of(defence(Checkpoint()), images(1, s), noise()).flops for s in (8, 16, 32)]
    for n, f in zip(rows, flops, strict=True):
        assert 4e9 - f <= n * f <= 8e9


def test_fewer_rows_if_then_all_steps_can_be_kept() -> None:
    need = need_of(defence(Checkpoint()), images(1), noise())
    whole = 1.5 * (need.reserve + 20 * need.graph)
    rows = plan_chunk(defence(Checkpoint(int(180 * whole)), 20), images(1), noise()).rows
    assert rows == pytest.approx(180, abs=3)


def test_one_image_beyond_a_named_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one image needs about \d+ MiB .* memory limit is 1 MiB"):
        plan_chunk(defence(Checkpoint(MIB)), images(1, 32), noise())
    with pytest.raises(ValueError, match="memory limit is 1 MiB"):
        plan_chunk(defence(Checkpoint()), images(1, 32), noise(), MIB)


class _Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


class _Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)


@pytest.mark.parametrize("network", [_Raising(), _Detached()])
def test_a_defence_that_cannot_be_measured_is_not_refused_here(network: nn.Module) -> None:
    assert plan_chunk(Defended(Identity(), network), images(2), noise()).rows == 128


def test_rows_asked_for_are_the_most() -> None:
    assert plan_chunk(defence(Checkpoint()), images(1), noise(), rows=3).rows == 3
