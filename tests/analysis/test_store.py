"""Cells are computed once, survive a kill, and are refused when they belong to something else."""

import os
import shutil
import threading
import time

import numpy as np
import pytest

from depure.analysis.store import Cells, read_arrays, write_arrays


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
    zeros = {"x": np.zeros(1)}
    Cells(tmp_path, {"seed": 0})("a", lambda: zeros)
    with pytest.raises(ValueError, match=r"holds another analysis .*seed: 0, now 1"):
        Cells(tmp_path, {"seed": 1})
    path = tmp_path / "cells" / "a.npz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged"):
        Cells(tmp_path, {"seed": 0})("a", lambda: {"x": np.zeros(1)})
    path.unlink()
    assert Cells(tmp_path, {"seed": 0})("a", lambda: zeros)["x"] == 0
    np.savez(tmp_path / "evil.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="damaged"):
        read_arrays(tmp_path / "evil.npz")


def cell(folder, name="a", seed=0, value=0.0):
    return Cells(folder, {"seed": seed})(name, lambda: {"x": np.full(2, value)})["x"].tolist()


def test_a_cell_is_taken_only_for_what_it_is(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    cell(mine, "a", value=1.0)
    cell(mine, "b", value=2.0)
    cell(other, "a", seed=1, value=3.0)
    cells = mine / "cells"
    good = (cells / "a.npz").read_bytes()
    shutil.copy(other / "cells" / "a.npz", cells / "a.npz")
    with pytest.raises(ValueError, match=r"cells/a\.npz is part of another run"):
        cell(mine)
    shutil.copy(cells / "b.npz", cells / "a.npz")
    with pytest.raises(ValueError, match=r"cells/a\.npz is cells/b\.npz of this run"):
        cell(mine)
    write_arrays(cells / "a.npz", {"x": np.zeros(2)})
    with pytest.raises(ValueError, match=r"cells/a\.npz does not say which run"):
        cell(mine)
    seal = read_arrays(cells / "b.npz")["__seal__"]
    write_arrays(cells / "b.npz", {"x": np.full(2, 2.5), "__seal__": seal})
    with pytest.raises(ValueError, match=r"cells/b\.npz is damaged \(its checksum does not fit\)"):
        cell(mine, "b")
    (cells / "a.npz").write_bytes(good)
    assert cell(mine, value=9.0) == [1.0, 1.0]


def test_one_process_at_a_time_computes_a_cell(tmp_path):
    calls, inside = [], threading.Event()

    def compute():
        calls.append(1)
        inside.set()
        time.sleep(0.2)
        return {"x": np.ones(1)}

    def run():
        assert Cells(tmp_path, {})("a", compute)["x"] == 1

    first = threading.Thread(target=run)
    first.start()
    inside.wait(10)
    run()
    first.join(10)
    assert calls == [1]
    assert [p.name for p in tmp_path.rglob(".*")] == []


def test_what_killed_processes_left_is_cleaned(tmp_path):
    cell(tmp_path)
    left = [tmp_path / "cells" / n for n in (".a.npz.depure-lock", ".a.npz.other-1-00000000.tmp")]
    for file in left:
        file.touch()
        os.utime(file, (0, 0))
    cell(tmp_path)
    assert not [file for file in left if file.exists()]
