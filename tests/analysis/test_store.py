"""Cells are computed once, survive a kill, and are refused when they belong to something else."""

import numpy as np
import pytest

from depure.analysis.store import Cells, read_arrays


def test_a_rerun_computes_only_what_is_missing(tmp_path):
    calls, seen = [], []

    def compute(i):
        calls.append(i)
        return {"x": np.full(2, i)}

    def run(stop):
        cells = Cells(tmp_path / "a", {"seed": 0}, 3, lambda *p: seen.append(p))
        for i in range(stop):
            assert cells(f"cell-{i}", lambda i=i: compute(i))["x"].tolist() == [i, i]

    run(2)
    run(3)
    assert calls == [0, 1, 2]
    assert seen[-3:] == [(1, 3), (2, 3), (3, 3)]
    assert Cells(None, {})("a", lambda: compute(7))["x"].tolist() == [7, 7]


def test_another_analysis_and_a_damaged_cell(tmp_path):
    Cells(tmp_path, {"seed": 0})("a", lambda: {"x": np.zeros(1)})
    with pytest.raises(ValueError, match=r"holds another analysis .*seed: 0, now 1"):
        Cells(tmp_path, {"seed": 1})
    path = tmp_path / "cells" / "a.npz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged"):
        Cells(tmp_path, {"seed": 0})("a", lambda: {"x": np.zeros(1)})
    np.savez(tmp_path / "evil.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="damaged"):
        read_arrays(tmp_path / "evil.npz")
