"""Rows of one forward pass: equal parts, one decision for all, means block by block."""

from __future__ import annotations

import pytest
import torch

from depure.rows import Chunk, chunked, current_chunk, means, parts, rows_at_once


@pytest.mark.parametrize(("total", "rows"), [(1, 1), (10, 4), (160, 128), (7, 100), (0, 3), (9, 3)])
def test_parts_cover_all_in_order_with_equal_lengths(total: int, rows: int) -> None:
    found = [list(range(total))[p] for p in parts(total, rows)]
    assert [i for part in found for i in part] == list(range(total))
    lengths = [len(part) for part in found]
    assert len(lengths) == -(-total // rows)
    assert not lengths or (max(lengths) <= rows and max(lengths) - min(lengths) <= 1)


def test_the_block_decides_and_ends() -> None:
    x = torch.zeros(1, 3, 32, 32)
    assert (rows_at_once(x), rows_at_once(x, 7)) == (128, 7)
    with chunked(Chunk(3, 10)):
        assert (rows_at_once(x), rows_at_once(x, 7), rows_at_once(x, 2)) == (3, 3, 3)
        with chunked(Chunk(5)):
            assert rows_at_once(x) == 5
        assert current_chunk() == Chunk(3, 10)
    assert current_chunk() is None
    assert rows_at_once(torch.zeros(1, 3, 64, 64)) == 32


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 24])
@pytest.mark.parametrize("draws", [1, 2, 6])
def test_means_are_those_of_all_rows_to_the_bit(rows: int, draws: int) -> None:
    table = torch.randn(24, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = table.view(-1, draws, 2, 3).mean(1)
    assert torch.equal(means((table[p] for p in parts(24, rows)), draws), whole)


def test_means_keep_only_rows_of_images_that_are_not_complete() -> None:
    alive: list[torch.Tensor] = []

    def blocks() -> object:
        for i in range(8):
            block = torch.full((3, 1), float(i))
            alive.append(block)
            yield block

    assert means(blocks(), 6)[:, 0].tolist() == [0.5, 2.5, 4.5, 6.5]  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "reserve"), [(0, 0), (1, -1)])
def test_chunks_of_nothing_are_refused(rows: int, reserve: int) -> None:
    with pytest.raises(ValueError, match="at least 1 row"):
        Chunk(rows, reserve)
